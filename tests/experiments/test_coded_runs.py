"""Runs under a codec: attacks on what travels, bytes, resumption, every transport."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_samples import STATEFUL, TINY, CtrlC, outcome, quiet, tiny

from attacks import Adversary, SignFlip
from experiments import assembly, report, runs, specs
from experiments.config import ConfigError, RunConfig
from experiments.metrics import METRICS, read_metrics
from experiments.run_folder import Training, create, reopen
from experiments.simulation import LEDGER, Simulation
from experiments.stopping import InterruptedRun
from robust_agg import Ledger
from robust_agg.codecs import EF21, Clip21, ErrorFeedback, Sign, TopK, privacy

CODED: dict[str, dict[str, Any]] = {
    "ef21": {"codec": "EF21(compressor=RandomK(share=0.1))", "attack": "SignFlip"},
    "clip21": {"codec": "Clip21(tau=0.5)", "attack": "InnerProductManipulation(epsilon=10.0)"},
    "private clip21": {"codec": "Clip21(tau=0.5, noise=0.01)", "attack": "ALittleIsEnough(z=1.0)"},
    "ef sign": {"codec": "ErrorFeedback"},
}


def done(config: RunConfig, out: Path) -> Path:
    run = create(config, out)
    runs.execute(run, quiet())
    return run.folder


@pytest.mark.parametrize("name", CODED)
def test_interrupted_and_resumed_equals_undisturbed(name: str, tmp_path: Path) -> None:
    config = tiny(**{**STATEFUL, "rounds": 12, **CODED[name]})
    undisturbed = done(config, tmp_path / "undisturbed")
    folder = create(config, tmp_path / "interrupted").folder
    for rounds in (5, 9):
        with pytest.raises(InterruptedRun):
            runs.execute(reopen(folder), CtrlC(rounds))
    runs.execute(reopen(folder), quiet())
    assert outcome(folder) == outcome(undisturbed)


@pytest.mark.parametrize(
    ("codec", "least"),
    [("EF21(compressor=TopK(share=0.1))", 4.5), ("ErrorFeedback", 15), ("Clip21(tau=2.0)", 0.98)],
)
def test_a_run_under_a_codec_learns_from_as_many_bytes(
    codec: str, least: float, tmp_path: Path
) -> None:
    both = {"attack": "SignFlip", "rounds": 60, "evaluate_every": 20}
    folders = [
        done(tiny(**both, codec=given), tmp_path / str(place))
        for place, given in enumerate((None, codec))
    ]
    for attacked in (False, True):
        plain, coded = (
            read_metrics(folder / Training("VClip", attacked).folder)[-1] for folder in folders
        )
        assert plain.bytes == 60 * 7 * (32 + 4 * 650)
        assert plain.bytes > least * coded.bytes
        assert coded.accuracy > 0.7
        cell = folders[1] / Training("VClip", attacked).folder
        assert sum(line["bytes"] for line in Ledger(cell / LEDGER)) == coded.bytes
        assert all(line["clipped"] == [] for line in Ledger(cell / LEDGER))


def simulation(config: RunConfig, tmp_path: Path, **changes: Any) -> Simulation:
    data = create(config, tmp_path).data
    model = assembly.ModelFactory.of(config, data)
    codec = config.row_codec()
    adversary = assembly.adversary(config, data)
    given: dict[str, Any] = {
        "server": assembly.ServerFactory(
            model, config.defence("VClip"), config.f, config.lr, 1, "cpu", codec
        )(),
        "transport": assembly.transport(config, data, attacked=True),
        "adversary": adversary,
        "byzantine": assembly.byzantine(config),
        "model": model(),
        "evaluated": data.test,
        "folder": tmp_path,
        "seed": 0,
        "codec": codec,
    }
    return Simulation(**{**given, **changes})


class Watch(SignFlip):
    """Keeps what it sees; its second lie is one that the server refuses."""

    def __call__(self, view: Any, state: Any, generator: Any) -> Any:
        seen.append(view.own)
        rows, state = super().__call__(view, state, generator)
        return torch.nan * rows if view.round == 1 else rows, state


seen: list[torch.Tensor] = []


@pytest.mark.parametrize("codec", ["Clip21(tau=0.5)", "EF21(compressor=TopK(share=0.2))"])
def test_an_attacker_sees_the_rows_it_would_have_sent_were_it_honest_all_along(
    codec: str, tmp_path: Path
) -> None:
    """Though the server's shifts for it are where its lies have moved them."""
    config = tiny(codec=codec, attack="SignFlip", lr=1e-6, batch_size=10_000)
    seen.clear()
    liars = frozenset({5, 6})
    lied = simulation(config, tmp_path, adversary=Adversary(attack=Watch(), byzantine=liars))
    honest = simulation(config, tmp_path, adversary=None)
    with lied.transport, honest.transport:
        for number in range(7):
            for each in (lied, honest):
                each.server.quorum = 8 if number == 3 else 1  # type: ignore[attr-defined]
            lied.one_round()
            # Without a lie, what the server reads of the same two. The models hardly move.
            updates, _ = honest.one_round()
            assert updates == [u for u in updates if u.sender not in liars]
            twins = honest.server.state_dict()["decoder"]  # type: ignore[attr-defined]
            if number == 3:  # skipped: what was read moves no shift
                continue
            for row, sender in zip(seen[number], sorted(liars), strict=True):
                torch.testing.assert_close(row, twins[sender]["shift"], rtol=1e-3, atol=1e-4)
        theirs = lied.server.state_dict()["decoder"]  # type: ignore[attr-defined]
        cosine = torch.nn.functional.cosine_similarity(theirs[5]["shift"], twins[5]["shift"], dim=0)
        assert float(cosine) < -0.5


