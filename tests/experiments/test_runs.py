"""Runs: end to end, the same every time, interrupted anywhere and on every transport."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_samples import OWN_ATTACK, STATEFUL, TINY, CtrlC, outcome, quiet, tiny

from attacks import byzantine_ids
from experiments import runs
from experiments.config import ConfigError, RunConfig
from experiments.metrics import METRICS, Metrics, read_metrics
from experiments.progress import Progress
from experiments.run_folder import CONFIG, DONE, Run, Training, create, discard, reopen
from experiments.simulation import CHECKPOINT, LEDGER, AttackError
from experiments.stopping import InterruptedRun
from robust_agg import Ledger
from robust_agg.checkpoint import CheckpointError, load_checkpoint
from workers.inline import InlineHosts
from workers.transport import Collection


def done(config: RunConfig, out: Path) -> Path:
    run = create(config, out)
    runs.execute(run, quiet())
    return run.folder


def go_on(folder: Path, progress: Progress | None = None) -> dict[Training, list[Metrics]]:
    return runs.execute(reopen(folder), progress or quiet())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return done(tiny(**STATEFUL), tmp_path_factory.mktemp("runs"))


def test_a_run_writes_configuration_ledgers_and_metrics(finished: Path) -> None:
    trainings = ["vclip-fusion-sequential-" in path.name for path in finished.iterdir()]
    assert sum(trainings) == 2
    for cell in reopen(finished).trainings:
        folder = finished / cell.folder
        assert {path.name for path in folder.iterdir()} == {LEDGER, METRICS, DONE}
        lines = list(Ledger(folder / LEDGER))
        assert [line["round"] for line in lines] == list(range(24))
        assert all(len(line["senders"]) == 6 and line["skipped"] is None for line in lines)
        assert len({tuple(line["senders"]) for line in lines}) > 3
        metrics = read_metrics(folder)
        assert [m.round for m in metrics] == [4, 8, 12, 16, 20, 24]
        assert all(0 <= m.accuracy <= 1 and m.skipped == 0 for m in metrics)
        assert all(m.error is not None and m.error > 0 for m in metrics)


def test_the_defence_learns_and_the_metrics_tell_the_ledger(tmp_path: Path) -> None:
    config = tiny(attack="SignFlip", aggregator=("Mean",), rounds=60, evaluate_every=20)
    folder = create(config, tmp_path).folder
    results = go_on(folder)
    assert {(cell.defence, cell.attacked) for cell in results} == {
        (defence, attacked) for defence in ("Mean", "VClip") for attacked in (False, True)
    }
    assert results[Training("Mean", False)][-1].accuracy > 0.8
    assert results[Training("VClip", True)][-1].accuracy > 0.7
    bad = byzantine_ids(7, 2)
    for metrics in results[Training("VClip", True)]:
        line = list(Ledger(folder / "vclip--attacked" / LEDGER))[metrics.round - 1]
        weights = dict(zip(line["senders"], line["weights"], strict=True))
        share = sum(weights[i] for i in bad) / sum(weights.values())
        assert metrics.byzantine_weight == pytest.approx(share, rel=1e-9)
    for metrics in results[Training("Mean", False)]:
        # Nobody is Byzantine there: the mean is the mean of the honest rows.
        assert metrics.byzantine_weight == 0
        assert metrics.error is not None
        assert metrics.error < 1e-5


def test_the_same_configuration_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    again = done(tiny(**STATEFUL), tmp_path)
    assert outcome(again) == outcome(finished)
    other = done(tiny(**STATEFUL, seed=1), tmp_path)
    assert outcome(other).keys() == outcome(finished).keys()
    for cell in reopen(finished).trainings:
        a, b = (list(Ledger(run / cell.folder / LEDGER)) for run in (finished, other))
        assert all(x["estimate_norm"] != y["estimate_norm"] for x, y in zip(a, b, strict=True))


SCENARIOS: dict[str, dict[str, Any]] = {
    "stateful estimator, random attack, sampling": STATEFUL,
    "bucketing draws too": {
        "aggregator": ("Bucketing(s=2) + GeometricMedian",),
        "estimator": ("none",),
        "f": 1,
        "attack": "InnerProductManipulation(epsilon=10.0)",
    },
    "several local steps": {"local_steps": 3, "lr": 1.0, "local_estimator": "none"},
    "bad data, adaptive local clipping": {
        "attack": "LabelFlip",
        "local_estimator": "VClip",
        "partition": "LabelShards(shards_per_worker=3)",
        "sample": 5,
    },
    "own attack with a memory": {"attack": "OWN", "model": "MLP(hidden=(6,))"},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_interrupted_and_resumed_equals_undisturbed(name: str, tmp_path: Path) -> None:
    changes = dict(SCENARIOS[name])
    if changes.get("attack") == "OWN":
        (tmp_path / "mine.py").write_text(OWN_ATTACK)
        changes["attack"] = f"{tmp_path / 'mine.py'}:Drift(step=0.25)"
    config = tiny(**{**TINY, "rounds": 24, **changes})
    undisturbed = done(config, tmp_path / "undisturbed")

    folder = create(config, tmp_path / "interrupted").folder
    handler = signal.getsignal(signal.SIGINT)
    # After the first round, the last one of the first training, and in the second training.
    for rounds in (1, 23, 9):
        with pytest.raises(InterruptedRun):
            go_on(folder, CtrlC(rounds))
        assert signal.getsignal(signal.SIGINT) is handler
        assert list(folder.rglob(CHECKPOINT))
    go_on(folder)
    assert outcome(folder) == outcome(undisturbed)


def test_crashed_and_resumed_equals_undisturbed(finished: Path, tmp_path: Path) -> None:
    class Crash(Progress):
        def __init__(self, rounds: int) -> None:
            super().__init__(Console(quiet=True))
            self.left = rounds

        def advance(self, done: int, metrics: Metrics | None) -> None:
            self.left -= 1
            if self.left == 0:
                raise MemoryError

    folder = create(tiny(**STATEFUL), tmp_path).folder
    # Before the first checkpoint (twice), after it, and in the second training (twice).
    for rounds in (5, 10, 13, 27, 11):
        with pytest.raises(MemoryError):
            go_on(folder, Crash(rounds))
        # What a process leaves that dies while it writes a line.
        for path in (*folder.rglob(LEDGER), *folder.rglob(METRICS)):
            if not (path.parent / DONE).exists():
                path.write_text(path.read_text() + '{"round": 1')
    go_on(folder)
    assert outcome(folder) == outcome(finished)


def test_a_finished_run_is_only_read(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    results = go_on(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert [len(metrics) for metrics in results.values()] == [6, 6]


def test_a_run_cannot_be_changed_after_its_start(tmp_path: Path) -> None:
    folder = create(tiny(), tmp_path).folder
    with pytest.raises(InterruptedRun):
        go_on(folder, CtrlC(2))
    before = outcome(folder)
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, "lr": 0.5}))
    with pytest.raises(ConfigError, match=r"config\.json: .* cannot be changed, found digest"):
        go_on(folder)
    (folder / CONFIG).write_text(json.dumps(content))
    assert outcome(folder) == before


def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path: Path) -> None:
    folder = create(tiny(), tmp_path).folder
    with pytest.raises(InterruptedRun):
        go_on(folder, CtrlC(2))
    (checkpoint,) = folder.rglob(CHECKPOINT)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        go_on(folder)


def test_an_attack_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    broken = OWN_ATTACK.replace(
        "distance = state", "if view.round == 5: 1 / 0\n        distance = state"
    )
    mine.write_text(broken)
    line = 1 + broken[: broken.index("1 / 0")].count("\n")
    folder = create(tiny(attack=f"{mine}:Drift"), tmp_path / "runs").folder
    with pytest.raises(AttackError, match=rf"Drift failed at .*mine\.py:{line}: ZeroDivisionError"):
        go_on(folder)
    assert len(list(Ledger(folder / "vclip--attacked" / LEDGER))) == 5
    assert not (folder / "vclip--attacked" / DONE).exists()
    # The run's attack is its own copy: what becomes of the file it was given is another attack.
    mine.write_text(OWN_ATTACK)
    with pytest.raises(AttackError, match="ZeroDivisionError"):
        go_on(folder)
    (folder / "mine.py").write_text(OWN_ATTACK)
    with pytest.raises(ConfigError, match=r"an attack's file beside them, cannot be changed"):
        go_on(folder)


BAD_HOST = """
import sys, time
from attacks import DataAttack

