"""What runs on every rank but the first: one host, serving the driver on rank 0."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from robust_agg.distributed.torch_compat import default_group
from workers.blocks import pack_states, unpack_parameters, unpack_states
from workers.host import Host, HostSpec
from workers.inline import summary
from workers.rank_wire import Call, Line, in_bytes, numbers, reason, whole
from workers.transport import HostError

_log = logging.getLogger(__name__)

_PATIENCE = 5.0
# Seconds that a call may still take once nobody waits for its answer.

_Calls: TypeAlias = "queue.SimpleQueue[Call | ConnectionError]"


def serve(spec: HostSpec, group: ProcessGroup | None = None) -> None:
    """Serve one host until the driver, a :class:`~workers.rank_hosts.RankHosts`, is closed.

    Rank r of the group has the driver's host r - 1. Torch uses ``spec.threads`` threads meanwhile.
    Whatever a call raises costs its round only, but for what is no ``Exception``: that ends the
    host and is raised here.

    A call that goes on for 5 s after the driver has closed, or has gone, hangs, as far as anybody
    can tell: it ends the process, with exit code 0 or 1.

    Args:
        spec: the host; built here.
        group: as the driver's; the default group if None.

    Raises:
        HostError: the driver is gone.
        Exception: what building the host raises; the driver is told.
    """
    serve_what(lambda: spec, group or default_group())


def serve_what(made: Callable[[], HostSpec], group: ProcessGroup) -> None:
    """As :func:`serve`, with a specification that is made here; the driver is told if it is not."""
    line = Line(group, 0)
    calls: _Calls = queue.SimpleQueue()
    over = threading.Event()
    threads = torch.get_num_threads()
    listener = threading.Thread(target=_listen, args=(line, calls, over), daemon=True)
    listener.start()
    try:
        _serve(made, line, calls)
    except ConnectionError as error:
        raise HostError(f"serve: the driver is gone: {error}") from error
    finally:
        over.set()
        torch.set_num_threads(threads)
        # The driver says a last word also to a host that has ended; a thread that waits for it in
        # gloo when the interpreter ends would abort the process.
        listener.join(_PATIENCE)


def _listen(line: Line, calls: _Calls, over: threading.Event) -> None:
    """Pass calls on: a thread of its own hears that the driver is gone while the host computes."""
    last = None
    while last is None:
        try:
            call = line.next_call()
            calls.put(call)
            last = 0 if call.method == "stop" else None
        except ConnectionError as error:
            calls.put(error)
            last = 1
    if not over.wait(_PATIENCE):
        _log.warning("nobody waits for this host any more, and it does not end: exit code %d", last)
        os._exit(last)


def _serve(made: Callable[[], HostSpec], line: Line, calls: _Calls) -> None:
    try:
        spec = made()
        torch.set_num_threads(spec.threads)
        host = spec.build()
    except BaseException as error:
        line.answer("gone", reason(summary(error)), most=_next(calls).most)
        raise
    while (call := _next(calls)).method != "stop":
        try:
            answer = _do(host, call)
        except Exception as error:
            _log.debug("the host failed", exc_info=True)
            line.answer("failed", reason(summary(error)), most=call.most)
            continue
        except BaseException as error:
            line.answer("gone", reason(summary(error)), most=call.most)
            raise
        line.answer("done", answer, most=call.most)
        # Or the last round's rows would live until the next one's are computed.
        del answer, call


def _next(calls: _Calls) -> Call:
    call = calls.get()
    if isinstance(call, ConnectionError):
        raise call
    return call


def _do(host: Host, call: Call) -> Tensor:
    match call.method:
        case "ready":
            return numbers(host.ids)
        case "compute":
            message, told = call.parts
            sent, both = unpack_parameters(message.numpy().data), whole(told)
            ids, accepted = both[: len(both) // 2], both[len(both) // 2 :]
            known = dict(zip(ids, accepted, strict=True))
            block: object = host.reply(sent.round, sent.row, ids, known)
            if not isinstance(block, bytes):
                raise TypeError(f"a block of bytes is required, found {type(block).__name__}")
            return in_bytes(block)
        case "state":
            return in_bytes(pack_states(host.state()))
        case _:
            host.load_state(unpack_states(b"".join(bytes(part.numpy()) for part in call.parts)))
            return in_bytes(b"")