def test_an_attack_is_bound_by_the_clip_of_the_decoder(tmp_path: Path) -> None:
    config = tiny(codec="Clip21(tau=0.25)", attack="GaussianNoise(scale=1000.0)")
    made = simulation(config, tmp_path)
    before = torch.zeros(650)
    with made.transport:
        for number in range(1, 5):
            made.one_round()
            after = made.server.state_dict()["decoder"][6]["shift"]  # type: ignore[attr-defined]
            assert float((after - before).norm()) == pytest.approx(0.25, rel=1e-4)
            assert float(after.norm()) <= 0.25 * number + 1e-4
            before = after.clone()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_what_is_no_number_reaches_the_server_as_such(noise: float, tmp_path: Path) -> None:
    """Noise hides it for honest workers, not for liars: a step of 0 would be no attack."""
    config = tiny(codec=f"Clip21(tau=0.5, noise={noise})", attack="NonFinite(kind='mixed')")
    made = simulation(config, tmp_path)
    with made.transport:
        for _ in range(2):
            _, record = made.one_round()
            assert {rejection.sender for rejection in record.rejected} == {5, 6}


def test_huge_rows_are_clipped_as_any(tmp_path: Path) -> None:
    config = tiny(codec="Clip21(tau=0.25)", attack="NonFinite(kind='huge')")
    made = simulation(config, tmp_path)
    with made.transport:
        for number in (1, 2):
            _, record = made.one_round()
            assert record.rejected == ()
            shift = made.server.state_dict()["decoder"][6]["shift"]  # type: ignore[attr-defined]
            assert float(shift.norm()) == pytest.approx(0.25 * number, rel=1e-4)


@pytest.mark.parametrize(("transport", "server"), [("ray", "ray"), ("ranks", "driver")])
def test_every_transport_gives_the_same_run(transport: str, server: str, tmp_path: Path) -> None:
    both = {**TINY, **CODED["private clip21"], "rounds": 6, "evaluate_every": 3}
    inline = done(tiny(**both), tmp_path / "inline")
    both |= {"transport": transport, "server": server}
    remote = create(tiny(**both), tmp_path / "remote").folder
    honest, attacked = (cell.folder for cell in reopen(remote).trainings)
    shutil.copytree(inline / honest, remote / honest)
    runs.execute(reopen(remote), quiet())
    assert outcome(remote / attacked) == outcome(inline / attacked)
    assert (remote / attacked / METRICS).exists()


