"""A federated job over hosts: one is cut off and returns, packets are late and lost, tokens."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from namespaces import hosts, wait_for
from ray_nodes import HEAD, RAY, RayNodes

WORKERS, BYZANTINE, ROUNDS = 20, 4, 300
EVERYONE = [*range(WORKERS)]
# Of Ray to be let in, which otherwise asks for half a minute.
ONE_TRY = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
# Sign flips in rounds that take as long as those of a larger model, until a file says otherwise.
SLOW = """
import time
from pathlib import Path
from attacks import Attack, Knowledge, SignFlip

class Slow(Attack):
    knows = Knowledge.OWN

    def __call__(self, view, state, generator):
        if not Path({flag!r}).exists():
            time.sleep(1.0)
        return SignFlip(scale=5.0)(view, state, generator)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head and two nodes, which ask for a token."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts([HEAD, "one", "two"], folder, token(secrets.token_hex(32))) as network:
        yield RayNodes.started(network)


def token(text: str) -> dict[str, str]:
    """The environment of who has this token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": text}


class Job:
    """``robust-agg run`` on the head, with a host of ten workers on each of the two nodes.

    Some of either ten are Byzantine, so that every round is attacked, whoever is away.
    """

    def __init__(
        self,
        nodes: RayNodes,
        folder: Path,
        attack: str = "SignFlip(scale=5.0)",
        *,
        env: Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        self.folder, self.log = folder, folder / "log"
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = [
            *(sys.executable, "-m", "experiments", "run", "--transport", "ray", "--hosts", "2"),
            *("--workers", str(WORKERS), "--byzantine", str(BYZANTINE), "--attack", attack),
            *("--identities", "run", "--aggregator", "GeometricMedian", "--estimator", "none"),
            *("--out", str(folder), *words),
        ]
        env = {"RAY_ADDRESS": nodes.address, **ONE_TRY, **(env or {})}
        self.process = nodes.network[HEAD].start(command, log=self.log, env=env)

    def ledger(self) -> list[dict[str, Any]]:
        """What is written so far of the training under attack."""
        found = [*self.folder.glob("*/*/ledger.jsonl")]
        lines = [file.read_text().splitlines() for file in found if "attack" in file.parent.name]
        return [json.loads(line) for each in lines for line in each if line.endswith("}")]

    def until(self, what: str, found: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait for something in the ledger."""

        def seen() -> bool:
            assert self.process.poll() is None, f"before {what}: {self.log.read_text()}"
            return bool(ledger := self.ledger()) and found(ledger)

        wait_for(what, seen)

    def end(self) -> str:
        """What it has printed, once it has ended well."""
        assert self.process.wait(timeout=200) == 0, self.log.read_text()
        return self.log.read_text()


def died(line: Mapping[str, Any]) -> bool:
    """Whether a round says of a host that it is dead."""
    return any("died" in rejection["reason"] for rejection in line["rejected"])


def test_a_host_that_is_cut_off_is_lost_and_comes_back(nodes: RayNodes, tmp_path: Path) -> None:
    flag = tmp_path / "fast from here"
    (tmp_path / "mine.py").write_text(SLOW.format(flag=str(flag)))
    attack = f"{tmp_path / 'mine.py'}:Slow()"
    two = nodes.network["two"]
    healthy = [sys.executable, "docker/node_health.py", "--required"]
    two.call(*healthy)
    job = Job(nodes, tmp_path, attack, rounds=ROUNDS, deadline=20.0)
    job.until("rounds", lambda ledger: len(ledger) >= 3)

    with two.away():
        cut = len(job.ledger())
        job.until("the loss of a host", lambda ledger: any(map(died, ledger[cut:])))
        lost = next(line for line in job.ledger()[cut:] if died(line))
        sick = two.start(healthy, log=tmp_path / "health")
        assert sick.wait(timeout=100) == 1
        assert "does not answer" in (tmp_path / "health").read_text()
    # Ray lets nobody in again whom it has given up: the node hears of it, ends, and begins anew.
    job.until("its return", lambda ledger: len(ledger[-1]["senders"]) == WORKERS)
    flag.touch()
    assert "figure: " in job.end()

    ledger = job.ledger()
    assert [line["round"] for line in ledger] == [*range(ROUNDS)]
    assert not any(line["skipped"] for line in ledger)
    assert all(line["senders"] == EVERYONE for line in (*ledger[:cut], *ledger[-3:]))
    # Its own workers and no others, late at first perhaps, and then lost.
    here = {*EVERYONE} - {rejection["sender"] for rejection in lost["rejected"]}
    assert here in ({*EVERYONE[:10]}, {*EVERYONE[10:]})
    away = [line for line in ledger if line["senders"] != EVERYONE]
    assert all({*line["senders"]} == here for line in away)
    whys = {
        rejection["reason"].partition(":")[0] for line in away for rejection in line["rejected"]
    }
    assert whys - {"late"} == {"lost"}


def test_who_has_not_the_token_is_refused(nodes: RayNodes, tmp_path: Path) -> None:
    strangers = {"with another": token("0" * 64), "with none": {"RAY_AUTH_MODE": "disabled"}}
    jobs = []
    for name, env in strangers.items():
        (folder := tmp_path / name).mkdir()
        jobs.append(Job(nodes, folder, env=env, rounds=1))
    node = nodes.network["two"].start(
        [RAY, "start", "--address", nodes.address, "--block"],
        log=tmp_path / "node",
        env=strangers["with another"] | ONE_TRY,
    )
    for job in jobs:
        assert job.process.wait(timeout=100) == 2
        said = job.log.read_text()
        assert "Authentication token is missing or incorrect" in said
        assert said.splitlines()[-1].startswith(
            f"robust-agg: error: cannot join the Ray cluster {nodes.address}: "
        )
    assert node.wait(timeout=100) == 1
    assert "Authentication token is missing or incorrect" in (tmp_path / "node").read_text()


def test_a_job_ends_where_packets_are_late_and_lost_and_nobody_asks_for_tokens(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with hosts([HEAD, "one", "two"], tmp_path, {"RAY_AUTH_MODE": "disabled"}) as network:
        network.impair(delay_ms=5, loss=0.01)
        record_property("impaired by", network.impairment)
        job = Job(RayNodes.started(network), tmp_path, rounds=5, deadline=20.0)
        assert "figure: " in job.end()
        ledger = job.ledger()
        assert [line["round"] for line in ledger] == [*range(5)]
        assert not any(line["skipped"] for line in ledger)
        assert all(line["senders"] == EVERYONE for line in ledger)
