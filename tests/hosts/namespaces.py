"""Hosts on one machine: network namespaces at a switch, each with an address and a cable.

A host has a network and a name of its own, knows the others by their names, and has a folder
``/tmp/ray`` of its own, where Ray looks for what runs beside it; all other files, processes, memory
and processor it shares with the others (so Ray, which looks among the processes, starts no head a
second time while others run). Its interface ``eth0`` is one end of a cable, at whose other
end is a bridge in a namespace that is the switch, so that nothing at all appears in this machine's
own network. A cut is at the switch: a host sees that its cable is dead, and what was under way is
neither refused nor reset, but lost.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
_PREFIX = "ragg"
_BRIDGE, _GATEWAY = "switch", "10.77.0.254"
_OWN = re.compile(rf"^{_PREFIX}-(\d+-\d+)-\d+-\w+$")
_numbers = itertools.count()
_MARK = "RAGG_NETWORK"
_SCRATCH = Path("/tmp/ray")
_PATIENCE = 30.0


class NotPermittedError(RuntimeError):
    """Why there can be no namespaces here."""


def run(*command: str, check: bool = True) -> str:
    """What a short command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


def check_permitted() -> None:
    """Raise :class:`NotPermittedError` unless namespaces, cables and switches can be made here."""
    if shutil.which("ip") is None:
        raise NotPermittedError("there is no `ip` here: install iproute2")
    if os.geteuid() != 0:
        raise NotPermittedError("network namespaces need root here, found another user")
    name = f"{_new()}-try"
    try:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "add", "try0", "type", "veth", "peer", "name", "try1")
        run("ip", "-n", name, "link", "add", "try2", "type", "bridge")
    except RuntimeError as error:
        raise NotPermittedError(f"this kernel, or this container, refuses: {error}") from error
    finally:
        run("ip", "netns", "delete", name, check=False)


def _life(pid: int) -> str:
    """A process, with the time it began, for its number may be another's later."""
    try:
        return f"{pid}-{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{pid}-none"


def _new() -> str:
    """The beginning of the names of a network's namespaces: whose they are, and which network."""
    return f"{_PREFIX}-{_life(os.getpid())}-{next(_numbers)}"


def namespaces() -> dict[str, str]:
    """All namespaces that tests have made and not removed, and the processes that made them."""
    names = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line]
    return {name: found[1] for name in names if (found := _OWN.match(name))}


def sweep() -> list[str]:
    """Remove what tests have left that were killed, and say which namespaces that was."""
    made = namespaces().items()
    left = [name for name, life in made if life != _life(int(life.partition("-")[0]))]
    for name in left:
        _remove(name)
    return left


def _remove(name: str) -> None:
    """A namespace, its processes and its ends of cables."""
    end = time.monotonic() + _PATIENCE
    while pids := [int(pid) for pid in run("ip", "netns", "pids", name, check=False).split()]:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if time.monotonic() > end:
            raise RuntimeError(f"{name}: processes {pids} do not end")
        time.sleep(0.05)
    run("ip", "netns", "delete", name)


def wait_for(what: str, found: Callable[[], Any], *, seconds: float = 120.0) -> Any:
    """What ``found`` gives, once that is true; where it never is, an error that says for what."""
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
    return value


def forever(*command: str) -> list[str]:
    """A command that is started again until it ends well."""
    return ["sh", "-c", 'until "$@"; do sleep 1; done', "sh", *command]