def test_codecs_have_names() -> None:
    for text, expected in {
        "EF21(compressor=TopK(share=0.01))": EF21(compressor=TopK(share=0.01)),
        "EF21(compressor=Sign)": EF21(compressor=Sign()),
        "ErrorFeedback": ErrorFeedback(),
        "Clip21(tau=1, noise=0.5)": Clip21(tau=1, noise=0.5),
    }.items():
        assert specs.parse_codec(text) == expected
        assert RunConfig(codec=text).row_codec() == expected
    assert RunConfig().row_codec() is None
    assert RunConfig(codec="None").row_codec() is None
    kinds = specs.catalogue()
    assert {cls.__name__ for cls in kinds["codecs"]} == {
        *("Compressed", "EF21", "Clip21", "ErrorFeedback")
    }
    assert {cls.__name__ for cls in kinds["compressors of codecs"]} == {"TopK", "RandomK", "Sign"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TopK(share=0.1)", "codec: 'TopK(share=0.1)': a codec is required, found TopK"),
        ("Clip21", "codec: Clip21: tau must be given, found 'Clip21'"),
        ("VClip", "codec: unknown name 'VClip'"),
        ("EF21(compressor=Clip21(tau=1))", "codec: EF21: compressor must be Compressor, found"),
        ("Clip21(tau=-1)", "codec: Clip21: tau must be a positive finite number, found -1"),
    ],
)
def test_what_is_no_codec_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RunConfig(codec=text)
    assert message in str(raised.value)


def test_the_report_says_what_was_sent_and_spent(tmp_path: Path) -> None:
    config = tiny(rounds=8, codec="Clip21(tau=0.5, noise=4.0)", delta=1e-3, sample=6)
    run = create(config, tmp_path)
    results = {
        (cell.defence, cell.attacked): metrics
        for cell, metrics in runs.execute(run, quiet()).items()
    }
    for cell in run.trainings:
        lines = list(Ledger(run.path(cell) / LEDGER))
        idle = {5, 6} if cell.attacked else set()
        # Whoever was asked most often in the first 4 rounds, and in all.
        evaluated = results[cell.defence, cell.attacked]
        for metrics, part in zip(evaluated, (lines[:4], lines), strict=True):
            sent = Counter(i for line in part for i in line["senders"] if i not in idle)
            most = max(sent.values())
            assert most <= len(part)
            codec = Clip21(tau=0.5, noise=4.0)
            assert metrics.epsilon == privacy.epsilon(codec, most, delta=1e-3)
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(report.table(config, results, samples=10))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    spent = max(metrics[-1].epsilon or 0 for metrics in results.values())
    assert f"all data of a worker, in one training: ε = {spent:.3g} at δ = 0.001" in shown
    assert "privacy holds against those who do not know the seed" in shown
    size = 6 * 8 * (32 + 8 + 4 * 650)
    assert f"codec: Clip21(tau=0.5, noise=4.0), {size / 1e6:.3g} MB of messages" in shown
    report.write_summary(tmp_path / "summary.json", config, results, "", samples=10)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["privacy"] == {"epsilon": spent, "delta": 1e-3, "holds": report.NOISE}
    assert summary["defences"]["VClip"]["bytes"] == size


def test_without_noise_the_report_says_nothing_of_privacy(tmp_path: Path) -> None:
    for codec in (None, "ErrorFeedback"):
        config = tiny(rounds=4, codec=codec)
        run = create(config, tmp_path)
        found = runs.execute(run, quiet())
        results = {(cell.defence, cell.attacked): metrics for cell, metrics in found.items()}
        caption = str(report.table(config, results, samples=10).caption)
        assert "privacy" not in caption
        assert ("codec: ErrorFeedback, " in caption) == (codec is not None)
        report.write_summary(tmp_path / "summary.json", config, results, "", samples=10)
        assert json.loads((tmp_path / "summary.json").read_text())["privacy"] is None
    with pytest.raises(ConfigError, match=r"^delta must be in \(0, 1\), found 1\.0$"):
        tiny(delta=1.0)
