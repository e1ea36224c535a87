"""The services of compose.yaml without an engine: ``on_hosts.py ROOT``, as root on Linux.

``ROOT`` is the mounted root of the image (``buildah mount``). Each service runs its own command in
it, by chroot and as the image's user, on a host of its own: a network namespace (tests/hosts). Its
health check runs there too, and the probes of rayjob.yaml come from another host, as those of a
kubelet do. Ends with 0 when all nodes are healthy, the job has ended well, and one with another
token was refused.
"""

from __future__ import annotations

import itertools
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "hosts"))

from namespaces import Network, remains, wait_for  # noqa: E402 - from the folder added above

NODES = ("one", "two")
HEAD = "http://head:8265"
RUN = ("robust-agg", "run", "--transport", "ray", "--hosts", "2", "--out", "/work/runs")
JOB = ("--aggregator", "GeometricMedian", "--estimator", "none")
MINE = """
from attacks import SignFlip

class Mine(SignFlip):
    pass
"""
SETTINGS = {
    "PATH": "/opt/robust-agg/bin:/usr/bin:/bin",
    "HOME": "/home/agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",
    # Of a name server that is not reached gRPC's own resolver would wait for an answer.
    "GRPC_DNS_RESOLVER": "native",
}
INSIDE = """
set -e
mkdir -p "$1/run/secrets" "$1/tmp"
touch "$1/run/secrets/ray_token"
mount --bind "$2" "$1/run/secrets/ray_token"
mount --bind /etc/hosts "$1/etc/hosts"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
# The host's own, for all that runs on it: as in one container.
chmod 1777 /tmp/ray
mkdir "$1/tmp/ray"
mount --bind /tmp/ray "$1/tmp/ray"
mount -t tmpfs -o mode=1777,size=640m tmpfs "$1/dev/shm"
cd "$1"
exec chroot --userspec=1000:1000 "$1" env -i {settings} sh -c 'cd /work && exec "$@"' sh {command}
"""

# As a kubelet does: anything but a good answer is an error.
ASK = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)"


def probes(group: dict[str, Any]) -> Iterator[str]:
    """Ports and paths that the pods of a group in rayjob.yaml are asked by."""
    (container,) = group["template"]["spec"]["containers"]
    named = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        yield f"{named.get(asked['port'], asked['port'])}{asked['path']}"


class Services:
    """The containers of compose.yaml, as processes in the image on the hosts of a network."""

    def __init__(self, root: str, folder: Path, network: Network) -> None:
        self.root, self.folder, self.network = root, folder, network
        self.services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
        _, job = yaml.safe_load_all((HERE / "rayjob.yaml").read_text())
        cluster = job["spec"]["rayClusterSpec"]
        self.pods = {"head": cluster["headGroupSpec"], "node": cluster["workerGroupSpecs"][0]}
        self.tokens = {name: folder / name for name in ("token", "other")}
        for file in self.tokens.values():
            file.write_text(secrets.token_hex(32))
            file.chmod(0o444)
        self._logs = itertools.count()

    def start(
        self, host: str, command: list[str], token: str = "token"
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """A process of the image, and what it writes to."""
        settings = {**SETTINGS, **self.services["head"]["environment"]}
        script = INSIDE.format(
            settings=shlex.join(f"{name}={value}" for name, value in settings.items()),
            command=shlex.join(command),
        )
        log = self.folder / f"{next(self._logs)}-{host}.log"
        words = ["sh", "-c", script, "sh", self.root, str(self.tokens[token])]
        return self.network[host].start(words, log=log), log

    def call(self, host: str, command: list[str], token: str = "token") -> tuple[int, str]:
        """The exit code of one that ends, and what it has written."""
        process, log = self.start(host, command, token)
        code = process.wait(timeout=300)
        return code, log.read_text()

    def up(self) -> None:
        """Head and nodes, all of them healthy, also as a kubelet sees it."""
        roles = {"head": "head"} | dict.fromkeys(NODES, "node")
        for host, role in roles.items():
            process, log = self.start(host, self.services[role]["command"])
            wait_for(
                f"Ray on {host}",
                lambda process=process, log=log: (
                    process.poll() is not None or "Ray runtime started" in log.read_text()
                ),
            )
            if process.poll() is not None:
                sys.exit(f"on_hosts: Ray on {host} has ended: {log.read_text()}")
        for host, role in roles.items():
            check = self.services[role]["healthcheck"]["test"][1:]
            wait_for(
                f"{host} to be healthy",
                lambda host=host, check=check: self.call(host, check)[0] == 0,
            )
            for asked in probes(self.pods[role]):
                self.network["client"].call(sys.executable, "-c", ASK, f"http://{host}:{asked}")
            print(f"{host}: healthy", flush=True)

    def ray_job(self, verb: str, *words: str) -> str:
        """What ``ray job`` says that ends well, run where a user's own attack is."""
        command = ["ray", "job", verb, "--address", HEAD, *words]
        here = 'cd /tmp && echo "$1" >mine.py && shift && exec "$@"'
        code, said = self.call("client", ["sh", "-c", here, "sh", MINE, *command])
        if code != 0:
            sys.exit(f"on_hosts: {shlex.join(command)}: {code}: {said}")
        return said


def own_attack(services: Services) -> None:
    """A module of the user's travels with the job."""
    mine = ["--rounds", "20", "--attack", "mine.py:Mine"]
    said = services.ray_job("submit", "--working-dir", ".", "--", *RUN, *JOB, *mine)
    if "4 of 20 workers: mine.py:Mine" not in said:
        sys.exit(f"on_hosts: not attacked by Mine: {said}")
    print("an attack of one's own: Mine", flush=True)


def stop_and_resume(services: Services) -> None:
    """A job that nobody waits for is stopped midway, and another goes on with it."""
    long = [*JOB, "--rounds", "1000", "--checkpoint-every", "10"]
    services.ray_job("submit", "--no-wait", "--submission-id", "nightly", "--", *RUN, *long)
    wait_for("a round", lambda: "round 10/1000" in services.ray_job("logs", "nightly"))
    services.ray_job("stop", "nightly")
    folder = re.search(r"run folder: (\S+)", services.ray_job("logs", "nightly"))
    assert folder is not None
    again = services.ray_job("submit", "--", "robust-agg", "resume", folder[1])
    first = re.search(r"round (\d+)/1000", again)
    assert first is not None
    if int(first[1]) <= 10 or "under attack: round 1000/1000" not in again:
        sys.exit(f"on_hosts: not resumed: {again}")
    print(f"nightly: stopped, resumed before round {first[1]}, ended", flush=True)


def main(root: str) -> None:
    """Start head and nodes, submit the job, and submit one as a stranger."""
    with tempfile.TemporaryDirectory(prefix="hosts-", dir="/var/tmp") as folder:
        with Network(("head", *NODES, "client"), Path(folder)) as network:
            services = Services(root, Path(folder), network)
            services.up()
            submit = [*services.services["job"]["entrypoint"], *JOB, "--rounds", "20"]
            code, said = services.call("client", submit)
            print(said)
            own_attack(services)
            stop_and_resume(services)
            refused, said = services.call("client", submit, token="other")
            print(said)
        if code != 0 or refused == 0 or "authentication token is invalid" not in said:
            sys.exit(f"on_hosts: job {code}, stranger {refused}")
        if remains(network):
            sys.exit(f"on_hosts: left behind: {remains(network)}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "opt/robust-agg").is_dir():
        sys.exit("usage: on_hosts.py ROOT, the mounted root of the image, as check.sh calls it")
    main(sys.argv[1])
