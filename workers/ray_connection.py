"""The one connection of a process to Ray: to a cluster, or to one that is made for it.

What of Ray differs between versions is in ``workers.ray_compat``.
"""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from workers import ray_compat
from workers.transport import HostError

_UNIX_SOCKET_LIMIT = 107
# What Ray appends to its temporary folder for its sockets, and a few digits of process id more.
_SOCKET_SUFFIX = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0")

_PLENTY = 1024
_REACHED = 10.0
# Seconds for a connection to the head.

_lock = threading.Lock()
_users = 0
_ours = False
_folder: str | None = None


def connect(*, cpus: float, address: str | None = None, **options: Any) -> None:
    """Make sure that this process is connected to a Ray cluster, and count one user more.

    Connected already (the caller's own ``ray.init``, or inside an actor): nothing is done.
    Otherwise connect to ``address`` or the environment's ``RAY_ADDRESS``, or start a cluster of
    this machine alone, quiet and without dashboard, with further ``options`` of ``ray.init``. It
    lets at least ``cpus`` be reserved, and rather more than there are: on one machine a reservation
    keeps nobody from computing, and actors that wait for one would wait for ever.
    Tokens are Ray's own affair (``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``),
    except that a cluster of ours gets one where Ray could not save its own.

    Raises:
        HostError: the cluster cannot be reached, or refuses who has not its token.
    """
    global _users, _ours, _folder  # noqa: PLW0603 - a process has one connection to Ray
    ray = ray_compat.require()
    with _lock:
        if not ray.is_initialized():
            address = address or os.environ.get("RAY_ADDRESS") or "local"
            settings: dict[str, Any] = {"address": address}
            _check_reached(address)
            if address == "local":
                _provide_token()
                _folder = temporary_folder()
                settings |= {
                    "num_cpus": max(_PLENTY, math.ceil(cpus)),
                    "include_dashboard": False,
                    "_temp_dir": _folder,
                    **options,
                }
            tries = nullcontext() if address == "local" else ray_compat.one_try()
            try:
                with ray_compat.callers_sigterm(), tries:
                    ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
            except BaseException as error:
                _remove_folder()
                if address != "local" and _is_refusal(error):
                    why = re.split(r"\n|\. |$", str(error).strip(), maxsplit=1)[0]
                    raise HostError(
                        f"cannot join the Ray cluster {address}: {why}; is this the port of its "
                        "head (6379, and not 8265), and are RAY_AUTH_MODE, the token, and the "
                        "versions of Ray and Python its own?"
                    ) from error
                raise
            _ours = True
        _users += 1


def target() -> str:
    """Which cluster :func:`connect` connects to where it is told no address."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        return "a cluster of this machine, for as long as it is needed; RAY_ADDRESS names another"
    return f"the cluster at {address}"


def _check_reached(address: str) -> None:
    """That something listens at a cluster's address, for which Ray itself would try for minutes.

    Raises:
        HostError: nothing does, or it is no address.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise HostError(
            f"cannot join the Ray cluster {address}: its address (RAY_ADDRESS) must be HOST:PORT, "
            f"ray://HOST:PORT, auto or local, found {address}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise HostError(
            f"cannot join the Ray cluster {address}: nothing answers there: {error}"
        ) from error


def _is_refusal(error: BaseException) -> bool:
    """Whether a cluster is not reached, or lets nobody in without its token or of its versions."""
    return isinstance(
        error, ConnectionError | RuntimeError | ray_compat.require().exceptions.RayError
    )


def disconnect() -> None:
    """One user less; the last one shuts down the connection if :func:`connect` has made it."""
    global _users, _ours  # noqa: PLW0603 - a process has one connection to Ray
    with _lock:
        _users -= 1
        if _ours and _users == 0:
            _ours = False
            ray_compat.require().shutdown()
            _remove_folder()


def _remove_folder() -> None:
    global _folder  # noqa: PLW0603 - of the one cluster that is ours
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
        _folder = None


def temporary_folder() -> str | None:
    """None where Ray can write its usual one; else a new folder that it can.

    Raises:
        OSError: there is no folder to write to whose path is short enough for Ray's sockets.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
    if _fits(str(usual)) and _writable(usual):
        return None
    candidates = ("/tmp", tempfile.gettempdir(), "/dev/shm", "/var/tmp", str(Path.cwd()))
    for candidate in candidates:
        if _fits(f"{candidate}/ray-12345678") and _writable(Path(candidate)):
            return tempfile.mkdtemp(prefix="ray-", dir=candidate)
    raise OSError(f"Ray needs a folder to write to, found none among {usual}, {candidates}")


def _provide_token() -> None:
    """A token in the environment, where Ray would want to save one in a home it cannot write to."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        saved = Path.home() / ".ray" / "auth_token"
        has_home = saved.is_file() or _writable(saved.parent)
    except RuntimeError:  # no home at all, as users of containers that exist as a number only
        has_home = False
    if not has_home:
        # For the life of the process: Ray reads a token once and keeps it.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _writable(folder: Path) -> bool:
    """Whether the folder is there, or can be made as Ray would, and takes a file.

    Tried, because permissions say nothing of read-only mounts, and nothing at all to root.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _fits(folder: str) -> bool:
    return len(folder) + _SOCKET_SUFFIX <= _UNIX_SOCKET_LIMIT
