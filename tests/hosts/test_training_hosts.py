"""A DDP job under torchrun over two hosts, one of which is cut off and returns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from made_up_text import write_ptb
from namespaces import forever, hosts, wait_for

from experiments.cluster import checkpoint
from experiments.data import DATA_VARIABLE

# An agent for each rank, as a pod is.
RANKS = {"first": "one", "second": "two", "third": "two"}
STEPS, EVERY = 240, 60
# Seconds: of a step, to ask who is missing, and what a machine may need that is busy otherwise.
TIMEOUT, GRACE, SLOW = 6, 2, 30
SETTING = (
    *("--words", "200", "--columns", "8", "--length", "10", "--lr", "0.1", "--steps", str(STEPS)),
    *("--validation-words", "640", "--evaluate-every", str(EVERY), "--checkpoint-every", "20"),
    *("--timeout", str(TIMEOUT)),
)
MISSED = f"did not end within {TIMEOUT} s: "


def missed(log: Path) -> list[str]:
    """The errors that say that ranks did not answer."""
    return [line for line in log.read_text().splitlines() if MISSED in line]


def rounds(ledger: Path) -> list[int]:
    """The rounds of the lines that are whole: another may be under way."""
    whole = ledger.read_text().rpartition("\n")[0]
    return [json.loads(line)["round"] for line in whole.splitlines()]


def test_ranks_that_are_cut_off_are_named_and_the_job_goes_on_when_they_return(
    tmp_path: Path,
) -> None:
    write_ptb(tmp_path)
    out, log = tmp_path / "out", {name: tmp_path / f"{name}.log" for name in RANKS}
    env = {DATA_VARIABLE: str(tmp_path), "OMP_NUM_THREADS": "1"}
    with hosts(["one", "two"], tmp_path, env) as network:
        # Started again whenever they end badly, as by the Job of docker/torchrun-job.yaml.
        agents = [
            network[host].start(
                forever(
                    *(sys.executable, "-m", "torch.distributed.run", "--max-restarts", "0"),
                    *("--nnodes", str(len(RANKS)), "--nproc-per-node", "1"),
                    *("--node-rank", str(rank), "--master-addr", "one", "--master-port", "29400"),
                    *("-m", "experiments.cluster.ddp", *SETTING, "--out", str(out)),
                ),
                log=log[name],
            )
            for rank, (name, host) in enumerate(RANKS.items())
        ]
        wait_for("a checkpoint", (out / checkpoint.NAME).exists)
        with network["two"].away():
            before = rounds(out / "ledger.jsonl")
            # Which ranks are gone is seen from where the store is; the others are told that it is
            # not.
            for name in RANKS:
                wait_for(
                    f"the {name} rank's error",
                    lambda name=name: missed(log[name]),
                    seconds=TIMEOUT + GRACE + SLOW,
                )
            said = {name: missed(log[name]) for name in RANKS}
        assert all(f"rank {rank} (two, pid" in said["first"][-1] for rank in (1, 2))
        for name in ("second", "third"):
            assert "the process that holds the group's store does not answer" in said[name][-1]

        for agent in agents:
            assert agent.wait(timeout=200) == 0, "\n".join(f.read_text() for f in log.values())
    assert log["first"].read_text().count("step 0: validation loss") == 1, "it begins once"
    losses = json.loads((out / "losses.json").read_text())
    assert [step for step, _ in losses] == [*range(0, STEPS + 1, EVERY)]
    assert losses[-1][1] < losses[0][1] - 0.5
    ledger = rounds(out / "ledger.jsonl")
    assert ledger[: len(before)] == before
    assert ledger == [*range(STEPS)]
