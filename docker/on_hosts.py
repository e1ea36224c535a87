"""The services of compose.yaml without an engine: ``on_hosts.py ROOT``, as root on Linux.

``ROOT`` is the mounted root of the image (``buildah mount``). Each service runs its own command in
it, by chroot and as the image's user, on a host of its own: a network namespace (tests/hosts). Ends
with 0 when the job has ended well, and one with another token was refused.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "hosts"))

from namespaces import Network, remains, wait_for  # noqa: E402 - where it is found

NODES = ("one", "two")
JOB = ("--rounds", "20", "--aggregator", "GeometricMedian", "--estimator", "none")
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


def main(root: str) -> None:
    """Start head and nodes, submit the job, and submit one as a stranger."""
    services = yaml.safe_load((HERE / "compose.yaml").read_text())["services"]
    with tempfile.TemporaryDirectory(prefix="hosts-", dir="/var/tmp") as folder:
        tokens = {name: Path(folder, name) for name in ("token", "other")}
        for file in tokens.values():
            file.write_text(secrets.token_hex(32))
            file.chmod(0o444)

        def start(
            host: str, command: list[str], token: str = "token"
        ) -> tuple[subprocess.Popen[bytes], Path]:
            settings = {**SETTINGS, **services["head"]["environment"]}
            script = INSIDE.format(
                settings=shlex.join(f"{name}={value}" for name, value in settings.items()),
                command=shlex.join(command),
            )
            log = Path(folder, f"{host}-{token}.log")
            words = ["sh", "-c", script, "sh", root, str(tokens[token])]
            return network[host].start(words, log=log), log

        def healthy(host: str) -> bool:
            return start(host, services["head"]["healthcheck"]["test"][1:])[0].wait() == 0

        with Network(("head", *NODES, "client"), Path(folder)) as network:
            _, head = start("head", services["head"]["command"])
            wait_for("the head", lambda: "Ray runtime started" in head.read_text())
            logs = [start(name, services["node"]["command"])[1] for name in NODES]
            for log in logs:
                wait_for("a node", lambda log=log: "Ray runtime started" in log.read_text())
            for host in ("head", *NODES):
                wait_for(f"{host} to be healthy", lambda host=host: healthy(host))
                print(f"{host}: healthy", flush=True)
            submit = [*services["job"]["entrypoint"], *JOB]
            job, log = start("client", submit)
            code = job.wait(timeout=300)
            print(log.read_text())
            stranger, log = start("client", submit, token="other")
            refused = stranger.wait(timeout=300)
            print(log.read_text().splitlines()[-1])
        if code != 0 or refused == 0 or remains(network):
            sys.exit(f"on_hosts: job {code}, stranger {refused}, left {remains(network)}")


if __name__ == "__main__":
    main(sys.argv[1])
