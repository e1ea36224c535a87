"""What a report says in numbers, for sweeps whose numbers are known."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import ALIE, CWM, FLIP, GM, MEAN, TESTED, Row, curves_of, row, small, write
from scipy import stats

from experiments.config import ConfigError
from experiments.sweeps.report.cells import RESULTS, SWEEP, read
from experiments.sweeps.report.content import Content, compose
from experiments.sweeps.report.heat import HeatMap
from experiments.sweeps.report.leaderboard import Entry, p_text
from experiments.sweeps.report.names import pieces, wrapped
from experiments.sweeps.report.tables import Table, entries_table


def content(folder: Path, rows: list[Row], **about: Any) -> Content:
    return compose(read(write(folder, rows, **about)))


def entry(found: Content, defence: str) -> Entry:
    return next(each for each in found.entries if each.defence == defence)


def texts(heat: HeatMap) -> dict[tuple[str, str], str | None]:
    return {
        (name, column): None if cell is None else cell.text
        for name, cells in heat.rows
        for column, cell in zip(heat.columns, cells, strict=True)
    }


# --- the leaderboard ------------------------------------------------------------------------------


def test_the_best_worst_case_is_first(tmp_path: Path) -> None:
    found = content(tmp_path, small())
    assert [(each.rank, each.defence) for each in found.entries] == [(1, GM), (2, CWM), (3, MEAN)]
    worst = {each.defence: each.worst for each in found.entries}
    assert {name: case and case.group.attack for name, case in worst.items()} == {
        GM: ALIE,
        CWM: FLIP,
        MEAN: FLIP,
    }


def test_intervals_are_student_s_over_the_seeds(tmp_path: Path) -> None:
    case = entry(content(tmp_path, small()), GM).worst
    assert case is not None
    tests = TESTED[GM, ALIE]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(tests), scale=stats.sem(tests))
    assert case.test.mean == pytest.approx(np.mean(tests))
    assert (case.test.low, case.test.high) == (pytest.approx(low), pytest.approx(high))
    assert case.test.count == 3


def test_the_first_two_are_compared_seed_by_seed_in_their_own_worst_cases(tmp_path: Path) -> None:
    found = content(tmp_path, small())
    gap = entry(found, CWM).gap
    assert gap is not None
    expected = stats.ttest_rel(TESTED[GM, ALIE], TESTED[CWM, FLIP])
    assert gap.p == pytest.approx(expected.pvalue)
    assert gap.mean == pytest.approx(0.82 - 0.74)
    low, high = expected.confidence_interval(0.95)
    assert gap.half is not None
    assert (gap.mean - gap.half, gap.mean + gap.half) == (pytest.approx(low), pytest.approx(high))
    assert found.said[0].startswith(f"{GM} keeps most in its worst case: 82.0 ± 6.6 % under {ALIE}")
    assert f"{CWM}, is 8.0 points behind" in found.said[1]
    assert f"p = {expected.pvalue:.3f}, the seeds tell the two apart" in found.said[1]


def test_every_defence_is_compared_with_the_first(tmp_path: Path) -> None:
    found = content(tmp_path, small())
    texts = column(entries_table(found.entries), "behind the first")
    assert texts[0] == "–"
    for each, text in zip(found.entries[1:], texts[1:], strict=True):
        assert each.worst is not None
        theirs = TESTED[each.defence, each.worst.group.attack]
        expected = stats.ttest_rel(TESTED[GM, ALIE], theirs).pvalue
        assert text.endswith(f"({p_text(expected)})")


def test_it_is_said_where_cells_were_trained_by_different_versions(tmp_path: Path) -> None:
    one, two = small(version="0.1.0"), small(version="0.1.0")
    two[-1]["version"] = "0.1.0, 0.2.0"
    alike, mixed = content(tmp_path / "1", one).sweep, content(tmp_path / "2", two).sweep
    assert alike.versions == ("0.1.0",)
    assert mixed.versions == ("0.1.0", "0.2.0")


def test_a_difference_that_may_be_chance_is_said_so(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, seed, test) for seed, test in enumerate((0.80, 0.85, 0.81))]
    rows += [row(CWM, FLIP, seed, test) for seed, test in enumerate((0.82, 0.78, 0.80))]
    said = content(tmp_path, rows).said[1]
    assert re.search(r"paired t-test over 3 seeds: p = 0\.\d\d, that may be chance", said)


def test_averages_and_accuracies_without_attack_are_means(tmp_path: Path) -> None:
    found = entry(content(tmp_path, small()), GM)
    assert found.average == pytest.approx((0.95 + 0.90 + 0.82) / 3)
    assert found.unattacked == pytest.approx(0.95)


def test_a_single_seed_has_no_interval_and_no_test(tmp_path: Path) -> None:
    found = content(tmp_path, [each for each in small() if each["config.seed"] == 0])
    case, gap = entry(found, GM).worst, entry(found, CWM).gap
    assert case is not None
    assert gap is not None
    assert (case.test.half, gap.half, gap.p) == (None, None, None)
    assert "with one seed in common nothing says whether that is chance" in found.said[1]


def test_the_order_is_that_of_the_means_whatever_the_seeds(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, seed, test) for seed, test in enumerate((0.2, 0.9, 0.9))]
    rows += [row(CWM, FLIP, seed, test) for seed, test in enumerate((0.6, 0.6, 0.6))]
    assert [each.defence for each in content(tmp_path, rows).entries] == [GM, CWM]


def test_equals_are_ranked_by_their_average(tmp_path: Path) -> None:
    rows = [
        *(row(CWM, FLIP, 0, 0.5), row(CWM, ALIE, 0, 0.6)),
        *(row(GM, FLIP, 0, 0.5), row(GM, ALIE, 0, 0.9)),
    ]
    assert [each.defence for each in content(tmp_path, rows).entries] == [GM, CWM]


def test_to_do_nothing_is_an_attack_too(tmp_path: Path) -> None:
    rows = [row(GM, "none", 0, 0.5), row(GM, FLIP, 0, 0.6)]
    case = entry(content(tmp_path, rows), GM).worst
    assert case is not None
    assert case.group.attack == "none"


def test_what_has_failed_is_not_ranked_above_what_has_not(tmp_path: Path) -> None:
    rows = small()
    lost = next(r for r in rows if (r["defence"], r["attack"], r["config.seed"]) == (GM, FLIP, 1))
    lost |= {"state": "failed", "failure": "no round in 300 s", "test_accuracy": None}
    found = content(tmp_path, rows)
    assert [(each.rank, each.defence) for each in found.entries] == [
        *((1, CWM), (2, MEAN), (None, GM))
    ]
    assert entry(found, GM).missing == 1
    assert any(said.startswith("Not ranked") and GM in said for said in found.said)
    assert found.attack_maps[0].rows[2][1][1] is not None
    assert not found.attack_maps[0].whole


# --- scenarios ------------------------------------------------------------------------------------

IID, SKEWED = "IID()", "GammaSimilarity(gamma=0.0)"
GRID = {"f": [1, 2], "partition": [SKEWED, IID], "defence": [GM, CWM], "attack": ["none", FLIP]}


def in_scenarios() -> list[Row]:
    """The accuracy falls with f and with heterogeneity; the number of workers follows from f."""
    rows = []
    for f in (2, 1):
        for partition in (SKEWED, IID):
            for defence in (GM, CWM):
                for attack in ("none", FLIP):
                    test = 0.9 - 0.1 * f - 0.2 * (partition == SKEWED) - 0.05 * (defence == CWM)
                    attacked = attack != "none"
                    rows += [
                        row(
                            *(defence, attack, seed, test + 0.01 * seed + 0.05 * (not attacked)),
                            **{
                                "config.f": f,
                                "config.byzantine": f * attacked,
                                "config.workers": 10 + f * attacked,
                                "config.partition": partition,
                            },
                        )
                        for seed in range(2)
                    ]
    return rows


def test_the_worst_case_is_over_scenarios_too(tmp_path: Path) -> None:
    found = content(tmp_path, in_scenarios(), grid=GRID)
    case = entry(found, GM).worst
    assert case is not None
    assert case.group.scenario.label == f"f=2, {SKEWED}"
    assert case.test.mean == pytest.approx(0.505)


def test_scenarios_have_maps_of_their_own(tmp_path: Path) -> None:
    found = content(tmp_path, in_scenarios(), grid=GRID)
    labels = [f"f={f}, {partition}" for f in (1, 2) for partition in (SKEWED, IID)]
    assert [each.title for each in found.attack_maps[1:]] == labels
    assert texts(found.attack_maps[0])[GM, FLIP] == "50.5"
    assert texts(found.attack_maps[2])[GM, FLIP] == "80.5"
    assert texts(found.scenario_maps[0])[CWM, labels[0]] == "55.5"


def test_f_and_heterogeneity_have_a_map_a_defence(tmp_path: Path) -> None:
    first, second = content(tmp_path, in_scenarios(), grid=GRID).partition_maps
    assert (first.title, second.title) == (GM, CWM)
    assert texts(first) == {
        ("1", SKEWED): "60.5",
        ("1", IID): "80.5",
        ("2", SKEWED): "50.5",
        ("2", IID): "70.5",
    }


def test_a_single_scenario_has_no_maps_of_scenarios(tmp_path: Path) -> None:
    found = content(tmp_path, small(), grid={"f": [2], "defence": [GM], "seed": [0, 1, 2]})
    assert (len(found.attack_maps), found.scenario_maps, found.partition_maps) == (1, [], [])


def test_what_is_not_attacked_belongs_to_every_number_of_attackers(tmp_path: Path) -> None:
    rows = [row(GM, "none", 0, 0.9)]
    rows += [row(GM, FLIP, 0, 0.8 - 0.1 * b, **{"config.byzantine": b}) for b in (1, 2)]
    found = content(tmp_path, rows, grid={"byzantine": [1, 2], "attack": ["none", FLIP]})
    assert [each.title for each in found.attack_maps[1:]] == ["byzantine=1", "byzantine=2"]
    assert texts(found.attack_maps[2]) == {(GM, "none"): "90.0", (GM, FLIP): "60.0"}


def test_scenarios_that_not_all_were_tried_in_are_left_out(tmp_path: Path) -> None:
    """As a bisection leaves them: the weaker defence was asked for f = 1, the stronger for 4."""
    rows = [row(d, FLIP, 0, 0.6, **{"config.f": 2, "config.byzantine": 2}) for d in (GM, CWM)]
    rows += [row(GM, FLIP, 0, 0.2, **{"config.f": 4, "config.byzantine": 4})]
    rows += [row(CWM, FLIP, 0, 0.7, **{"config.f": 1, "config.byzantine": 1})]
    found = content(tmp_path, rows, breakdown={"accuracy": 0.5, "most": 4})
    assert found.left_out == ["f=1", "f=4"]
    assert found.said[-1] == "Not counted, as not every defence has numbers there: f=1; f=4."
    assert texts(found.attack_maps[0]) == {(GM, FLIP): "60.0", (CWM, FLIP): "60.0"}


def failing_at_1() -> list[Row]:
    """An attack that two attackers can carry out, and one cannot."""
    rows = in_scenarios()
    for f in (1, 2):
        for defence in (GM, CWM):
            own = {"config.f": f, "config.byzantine": f, "config.workers": 10 + f}
            own |= {"config.partition": IID, "chosen": True}
            lost = {"state": "failed", "failure": "k > 1 is needed"} if f == 1 else {}
            rows.append(row(defence, ALIE, 0, None if f == 1 else 0.3, **own, **lost))
    return [each for each in rows if each["config.partition"] == IID]


def test_an_attack_that_failed_for_all_is_no_worst_case_of_any(tmp_path: Path) -> None:
    found = content(tmp_path, failing_at_1(), grid=GRID)
    assert [(each.rank, each.missing) for each in found.entries] == [(1, 0), (2, 0)]
    assert found.left_out == [f"{ALIE} (f=1)"]
    assert texts(found.attack_maps[0])[GM, ALIE] == "30.0"


def test_an_attack_that_failed_for_one_defence_is_its_loss(tmp_path: Path) -> None:
    rows = failing_at_1()
    lost = next(each for each in rows if each["state"] == "failed" and each["defence"] == GM)
    lost |= {"state": "done", "accuracy": 0.5, "test_accuracy": 0.5}
    found = content(tmp_path, rows, grid=GRID)
    assert found.left_out == []
    assert [(each.rank, each.defence) for each in found.entries] == [(1, GM), (None, CWM)]


def test_nothing_is_left_out_while_it_may_still_come(tmp_path: Path) -> None:
    rows = failing_at_1()
    rows[0] |= {"state": "running", "accuracy": None, "test_accuracy": None}
    found = content(tmp_path, rows, grid=GRID)
    assert found.left_out == []


def test_a_scenario_without_any_test_accuracy_is_left_out(tmp_path: Path) -> None:
    rows = in_scenarios()
    for each in rows:
        if each["config.f"] == 1:
            each |= {"chosen": False, "test_accuracy": None}
    found = content(tmp_path, rows, grid=GRID, tune={"lr": [0.1]})
    assert found.left_out == [f"f=1, {SKEWED}", f"f=1, {IID}"]
    assert found.entries[0].rank == 1


# --- selection ------------------------------------------------------------------------------------


def tuned() -> list[Row]:
    """lr=0.1 has the better worst case on validation, lr=1.0 would have the better tests."""
    rows = []
    for seed in range(2):
        for attack, validation in ((FLIP, 0.70), (ALIE, 0.80)):
            rows.append(row(GM, attack, seed, 0.65, accuracy=validation, tuned="lr=0.1"))
        for attack, validation in ((FLIP, 0.60), (ALIE, 0.99)):
            changes = {"accuracy": validation, "tuned": "lr=1.0", "chosen": False}
            rows.append(row(GM, attack, seed, 0.97, **changes, **{"config.lr": 1.0}))
    return rows


def test_nothing_that_was_not_chosen_is_in_leaderboard_and_maps(tmp_path: Path) -> None:
    found = content(tmp_path, tuned(), tune={"lr": [0.1, 1.0]})
    case = entry(found, GM).worst
    assert case is not None
    assert case.test.mean == pytest.approx(0.65)
    assert texts(found.attack_maps[0]) == {(GM, FLIP): "65.0", (GM, ALIE): "65.0"}
    assert len(found.attack_maps) == 1


def test_the_selection_and_its_rivals_are_told(tmp_path: Path) -> None:
    found = content(tmp_path, tuned(), tune={"lr": [0.1, 1.0]}).selection
    assert found is not None
    assert found.headings == ("defence", "chosen", "of", "its validation", "next best")
    assert found.lines == ((GM, "lr=0.1", "2", "70.0", "60.0"),)


def test_a_setting_that_failed_once_counts_as_0(tmp_path: Path) -> None:
    rows = tuned()
    rival = next(r for r in rows if r["attack"] == FLIP and r["tuned"] == "lr=1.0")
    rival |= {"state": "failed", "accuracy": None}
    found = content(tmp_path, rows, tune={"lr": [0.1, 1.0]}).selection
    assert found is not None
    assert found.lines[0][-1] == "30.0"


# --- curves, breakdown, time, published numbers, measures -----------------------------------------


def test_curves_are_of_validation_with_bands_over_the_seeds(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, seed, 0.5) for seed in range(3)]
    curves = [
        {"cell": each["cell"], "round": at, "accuracy": 0.1 * (place + 1) + at / 100}
        for place, each in enumerate(rows)
        for at in (10, 20)
    ]
    found = compose(read(write(tmp_path, rows, curve_rows=curves)))
    (line,) = found.panels[""][0].lines
    assert line.rounds == (10, 20)
    assert line.mean == pytest.approx((0.3, 0.4))
    assert line.low == pytest.approx((0.2, 0.3))
    assert line.high == pytest.approx((0.4, 0.5))


def test_curves_are_of_chosen_settings_only(tmp_path: Path) -> None:
    rows = tuned()
    found = compose(
        read(write(tmp_path, rows, curve_rows=curves_of(rows), tune={"lr": [0.1, 1.0]}))
    )
    ends = {panel.attack: panel.lines[0].mean[-1] for panel in found.panels[""]}
    assert ends == {FLIP: pytest.approx(0.7, abs=0.02), ALIE: pytest.approx(0.8, abs=0.02)}


def test_the_last_to_fall_is_first(tmp_path: Path) -> None:
    def fall(defence: str, attack: str, f: int | None, **more: Any) -> Row:
        told = {"defence": defence, "attack": attack, "breakdown_f": f, "most": 4, "accuracy": 0.5}
        return {**told, "group": f"defence={defence}", "config.defence": defence, **more}

    breakdown = [
        *(fall(MEAN, FLIP, 1), fall(MEAN, ALIE, 2)),
        *(fall(GM, FLIP, 4), fall(GM, ALIE, None)),
        *(fall(CWM, FLIP, None), fall(CWM, ALIE, None, finished=False)),
    ]
    found = compose(read(write(tmp_path, small(), breakdown_rows=breakdown)))
    assert [each.defence for each in found.falls] == [CWM, GM, MEAN]
    assert found.breakdown is not None
    assert texts(found.breakdown) == {
        (CWM, "any"): "> 4",
        (CWM, FLIP): "> 4",
        (CWM, ALIE): None,
        (GM, "any"): "4",
        (GM, FLIP): "4",
        (GM, ALIE): "> 4",
        (MEAN, "any"): "1",
        (MEAN, FLIP): "1",
        (MEAN, ALIE): "2",
    }
    assert found.sweep.unfinished


def test_the_front_is_what_nothing_beats_in_time_and_worst_case(tmp_path: Path) -> None:
    found = content(tmp_path, small())
    # CWM takes 8 ms for 74 %, GM 4 ms for 82 %, the mean 1 ms for 11 %.
    assert {point.defence: point.front for point in found.points} == {
        GM: True,
        CWM: False,
        MEAN: True,
    }
    assert [point.seconds for point in found.points] == pytest.approx([0.004, 0.008, 0.001])


def test_published_numbers_stand_beside_ours(tmp_path: Path) -> None:
    published = {
        "source": "A paper",
        "rows": [
            {"where": {"attack": "SignFlip()", "f": 2, "defence": GM}, "value": 0.87},
            {"where": {"f": 2.0, "defence": CWM, "dataset": "mnist"}, "value": 0.8},
            {"where": {"f": 3}, "value": 0.5},
        ],
    }
    found = content(tmp_path, small(), published=published, base={"dataset": "mnist"}).published
    assert found is not None
    assert [line[1:] for line in found.lines] == [
        (GM, FLIP, "87.0", "90.0 ± 5.0", "+3.0"),
        (CWM, FLIP, "80.0", "74.0 ± 9.0", "-6.0"),
        ("–", "–", "50.0", "not run", "–"),
    ]


def column(table: Table, heading: str) -> list[str]:
    return [line[table.headings.index(heading)] for line in table.lines]


def test_measures_are_means_over_the_seeds(tmp_path: Path) -> None:
    rows = [
        row(GM, FLIP, 0, 0.8, error=0.2, rounds_to_target=100.0, success=0.5),
        row(GM, FLIP, 1, 0.8, error=0.4, rounds_to_target=None, success=0.7),
        row(CWM, FLIP, 0, 0.8, rounds_to_target=None),
    ]
    (table,) = content(tmp_path, rows, target=0.8).measures
    assert column(table, "error") == ["0.300", "0.250"]
    assert column(table, "κ") == ["1.50", "1.50"]
    assert column(table, "Byzantine weight") == ["10.0 %", "–"]
    assert column(table, "rounds to target") == ["100 (1 of 2)", "never (0 of 1)"]
    assert column(table, "backdoor success") == ["60.0 %", "–"]
    assert column(table, "messages, MB") == ["3.00", "3.00"]
    assert not {"rows missing", "rounds spared", "ε"} & {*table.headings}


def test_rounds_that_were_spared_and_spent_epsilon_have_columns_where_there_are_any(
    tmp_path: Path,
) -> None:
    rows = [row(GM, FLIP, 0, 0.8, spared=3, epsilon=1.25), row(CWM, FLIP, 0, 0.8, spared=0)]
    (table,) = content(tmp_path, rows).measures
    assert column(table, "rounds spared") == ["3.00", "0"]
    assert column(table, "ε") == ["1.25", "–"]


def test_a_measure_that_an_attack_drives_to_the_largest_number_is_shown(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, seed, 0.1, error=1.7e308) for seed in range(3)]
    (table,) = content(tmp_path, rows).measures
    assert column(table, "error") == ["1.7e+308"]


# --- what a folder can hold -----------------------------------------------------------------------


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, 0, 0.8, error=math.nan, loss=math.inf), row(GM, FLIP, 1, 0.8)]
    (table,) = content(tmp_path, rows).measures
    assert column(table, "error") == ["0.250"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (SWEEP, None, r"must hold a sweep \(sweep.json\), found none in"),
        (SWEEP, "{", "must be a sweep's configuration, found a damaged file"),
        (SWEEP, "[]", "must be a sweep's configuration, found a damaged file"),
        (RESULTS, "PAR1", r"results.parquet must be a Parquet file, found "),
    ],
)
def test_what_is_no_sweep_is_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    write(tmp_path, small())
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path)


def test_a_column_that_must_be_there_is_named(tmp_path: Path) -> None:
    rows = [{key: value for key, value in each.items() if key != "attack"} for each in small()]
    with pytest.raises(ConfigError, match="found no attack"):
        read(write(tmp_path, rows))


def test_a_cell_that_was_refused_varies_nothing(tmp_path: Path) -> None:
    """It has no parameters but those that were given."""
    rows = [row(GM, FLIP, seed, 0.8) for seed in range(2)]
    rows.append(row(CWM, FLIP, 0, None, state="failed", failure="n >= 5 is required"))
    rows[-1] |= {"config.partition": None, "config.workers": None, "chosen": True}
    found = content(tmp_path, rows)
    assert list(found.axes) == ["defence", "seed"]
    assert found.constants["partition"] == "IID()"


def test_an_axis_may_have_none_among_its_values(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, 0, 0.8, **{"config.codec": codec}) for codec in (None, "EF21()")]
    found = content(tmp_path, rows, grid={"codec": ["none", "EF21()"]})
    assert found.axes["codec"] == ["None", "EF21()"]
    assert [each.title for each in found.attack_maps[1:]] == ["codec=None", "codec=EF21()"]


def test_long_names_break_between_their_words() -> None:
    name = "InnerProductManipulation(epsilon=10.0)"
    assert "".join(pieces(name)) == name
    assert wrapped(name, 16) == "InnerProduct\nManipulation(\nepsilon=10.0)"
    assert wrapped("abcdefghij" * 3, 10) == "abcdefghij\nabcdefghij\nabcdefghij"
    assert wrapped("a b c d e f g h", 3, lines=2) == "a b\nc …"
    assert wrapped("", 8) == ""


def test_a_target_that_nobody_reached_is_said_so(tmp_path: Path) -> None:
    rows = [row(GM, FLIP, seed, 0.5, rounds_to_target=None) for seed in range(2)]
    (table,) = content(tmp_path, rows, target=0.8).measures
    assert column(table, "rounds to target") == ["never (0 of 2)"]


def test_before_all_is_done_nothing_is_said_to_be_chosen(tmp_path: Path) -> None:
    rows = [{**each, "chosen": False, "test_accuracy": None} for each in tuned()]
    rows[-1] |= {"state": "running", "accuracy": None}
    assert content(tmp_path / "a", rows, tune={"lr": [0.1, 1.0]}).selection is None
    for each in rows:
        each |= {"state": "failed", "accuracy": None}
    found = content(tmp_path / "b", rows, tune={"lr": [0.1, 1.0]}).selection
    assert found is not None
    assert found.lines == ((GM, "none", "2", "–", "0.0"),)
