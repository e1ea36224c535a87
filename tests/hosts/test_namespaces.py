"""What the tests over hosts stand on: hosts that reach each other, cuts, losses, and no traces."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from namespaces import HERE, Network, hosts, namespaces, sweep, wait_for

# Datagrams to an echo, one at a time; how many came back, and how fast at best.
ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7))
while True:
    server.sendto(*server.recvfrom(100))
"""
ASK = """
import socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 7))
client.settimeout(float(sys.argv[3]))
times = []
for number in range(int(sys.argv[2])):
    begun = time.monotonic()
    try:
        client.send(str(number).encode())
        while client.recv(100) != str(number).encode():
            pass
        times.append(time.monotonic() - begun)
    except OSError:
        pass
print(len(times), min(times, default=-1))
"""
KILLED = """
import sys, time
from pathlib import Path
from namespaces import Network
with Network(["one", "two"], Path(sys.argv[1])) as network:
    network["one"].start(["sleep", "1000"], log=Path(sys.argv[1], "log"))
    print(network.name, flush=True)
    time.sleep(1000)
"""


def echoes(network: Network, count: int, patience: float) -> tuple[int, float]:
    """How many datagrams of one host come back from the other, and the shortest time of one."""
    said = network["one"].call(sys.executable, "-c", ASK, "two", str(count), str(patience))
    back, best = said.split()
    return int(back), float(best)


def test_packets_arrive_unless_they_are_cut_off_late_or_lost(tmp_path: Path) -> None:
    with hosts(["one", "two"], tmp_path) as network:
        log = tmp_path / "echo.log"
        network["two"].start([sys.executable, "-c", ECHO], log=log)
        wait_for("an echo", lambda: echoes(network, 1, 1.0)[0])
        with network["two"].away():
            assert echoes(network, 3, 0.2)[0] == 0
        wait_for("an echo", lambda: echoes(network, 1, 1.0)[0])

        network.impair(delay_ms=10, loss=0.1)
        assert network.impairment in ("netem", "wire")
        wait_for("an echo", lambda: echoes(network, 1, 1.0)[0])
        back, best = echoes(network, 30, 0.2)
        assert 0 < back < 30
        assert best >= 0.040, "two cables there and two back, of 10 ms each"
        with network["two"].away():
            assert echoes(network, 3, 0.2)[0] == 0
    assert log.read_text() == ""


def test_nothing_is_left_of_a_test_that_was_killed(tmp_path: Path) -> None:
    with hosts(["any"], tmp_path):
        pass  # skips where there can be none
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=HERE, stdout=subprocess.PIPE, text=True,
    ) as killed:  # fmt: skip
        assert killed.stdout is not None
        name = killed.stdout.readline().strip()
        killed.send_signal(signal.SIGKILL)
    left = {each for each in namespaces() if each.startswith(name)}
    assert left == {f"{name}-{each}" for each in ("one", "two", "switch")}
    assert left <= {*sweep()}
    assert not left & namespaces().keys()