class Host:
    """One host; made by :class:`Network`."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self.namespace = f"{network.name}-{name}"
        # The end of its cable at the switch, and the other one before it is in its namespace.
        self.port, self.far = f"port-{name}", f"far-{name}"
        self.scratch = network.folder / name
        self.scratch.mkdir()

    def start(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process on this host, which writes to ``log``; it ends with the network."""
        # Mounts of its own process, which `ip netns exec` has put apart from all others.
        script = (
            f"hostname {self.name} && mount --bind {shlex.quote(str(self.scratch))} {_SCRATCH} && "
            f'mount --bind {shlex.quote(str(self.network.names))} /etc/hosts && exec "$@"'
        )
        inside = ["unshare", "--uts", "sh", "-c", script, "sh", *command]
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *inside],
                env={**os.environ, **self.network.env, **(env or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def call(self, *command: str, seconds: float = 120.0) -> str:
        """What a command prints that ends well on this host."""
        log = self.scratch / f"call-{time.monotonic_ns()}.log"
        process = self.start(command, log=log)
        code = process.wait(timeout=seconds)
        said = log.read_text()
        assert code == 0, f"{self.name}: {shlex.join(command)}: {said}"
        return said

    @contextmanager
    def away(self) -> Iterator[None]:
        """With its cable out of the switch, which is put back in the end, whatever happens."""
        run("ip", "-n", self.network.switch, "link", "set", self.port, "down")
        try:
            yield
        finally:
            run("ip", "-n", self.network.switch, "link", "set", self.port, "up")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Network:
    """Hosts at one switch; a context manager that leaves nothing behind.

    Args:
        names: of the hosts.
        folder: for their files; short, because Ray's sockets are in it.
        env: for all their processes.

    Raises:
        NotPermittedError: there can be no namespaces here; later, no cables that lose packets.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        check_permitted()
        sweep()
        with suppress(FileExistsError):
            _SCRATCH.mkdir()
            _SCRATCH.chmod(0o1777)  # other users' Ray has it too
        # Whatever runs on the hosts has the mark in its environment, wherever it has gone.
        self.mark = f"{_MARK}={secrets.token_hex(8)}"
        self.folder, self.env = folder, {**(env or {}), _MARK: self.mark.partition("=")[2]}
        self.name = _new()
        self.switch = f"{self.name}-switch"
        self.hosts = {
            name: Host(self, name, f"10.77.0.{number}") for number, name in enumerate(names, 1)
        }
        self._wires: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self.impairment = "none"

    @property
    def names(self) -> Path:
        """A file with the names of the hosts, in the place of /etc/hosts."""
        return self.folder / "names"

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def _make(self) -> None:
        own = "".join(f"{host.address} {host.name}\n" for host in self.hosts.values())
        self.names.write_text(f"127.0.0.1 localhost\n{own}")
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", _BRIDGE, "type", "bridge")
        run("ip", "-n", self.switch, "link", "set", _BRIDGE, "up")
        for host in self.hosts.values():
            run("ip", "netns", "add", host.namespace)
            run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            self._plug_in(host)

    def _plug_in(self, host: Host) -> None:
        far = ("peer", "name", "eth0", "netns", host.namespace)
        run("ip", "-n", self.switch, "link", "add", host.port, "type", "veth", *far)
        self._configure(host)

    def _configure(self, host: Host) -> None:
        run("ip", "-n", self.switch, "link", "set", host.port, "master", _BRIDGE)
        run("ip", "-n", self.switch, "link", "set", host.port, "up")
        run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        # Nobody is there; but who asks by which address the world is reached is told this one.
        run("ip", "-n", host.namespace, "route", "add", "default", "via", _GATEWAY)

    def impair(self, *, delay_ms: float, loss: float) -> None:
        """Let every packet be late by ``delay_ms``, and a share ``loss`` of them not come at all.

        By ``tc netem`` on both ends of every cable; where the kernel has none, by cables that are a
        process (``wire.py``), which takes the packets of one end and gives them to the other, later
        or not at all. Both do the same to real packets of real connections.
        """
        netem = ("netem", "delay", f"{delay_ms}ms", "loss", f"{100 * loss}%")
        for host in self.hosts.values():
            for namespace, device in ((self.switch, host.port), (host.namespace, "eth0")):
                try:
                    run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *netem)
                except (RuntimeError, FileNotFoundError):
                    self._wire(host, delay_ms, loss)
                    break
        self.impairment = "wire" if self._wires else "netem"

    def _wire(self, host: Host, delay_ms: float, loss: float) -> None:
        run("ip", "-n", self.switch, "link", "delete", host.port)
        command = [sys.executable, str(HERE / "wire.py"), host.port, host.far]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.switch, *command, str(delay_ms), str(loss)],
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        self._wires.append((process, process.stdout))
        if process.stdout.readline() != b"ready\n":
            raise NotPermittedError(f"nor cables of ours: wire.py ended with {process.wait()}")
        own = ("netns", host.namespace, "name", "eth0")
        run("ip", "-n", self.switch, "link", "set", host.far, *own)
        self._configure(host)

    def close(self) -> None:
        """End all processes of the hosts, and remove hosts, cables and switch."""
        with ExitStack() as stack:  # whichever of it fails, the rest is done
            stack.callback(self._wires.clear)
            for process, output in self._wires:
                stack.callback(output.close)
                stack.callback(process.wait)
                stack.callback(process.kill)
            for name in (self.switch, *(host.namespace for host in self.hosts.values())):
                if name in namespaces():
                    stack.callback(_remove, name)


def remains(network: Network) -> list[str]:
    """What is left of a network that was closed: namespaces, processes, interfaces, mounts."""
    found = [f"namespace {name}" for name in namespaces() if name.startswith(f"{network.name}-")]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended in between
            told = (process / "environ").read_bytes()
            if network.mark.encode() in told and not _is_zombie(int(process.name)):
                found.append(f"process {process.name}")
    here = {path.name for path in Path("/sys/class/net").iterdir()}
    ends = {end for host in network.hosts.values() for end in (host.port, host.far)}
    found += [f"interface {name}" for name in sorted(here & ends)]
    mounts = Path("/proc/mounts").read_text().splitlines()
    return found + [f"mount {line}" for line in mounts if str(network.folder) in line]


@contextmanager
def hosts(
    names: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Network]:
    """A network for a test, of which nothing may be left; skips where there can be none."""
    import pytest  # which docker/on_hosts.py has no need of

    try:
        with Network(names, folder, env=env) as network:
            yield network
    except NotPermittedError as error:
        pytest.skip(f"no hosts can be made here: {error}")
    assert remains(network) == []
