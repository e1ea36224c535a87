"""The benchmarks: they run, measure what they say, and judge by the numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import rules as oracle
from peer_packages import from_peer, is_installed
from torch import Tensor

from experiments import cli
from experiments.bench import aggregators, aggregators_report, bandwidth, clock, peers, plain
from experiments.bench.catalogue import BENCHES
from experiments.bench.loops import ByzFLLoop, Loop, OurLoop, Setting
from experiments.bench.rules import RULES, ours
from experiments.data import Split
from robust_agg import Estimator, OnlineMedian
from robust_agg.presets import byzfl, byzpy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "ENOUGH", 0.0)
    monkeypatch.setattr(clock, "FEWEST", 1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BENCHES)
def test_each_runs_from_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exited:
        cli.main(["bench", name, "--preset", "smoke", "--out", str(out), "--device", "cpu"])
    printed = capsys.readouterr()
    assert exited.value.code == 0, printed.err
    with (out / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    page = (out / "README.md").read_text()
    study = BENCHES[name].preset("smoke")
    assert page.startswith(f"# {study.title}\n")
    assert "so small a study only shows that everything runs" in page
    assert list(out.glob("*.png"))
    if name == "aggregators":
        _check_errors(rows)


def _check_errors(rows: list[dict[str, str]]) -> None:
    found = {row["rule"] for row in rows if row["who"] == "robust-agg"}
    assert found == set(RULES)
    for row in rows:
        if row["who"] in ("robust-agg", "plain torch") and row["dtype"] == "float32":
            assert float(row["error"]) < 1e-6, row


def test_a_peer_that_is_not_there_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> peers.Catalogue:
        raise peers.MissingPeerError("byzfl is not installed")

    monkeypatch.setattr(aggregators, "PEERS", {"ByzFL": missing, "plain torch": peers._torch})
    case = aggregators.Case(5, 40, peers=True)
    study = aggregators.Aggregators(cases=(case,), rules=("Krum",), device="cpu")
    rows = study._measure("Krum", case, lambda share: None)
    assert [row["who"] for row in rows] == ["robust-agg", "ByzFL", "plain torch"]
    assert rows[1]["note"] == "byzfl is not installed"
    (table,) = [t for title, t in study.tables(rows).items() if title.startswith("Beside")]
    assert dict(zip(table[0], table[1], strict=True))["ByzFL"] == "missing"
    assert "ByzFL: byzfl is not installed" in study.notes(rows)


def test_a_peer_that_fails_on_the_rows_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rows: Tensor) -> Tensor:
        raise RuntimeError("two devices\nand more")

    failing: peers.Catalogue = {"Krum": lambda rows, f: fail}
    monkeypatch.setattr(aggregators, "PEERS", {"ByzFL": lambda: failing})
    case = aggregators.Case(5, 40, peers=True)
    study = aggregators.Aggregators(cases=(case,), rules=("Krum",), device="cpu")
    own, peer = study._measure("Krum", case, lambda share: None)
    assert own["error"] < 1e-6
    assert peer["note"] == "fails: RuntimeError: two devices"
    assert "ms" not in peer
    (table,) = [t for title, t in study.tables([own, peer]).items() if title.startswith("Beside")]
    assert dict(zip(table[0], table[1], strict=True))["ByzFL"] == "fails"
    assert "ByzFL: fails: RuntimeError: two devices" in study.notes([own, peer])


def test_rows_that_do_not_fit_into_memory_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = (aggregators.Case(5, 40), aggregators.Case(5, 41, "bfloat16"), aggregators.Case(5, 80))
    study = aggregators.Aggregators(cases=cases, rules=("Mean",))
    monkeypatch.setattr(aggregators, "memory", lambda device: 1.5 * 5 * 79 * 4)
    assert list(study.pieces(tmp_path)) == ["Mean, 5 x 40 float32", "Mean, 5 x 41 bfloat16"]
    (note,) = [note for note in study.notes([]) if "do not fit" in note]
    assert note.startswith("5 x 80 float32: its rows")


def row(**changes: Any) -> dict[str, Any]:
    return {
        "rule": "CoordinateWiseMedian",
        "who": "robust-agg",
        "n": 16,
        "f": 4,
        "d": 10**6,
        "dtype": "float32",
        "device": "cpu",
        "read_ms": 1.0,
        "ms": 2.0,
        "repeats": 5,
        "error": 1e-8,
        "extra": 0.04,
        **changes,
    }


@pytest.mark.parametrize(
    ("changed", "statement"),
    [
        ({"ms": 3.1}, "CoordinateWiseMedian of 16 rows: at most 3 x read"),
        ({"ms": 2.5}, "Faster than ByzFL"),
        ({"error": 2e-6}, "Every rule on at most 16 rows of float32 is within 1e-06"),
    ],
)
def test_verdicts_follow_the_numbers(changed: dict[str, Any], statement: str) -> None:
    peer = row(who="ByzFL", ms=2.4)

    def verdict(rows: list[dict[str, Any]]) -> bool | None:
        claims = aggregators_report.claims(rows)
        return next(c.holds for c in claims if c.statement.startswith(statement))

    assert verdict([row(), peer]) is True
    assert verdict([row(**changed), peer]) is False


def test_rows_of_all_sizes_count_for_the_verdict_beside_a_peer() -> None:
    short = [row(d=10**4), row(d=10**4, who="ByzFL", ms=1.0)]
    long = [row(), row(who="ByzFL", ms=10.0)]
    claims = aggregators_report.claims([*short, *long])
    (claim,) = (c for c in claims if c.statement.startswith("Faster than ByzFL"))
    assert not claim.holds
    assert claim.measured == "least: 0.50 x (ByzFL, CoordinateWiseMedian, n = 16)"
    tables = aggregators_report.tables([*short, *long])
    beside, errors = (
        tables["Beside the peers (peers: times ours)"],
        tables["Relative error against float64"],
    )
    assert [line[:3] for line in beside] == [
        ("rule", "n", "d"),
        ("CoordinateWiseMedian", "16", "1e4"),
        ("CoordinateWiseMedian", "16", "1e6"),
    ]
    assert [len(line) for line in (*beside, *errors)] == 3 * [8] + 3 * [5]


def test_an_error_that_is_no_number_is_the_largest() -> None:
    rows = [row(rule="Krum", error=1e-9), row(rule="Mean", error=float("nan"))]
    for given in (rows, rows[::-1]):
        claims = aggregators_report.claims(given)
        (claim,) = (c for c in claims if "of float32 is within" in c.statement)
        assert not claim.holds
        assert claim.measured == "inf at most (Mean, n = 16)"


def test_the_memory_verdict_is_about_the_largest_rows() -> None:
    large = row(n=32, d=10**7, error=None)
    (claim,) = [
        c for c in aggregators_report.claims([row(extra=9.0), large]) if "memory" in c.statement
    ]
    assert claim.holds
    (claim,) = [
        c for c in aggregators_report.claims([{**large, "extra": 0.11}]) if "memory" in c.statement
    ]
    assert not claim.holds


def on_a_device(rule: str, n: int, ms: float, **changes: Any) -> dict[str, Any]:
    """Float32 rows of 10⁶ columns, on a device that copies 1000 GB a second: n / 250 ms a pass."""
    return row(rule=rule, n=n, ms=ms, device="cuda", copy_gbs=1000.0, **changes)


@pytest.mark.parametrize(
    ("rule", "n", "ms", "share", "holds"),
    [
        ("CoordinateWiseMedian", 32, 0.16, "80%", True),  # 128 MB
        ("CoordinateWiseMedian", 32, 0.2, "64%", False),
        ("L1 batch", 8, 0.04, "80%", True),
        ("TrimmedMean", 64, 0.5, "51%", True),
        ("TrimmedMean", 64, 0.7, "37%", False),
        ("GeometricMedian", 32, 0.4, "64%", True),  # twice 128 MB
        ("VClip", 64, 1.0, "51%", False),
    ],
)
def test_a_device_s_rules_are_held_to_its_copy_bandwidth(
    rule: str, n: int, ms: float, share: str, holds: bool
) -> None:
    measured = on_a_device(rule, n, ms)
    (claim,) = bandwidth.claims([measured])
    assert claim.measured == f"{share} at least ({rule}, n = {n})"
    assert claim.holds is holds
    ((title, table),) = bandwidth.tables([measured]).items()
    assert "1000 GB/s" in title
    passes = "2" if rule in ("GeometricMedian", "VClip") else "1"
    assert table[1] == (rule, str(n), "1000000", passes, share)


def test_the_longest_rows_and_the_worst_rule_decide() -> None:
    slow_but_short = on_a_device("Phocas", 32, 1.0)
    long = on_a_device("Phocas", 32, 1.6, d=10**7)
    (claim,) = bandwidth.claims([long, slow_but_short, on_a_device("TrimmedMean", 16, 0.08)])
    assert claim.measured == "80% at least (Phocas, n = 32)"
    (claim,) = bandwidth.claims([long, on_a_device("TrimmedMean", 16, 0.1)])
    assert claim.measured == "64% at least (TrimmedMean, n = 16)"


def test_without_a_bandwidth_there_is_nothing_to_claim() -> None:
    rows = [
        row(ms=0.1),
        on_a_device("Krum", 32, 0.1),
        on_a_device("VClip", 32, 0.1, dtype="float16"),
        on_a_device("VClip", 32, 0.1, who="ByzFL"),
    ]
    assert not list(bandwidth.claims(rows))
    assert not bandwidth.tables(rows)
    assert clock.copy_bandwidth("cpu") is None


ORACLES = {
    "Mean": lambda x, f: oracle.mean(x),
    "CoordinateWiseMedian": lambda x, f: oracle.coordinate_median(x),
    "TrimmedMean": oracle.trimmed_mean,
    "Krum": oracle.krum,
    "GeometricMedian": lambda x, f: oracle.geometric_median(x),
}


@pytest.mark.parametrize("name", ORACLES)
def test_the_plain_forms_are_what_they_say(name: str) -> None:
    """The rest are compared with the library, which is compared with oracles."""
    rows = torch.randn(9, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.as_tensor(ORACLES[name](rows.numpy(), 2))
    torch.testing.assert_close(plain.TORCH[name](rows, 2), expected, rtol=1e-8, atol=1e-9)
    if name in plain.NUMPY:
        torch.testing.assert_close(torch.as_tensor(plain.NUMPY[name](rows.numpy(), 2)), expected)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [8, 9])
def test_rules_and_plain_forms_agree(name: str, n: int) -> None:
    rows = torch.randn(n, 50, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    rows[:2] -= 10
    torch.testing.assert_close(
        ours(name, rows, 2)(rows), plain.TORCH[name](rows, 2), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [16, 32])
def test_rules_of_float64_rows_are_exact(name: str, n: int) -> None:
    rows = aggregators._rows(aggregators.Case(n, 1000, "float64"), "cpu")
    expected = plain.EXACT[name](rows, n // 4)
    error = (ours(name, rows, n // 4)(rows) - expected).norm() / expected.norm()
    assert float(error) < 1e-13


@pytest.mark.parametrize("name", ["GeometricMedian", "L2 batch"])
def test_the_plain_forms_end_where_the_gradient_does(name: str) -> None:
    """By numbers of more digits, where the machine has them."""
    rows = aggregators._rows(aggregators.Case(32, 1000, "float64"), "cpu")
    pull = 1 / plain.clipping_radius(rows) if name == "L2 batch" else 0.0
    y = plain.EXACT[name](rows, 8).numpy().astype(np.longdouble)
    deviations = y - rows.numpy()
    units = deviations / np.sqrt((deviations**2).sum(axis=1, keepdims=True))
    gradient = units.mean(axis=0) + pull * y
    assert float(np.sqrt((gradient**2).sum())) < 1e-14


def test_the_state_of_an_online_median_is_made_before_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    forms = [ours(name, rows, 2) for name in ("L1 batch", "VClip", "L2 batch")]
    monkeypatch.setattr(OnlineMedian, "init", None)
    for form in forms:
        assert torch.equal(form(rows), form(rows))


SAME = {
    "ByzFL": (
        *("Mean", "CoordinateWiseMedian", "TrimmedMean", "MeanAroundMedian", "Krum", "MultiKrum"),
        *("AdaptiveClip + Mean", "NNM + TrimmedMean"),
    ),
    "ByzPy": (
        *("CoordinateWiseMedian", "TrimmedMean", "MeanAroundMedian", "GeometricMedian"),
        *("Krum", "MultiKrum", "NNM + TrimmedMean"),
    ),
    "geom-median": ("GeometricMedian",),
    "TorchJD": ("Mean", "TrimmedMean", "Krum", "MultiKrum"),
}
"""Rules that a peer defines as we do, or so that these rows do not tell."""


LOWER_MIDDLE = {("ByzPy", "CoordinateWiseMedian")}
"""Peers whose median of an even n is another, as the notes say."""


@pytest.mark.parametrize(("peer", "name"), [(p, n) for p, names in SAME.items() for n in names])
@pytest.mark.parametrize("n", [8, 9])
def test_a_peer_is_called_as_it_is_meant(peer: str, name: str, n: int) -> None:
    catalogue = from_peer(peer.lower().replace("-", "_"), peers.PEERS[peer])
    rows = torch.randn(n, 50, generator=torch.Generator().manual_seed(1))
    rows[:2] -= 10
    before = rows.clone()
    found = torch.as_tensor(catalogue[name](rows, 2)(rows))
    expected = ours(name, rows, 2)(rows)
    if n % 2 == 0 and (peer, name) in LOWER_MIDDLE:
        expected = rows.sort(dim=0).values[(n - 1) // 2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(rows, before)


def stepped(estimator: Estimator, rows: Tensor) -> Tensor:
    return estimator.step(rows, estimator.init(torch.zeros_like(rows[0])))[0]


OTHERWISE: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("ByzFL", "GeometricMedian"): lambda rows: byzfl.GeometricMedian()(rows),
    ("ByzFL", "CenteredClipping"): lambda rows: stepped(
        byzfl.CenteredClipping(L=plain.CLIPPING_STEPS, tau=plain.clipping_radius(rows)), rows
    ),
    ("ByzPy", "CenteredClipping"): lambda rows: byzpy.CenteredClipping(
        c_tau=plain.clipping_radius(rows), M=plain.CLIPPING_STEPS
    )(rows),
}
"""Rules that a peer defines otherwise, by the presets of its names."""


@pytest.mark.parametrize(("peer", "name"), OTHERWISE)
def test_a_peer_s_own_rule_is_called_as_it_is_meant(peer: str, name: str) -> None:
    catalogue = from_peer(peer.lower(), peers.PEERS[peer])
    missing = catalogue.keys() - SAME[peer] - {rule for who, rule in OTHERWISE if who == peer}
    assert not missing
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(1))
    rows[:2] -= 10
    before = rows.clone()
    found = torch.as_tensor(catalogue[name](rows, 2)(rows))
    torch.testing.assert_close(found, OTHERWISE[peer, name](rows), rtol=1e-4, atol=1e-4)
    assert torch.equal(rows, before)


def test_a_part_of_a_package_is_imported_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_with_too_many_needs"
    package.mkdir()
    (package / "__init__.py").write_text("import something_that_nobody_has\n")
    (package / "good.py").write_text("VALUE = 3\n")
    (package / "bad.py").write_text("import something_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.part(package.name, "good").VALUE == 3
    with pytest.raises(peers.MissingPeerError, match="needs something_that_nobody_has"):
        peers.part(package.name, "bad")
    with pytest.raises(peers.MissingPeerError, match="no_such_package is not installed"):
        peers.part("no_such_package", "good")


def test_a_peer_that_is_there_and_fails_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, line in (("needy", "import something_that_nobody_has"), ("broken", "1 / 0")):
        (tmp_path / f"{name}_peer.py").write_text(line)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(peers.MissingPeerError):
            from_peer(f"{name}_peer", partial(peers._module, f"{name}_peer"))
    with pytest.raises(pytest.skip.Exception, match=r"^no_such_peer is not installed$"):
        from_peer("no_such_peer", lambda: peers._module("no_such_peer"))


def test_timing_is_of_the_repeats_alone() -> None:
    calls: list[int] = []
    found = clock.timing(lambda: calls.append(1))
    assert len(calls) == 1 + found.repeats
    assert found.ms >= 0


def test_calls_take_turns_after_their_warm_ups() -> None:
    calls: list[str] = []
    found = clock.timings([lambda: calls.append("a"), lambda: calls.append("b")])
    assert calls[:4] == ["a", "b"] * 2
    assert [calls.count(name) for name in "ab"] == [1 + each.repeats for each in found]


def test_peak_memory_counts_what_is_freed_again() -> None:
    size = 40 << 20

    def call() -> Tensor:
        return torch.ones(size // 4).sum()

    extra = clock.peak_extra(call)
    if extra is None:
        pytest.skip("this system does not tell")
    assert 0.9 * size < extra < 1.5 * size


def test_both_loops_learn_the_same() -> None:
    """Two classes of images, dark and bright, that any training tells apart."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (400,), generator=draw)
    inputs = torch.rand(400, 1, 28, 28, generator=draw) * 0.2 + targets[:, None, None, None] * 0.5
    data = Split(inputs, targets)
    setting = Setting(model="fc_mnist", rule="NNM + TrimmedMean")
    loops: list[Loop] = [OurLoop(setting, data)]
    if is_installed("byzfl"):
        loops.append(ByzFLLoop(setting, data))
    for loop in loops:
        for _ in range(60):
            loop.round()
        hits = loop.logits(inputs).argmax(dim=1) == targets
        assert float(hits.float().mean()) > 0.95, type(loop).__name__
        loop.close()


@pytest.mark.parametrize("model", ["fc_mnist", "cnn_mnist"])
def test_both_loops_have_the_same_network(model: str) -> None:
    if not is_installed("byzfl"):
        pytest.skip("byzfl is not installed")
    inputs = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = Split(inputs, torch.arange(40) % 10)
    setting = Setting(model=model, rule="NNM + TrimmedMean")
    own, peer = OurLoop(setting, data), ByzFLLoop(setting, data)
    own._model.load_state_dict(
        dict(zip(own._model.state_dict(), peer._server.model.state_dict().values(), strict=True))
    )
    expected = own.logits(inputs).log_softmax(dim=1)
    torch.testing.assert_close(peer.logits(inputs).log_softmax(dim=1), expected)
    own.close()
    peer.close()


def test_the_configuration_names_the_cases(tmp_path: Path) -> None:
    """So that a folder is not continued with others."""
    study = aggregators.Aggregators.preset("default")
    cases = json.loads(json.dumps([case._asdict() for case in study.cases]))
    assert {"n": 32, "d": 10**6, "dtype": "float32", "peers": True} in cases
    assert {case["n"] for case in cases} >= {8, 16, 32, 64, 128, 256, 512}