class BadHost(DataAttack):
    def __init__(self, calls, end):
        self.left, self.end = calls, end

    def __call__(self, inputs, targets, generator):
        self.left -= 1
        if self.left < 0:
            sys.exit(1) if self.end == "dies" else time.sleep(3600)
        return inputs, targets
"""


def bad_host(tmp_path: Path, calls: int, end: str, **changes: Any) -> Run:
    """Host 1 of two, with workers 3 to 6, dies or hangs under the attack: worker 6's own data."""
    (tmp_path / "mine.py").write_text(BAD_HOST)
    attack = f"{tmp_path / 'mine.py'}:BadHost(calls={calls}, end={end!r})"
    changes = {"attack": attack, "byzantine": 1, "f": 1, "rounds": 8, **changes}
    return create(tiny(**changes), tmp_path / "runs")


def test_the_training_after_a_host_died_has_all_hosts(tmp_path: Path) -> None:
    run = bad_host(tmp_path, 5, "dies", aggregator=("Mean",))
    results = runs.execute(run, quiet())
    for defence in ("Mean", "VClip"):
        cell = Training(defence, True)
        lines = list(Ledger(run.path(cell) / LEDGER))
        assert [line["senders"] for line in lines] == [[*range(7)]] * 5 + [[0, 1, 2]] * 3
        (lost,) = {entry["reason"].split(": S")[0] for entry in lines[5]["rejected"]}
        assert lost == "lost: host 1 died in round 5"
        assert [m.missing for m in results[cell]] == [0, 12]
        assert all(m.missing == 0 for m in results[Training(defence, False)])


