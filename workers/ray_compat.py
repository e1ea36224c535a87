"""The parts of Ray that differ between versions or places: errors, what is pickled, object sizes.

Everything here is tried by a smoke test against the installed Ray; ``workers.ray_hosts`` uses Ray's
stable API (remote actors, put, get, wait, kill) only.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from workers.transport import HostError

INSTALL = "pip install 'robust-agg[ray]'"


def require() -> ModuleType:
    """The ray package, imported now.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"the ray transport needs Ray: {INSTALL}") from error
    return ray


@contextmanager
def hushed() -> Iterator[None]:
    """Keep Ray from printing, for whoever tells of processes that die in words of their own.

    Ray prints what its node says of a dead process whatever its logging was told.
    """
    import ray._private.worker as worker

    printing = getattr(worker, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


@contextmanager
def one_try() -> Iterator[None]:
    """Have Ray try once to join a cluster, which takes it up to a minute, and not twenty times."""
    import ray._private.ray_constants as constants

    tries = getattr(constants, "NUM_REDIS_GET_RETRIES", None)
    if tries is None:
        yield
        return
    constants.NUM_REDIS_GET_RETRIES = 1
    try:
        yield
    finally:
        constants.NUM_REDIS_GET_RETRIES = tries


@contextmanager
def callers_sigterm() -> Iterator[None]:
    """Keep a caller's handler, who wants to end in order; Ray would put its own in its place.

    Ray's native one too: it writes a trace, and has the process abort three seconds later. Until
    Ray has started it is in force.
    """
    import ray._private.utils as utils

    handler = signal.getsignal(signal.SIGTERM)
    install = getattr(utils, "set_sigterm_handler", None)
    if not callable(handler) or install is None:
        yield
        return
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def node_address() -> str:
    """The address at which the cluster reaches this process' node."""
    found: str = require().util.get_node_ip_address()
    return found


def pickled(value: object, by_value: Iterable[ModuleType]) -> bytes:
    """``value`` pickled as Ray pickles, with the code of the given modules in it."""
    cloudpickle = require().cloudpickle
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [module for module in by_value if module.__name__ not in known]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        block: bytes = cloudpickle.dumps(value)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    return block


def await_start(who: str, ready: Mapping[str, Any], timeout: float) -> list[Any]:
    """What new actors answer to their first calls, which are given by the names of the actors.

    Raises:
        HostError: one is not placed in time, or cannot be built.
    """
    ray = require()
    done = set(ray.wait(list(ready.values()), num_returns=len(ready), timeout=timeout)[0])
    answers = []
    for name, ref in ready.items():
        if ref not in done:
            raise HostError(
                f"{who}: {name} did not start within {timeout:g} s; has the cluster the resources "
                f"for {len(ready)} of them, and do its nodes reach this process? It has "
                f"{ray.cluster_resources()}"
            )
        try:
            answers.append(ray.get(ref))
        except ray.exceptions.RayError as error:
            raise HostError(f"{who}: {name} cannot be built: {last_words(error)}") from error
    return answers


def last_words(error: BaseException) -> str:
    """What an actor said that could not be built: the last line of the story that Ray tells."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]


def add_to_path(folders: Iterable[str]) -> None:
    """Let this process import what another one can, whose ``sys.path`` these are."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def reason(error: BaseException) -> tuple[str, bool]:
    """What went wrong with a call, in one line, and whether its actor is gone for good."""
    known = require().exceptions
    # Of a dead actor Ray says why, and not always by an error that is one of actors.
    deaths = (
        *(known.RayActorError, known.OutOfMemoryError),
        *(known.RuntimeEnvSetupError, known.ActorUnschedulableError),
    )
    gone = isinstance(error, deaths) and not isinstance(error, known.ActorUnavailableError)
    # An error of the actor's own code arrives with Ray's traceback around it.
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, BaseException) else error
    lines = str(shown).strip().splitlines() or [""]
    return f"{type(shown).__name__}: {lines[0]}", gone


def object_bytes(ref: Any) -> int:
    """The size of a finished call's result, known without fetching it; 0 where Ray cannot say."""
    ray = require()
    try:
        from ray.experimental import get_object_locations

        found = get_object_locations([ref], timeout_ms=1000).get(ref, {})
    except (ImportError, AttributeError, RuntimeError, ray.exceptions.RayError):
        # An experimental function, which Ray's client mode lacks.
        return 0
    return found.get("object_size") or 0
