"""A Ray cluster over hosts, as an operator starts one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from namespaces import Network, forever, wait_for

RAY = str(Path(sys.executable).parent / "ray")
HEAD, PORT = "head", 6379
_STARTED = "Ray runtime started"
# Ray's own are meant for networks that lose more: half a minute to notice that a node is gone.
_NOTICES = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


class RayNodes:
    """A node on each host of a network; that of the host ``head`` only leads, and has no CPU."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.address = f"{network[HEAD].address}:{PORT}"

    @classmethod
    def started(cls, network: Network) -> RayNodes:
        """All nodes of a network, once they are there."""
        nodes = cls(network)
        nodes._begin(HEAD)
        nodes._wait(HEAD)
        others = [name for name in network.hosts if name != HEAD]
        for name in others:
            nodes._begin(name)
        for name in others:
            nodes._wait(name)
        return nodes

    def _begin(self, name: str) -> None:
        """``ray start`` on a host, and again whenever it ends: what systemd or Kubernetes do."""
        if name == HEAD:
            role = ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "0"]
            role += ["--system-config", json.dumps(_NOTICES)]
        else:
            role = ["--address", self.address, "--num-cpus", "1"]
        common = ["--block", "--disable-usage-stats", "--object-store-memory", "100000000"]
        command = forever(RAY, "start", *role, *common)
        self.network[name].start(command, log=self._log(name))

    def _wait(self, name: str) -> None:
        wait_for(f"Ray on {name}", lambda: _STARTED in self._log(name).read_text())

    def _log(self, name: str) -> Path:
        return self.network.folder / f"ray-start-{name}.log"