def test_a_hung_host_costs_no_checkpoint_that_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bad_host(tmp_path, 5, "hangs", deadline=6.0, checkpoint_every=4)
    progress = CtrlC(8 + 7, Console())
    with pytest.raises(InterruptedRun):
        runs.execute(run, progress)
    said = "no checkpoint of round 7: InlineHosts: state: late: host 1 is still busy with round 5"
    assert said in " ".join(capsys.readouterr().out.split())
    attacked = Training("VClip", True)
    assert load_checkpoint(run.path(attacked) / CHECKPOINT)["server"]["round"] == 4
    # The attack counts its calls anew, so this time the training ends before the host does.
    go_on(run.folder)
    assert [line["round"] for line in Ledger(run.path(attacked) / LEDGER)] == [*range(8)]
    assert read_metrics(run.path(attacked))[-1].missing == 0


def test_a_signal_that_a_host_died_of_too_costs_no_checkpoint_that_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a scheduler signals every process of a job."""
    run = bad_host(tmp_path, 5, "dies", checkpoint_every=4)
    with pytest.raises(InterruptedRun):
        runs.execute(run, CtrlC(8 + 7, Console()))
    said = "no checkpoint of round 7: InlineHosts: state: lost: host 1 died in round 5"
    assert said in " ".join(capsys.readouterr().out.split())
    kept = load_checkpoint(run.path(Training("VClip", True)) / CHECKPOINT)
    assert kept["server"]["round"] == 4
    assert sorted(kept["workers"], key=int) == [str(i) for i in range(7)]


def test_what_a_dead_process_left_beside_a_checkpoint_is_removed(
    finished: Path, tmp_path: Path
) -> None:
    run = create(tiny(**STATEFUL), tmp_path)
    with pytest.raises(InterruptedRun):
        runs.execute(run, CtrlC(24 + 3))
    for cell in run.trainings:
        (run.path(cell) / f".{CHECKPOINT}.x1y2z3").touch()
    (run.path(run.trainings[0]) / CHECKPOINT).touch()
    go_on(run.folder)
    assert outcome(run.folder) == outcome(finished)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        (METRICS, 0, r"metrics of round 24 are required, found round 0 as the last"),
        (METRICS, 5, r"metrics of round 24 are required, found round 20 as the last"),
    ],
)
def test_a_finished_training_without_its_end_is_refused(
    name: str, keep: int, message: str, finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    path = folder / reopen(folder).trainings[1].folder / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:keep]))
    with pytest.raises(CheckpointError, match=message):
        go_on(folder)


def test_a_ledger_that_is_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    run = create(tiny(), tmp_path)
    with pytest.raises(InterruptedRun):
        runs.execute(run, CtrlC(20))
    path = run.path(run.trainings[0]) / LEDGER
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(CheckpointError, match=r"the checkpoint's 20 rounds are required, found 2"):
        go_on(run.folder)


@pytest.mark.parametrize(
    ("attack", "asked"), [("SignFlip", 7), ("InnerProductManipulation", 5), ("NonFinite", 5)]
)
def test_a_byzantine_worker_whose_row_nobody_reads_computes_none(
    attack: str, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, collect = [], InlineHosts.collect

    def watched(*given: Any, **options: Any) -> Collection:
        found.append(collect(*given, **options))
        return found[-1]

    monkeypatch.setattr(InlineHosts, "collect", watched)
    folder = done(tiny(attack=attack, rounds=3), tmp_path)
    assert [len(collection.asked) for collection in found] == [7] * 3 + [asked] * 3
    for cell in reopen(folder).trainings:
        assert all(line["senders"] == [*range(7)] for line in Ledger(folder / cell.folder / LEDGER))


def test_without_an_honest_row_an_attack_on_honest_rows_sends_nothing(tmp_path: Path) -> None:
    """Or the Byzantine workers would send what they would have, were they honest."""
    config = tiny(byzantine=6, f=0, sample=2, attack="InnerProductManipulation(epsilon=10.0)")
    run = create(config, tmp_path)
    runs.execute(run, quiet())
    lines = list(Ledger(run.path(Training("VClip", True)) / LEDGER))
    silent = [line for line in lines if line["skipped"]]
    assert 0 < len(silent) < len(lines)
    assert all(line["senders"] == [] for line in silent)
    assert all(0 in line["senders"] for line in lines if not line["skipped"])


def test_an_attack_cannot_read_more_than_it_declares(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(OWN_ATTACK.replace("knows = Knowledge.HONEST", "knows = Knowledge.OWN"))
    folder = create(tiny(attack=f"{mine}:Drift"), tmp_path / "runs").folder
    with pytest.raises(
        AttackError, match=r"mine\.py:\d+: KnowledgeError: Drift: reading view.honest"
    ):
        go_on(folder)


def test_rounds_that_cannot_be_trusted_are_skipped_and_counted(tmp_path: Path) -> None:
    config = tiny(attack="NonFinite", byzantine=3, estimator=("none",), aggregator=("Krum",))
    results = runs.execute(create(config, tmp_path), quiet())
    assert results[Training("Krum", False)][-1].skipped == 0
    assert results[Training("Krum", True)][-1].skipped == 24


def test_defences_never_share_a_folder() -> None:
    texts = [
        *("Mean", "Mean()", "CClip(tau=1e-1)", "CClip(tau=1e+1)", "CClip( tau=1e-1)"),
        *("Krum(f=1)", "Krum(m=1)", "Krum(f=1, m=1)", "Clip(threshold=1.0) + Mean"),
        *(f"VClip(tau={'9' * n})" for n in (80, 90)),
    ]
    folders = {Training(text, attacked).folder for text in texts for attacked in (False, True)}
    assert len(folders) == 2 * len(texts)
    assert all(len(folder) < 100 and folder.isascii() for folder in folders)
    assert Training("Mean", True).folder == "mean--attacked"


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {create(tiny(), tmp_path / "new" / "out").folder for _ in range(3)}
    assert len(folders) == 3
    assert all([path.name for path in folder.iterdir()] == [CONFIG] for folder in folders)


@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_an_output_folder_that_cannot_be_is_said(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out: a folder that can be written is required, found"):
        create(tiny(), tmp_path / "file" / inside)


def test_only_a_run_without_a_round_is_discarded(tmp_path: Path, finished: Path) -> None:
    run = create(tiny(), tmp_path)
    discard(run)
    assert not run.folder.exists()
    before = outcome(finished)
    discard(reopen(finished))
    assert outcome(finished) == before


@pytest.mark.parametrize(("transport", "server"), [("ray", "ray"), ("ranks", "driver")])
def test_every_transport_gives_the_same_run(transport: str, server: str, tmp_path: Path) -> None:
    """Elsewhere than here, the bad data made by a class from the user's own file."""
    mine = tmp_path / "random.py"  # a name that hides a module of Python's, were it imported
    mine.write_text(
        "from attacks import DataAttack\n\n\n"
        "class Shift(DataAttack):\n"
        "    def __init__(self, by):\n"
        "        self.by = by\n\n"
        "    def __call__(self, inputs, targets, generator):\n"
        "        return inputs, (targets + self.by) % 10\n"
    )
    both = {**STATEFUL, "attack": f"{mine}:Shift(by=3)", "rounds": 6, "evaluate_every": 3}
    inline = done(tiny(**both), tmp_path / "inline")
    both |= {"transport": transport, "server": server}
    remote = create(tiny(**both), tmp_path / "remote").folder
    # Processes take seconds to start: those of the honest training are saved by copying it.
    honest, attacked = (cell.folder for cell in reopen(remote).trainings)
    shutil.copytree(inline / honest, remote / honest)
    threads = torch.get_num_threads()
    go_on(remote)
    assert torch.get_num_threads() == threads
    assert outcome(remote / attacked) == outcome(inline / attacked)


def test_the_example_for_torchrun_withstands_its_liars() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "4", "-m", "experiments.torchrun"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"3 hosts, 100 rounds, 4 of 20 liars: accuracy (\d+\.\d)%\n", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) > 90
