"""The ledger: strict JSON, one line a round, and what a crash leaves behind."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_agg import Ledger, Record, Rejection
from robust_agg.ledger import finite_or_none

FULL = Record(
    round=3,
    senders=(1, 4, 7),
    weights=(0.25, 0.75, 0.0),
    distances=(0.1, 1e-300, None),
    rejected=(Rejection(7, 'non-finite\n"é" \u2028', True), Rejection(-1, "unknown", False)),
    estimate_norm=1.5e300,
    skipped=None,
    solver={"iterations": 4, "residual": 1e-9, "converged": True, "reason": "tolerance"},
    seconds={"admit": 1e-5, "aggregate": 0.25},
)


def refuse_constant(text: str) -> NoReturn:
    raise AssertionError(f"{text} is not JSON")


def strict(line: str) -> dict[str, Any]:
    found = json.loads(line, parse_constant=refuse_constant)
    assert isinstance(found, dict)
    return found


def as_json(record: Record) -> Any:
    return json.loads(json.dumps(asdict(record)))


def numbered(*rounds: int) -> list[Record]:
    return [Record(round=r, senders=(0, 1), weights=(0.5, 0.5)) for r in rounds]


def written(path: Path, records: list[Record]) -> Ledger:
    ledger = Ledger(path)
    for record in records:
        ledger.append(record)
    return ledger


def test_a_line_holds_every_field_of_the_record() -> None:
    line = FULL.line()
    assert "\n" not in line
    assert line.isascii()
    found = strict(line)
    assert list(found) == [f.name for f in fields(Record)]
    assert found["senders"] == [1, 4, 7]
    assert found["weights"] == [0.25, 0.75, 0.0]
    assert found["distances"] == [0.1, 1e-300, None]
    assert found["rejected"] == [
        {"sender": 7, "reason": 'non-finite\n"é" \u2028', "keeps_place": True},
        {"sender": -1, "reason": "unknown", "keeps_place": False},
    ]
    assert found["estimate_norm"] == 1.5e300
    assert found["skipped"] is None
    assert found["solver"]["reason"] == "tolerance"
    assert found["seconds"] == {"admit": 1e-5, "aggregate": 0.25}


def test_a_skipped_round_is_a_line_like_any_other() -> None:
    record = Record(round=0, senders=(), skipped="n >= 2f + 1 is required, found n=0, f=1")
    found = strict(record.line())
    assert (found["weights"], found["distances"], found["estimate_norm"]) == (None, [], None)
    assert found["skipped"] == record.skipped


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["weights", "distances", "estimate_norm"])
def test_a_line_never_holds_what_json_has_not(field: str, value: float) -> None:
    given_value = value if field == "estimate_norm" else (value,)
    record = Record(round=0, senders=(0,), **{field: given_value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON compliant"):
        record.line()


def test_a_record_that_is_no_json_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger", numbered(0))
    before = ledger.path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append(Record(round=1, senders=(), estimate_norm=float("nan")))
    assert ledger.path.read_bytes() == before


def test_finite_or_none() -> None:
    found = finite_or_none([0.0, float("inf"), -1.5, float("nan"), -float("inf"), 1e308])
    assert found == (0.0, None, -1.5, None, None, 1e308)


def test_lines_are_appended_in_order_and_read_back(tmp_path: Path) -> None:
    records = [*numbered(0, 1, 2), FULL]
    ledger = written(tmp_path / "ledger.jsonl", records)
    lines = ledger.path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [strict(line.decode()) for line in lines] == [as_json(r) for r in records]
    assert list(ledger) == [as_json(r) for r in records]
    assert list(ledger) == list(Ledger(str(ledger.path)))


def test_every_round_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for done, record in enumerate(numbered(0, 1, 2), start=1):
        ledger.append(record)
        assert ledger.path.read_bytes().count(b"\n") == done


def test_opening_a_ledger_continues_it(tmp_path: Path) -> None:
    written(tmp_path / "ledger", numbered(0, 1))
    written(tmp_path / "ledger", numbered(2))
    assert [line["round"] for line in Ledger(tmp_path / "ledger")] == [0, 1, 2]


def test_opening_a_ledger_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert list(ledger) == []
    assert not ledger.path.exists()


@pytest.mark.parametrize("before", range(6))
def test_truncating_keeps_the_rounds_before(tmp_path: Path, before: int) -> None:
    ledger = written(tmp_path / "ledger", numbered(0, 1, 2, 3))
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.truncate(before)
    # Byte for byte: a resumed run's ledger is the uninterrupted run's ledger.
    assert ledger.path.read_bytes() == b"".join(lines[:before])
    assert [p.name for p in tmp_path.iterdir()] == ["ledger"]
    ledger.append(Record(round=before, senders=()))
    assert [line["round"] for line in ledger] == [*range(min(before, 4)), before]


@given(
    norms=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
    reason=st.text(max_size=10),
)
def test_truncating_changes_no_byte_of_what_it_keeps(
    tmp_path_factory: pytest.TempPathFactory, norms: list[float], reason: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "kept"
    path.unlink(missing_ok=True)
    records = [
        Record(round=i, senders=(i,), rejected=(Rejection(i, reason),), estimate_norm=norm)
        for i, norm in enumerate([0.0, *norms])
    ]
    ledger = written(path, records)
    before = path.read_bytes()
    ledger.truncate(len(records))
    assert path.read_bytes() == before


def test_truncating_goes_by_the_round_and_not_by_the_line(tmp_path: Path) -> None:
    ledger = written(tmp_path / "ledger", numbered(5, 6, 5, 7))
    ledger.truncate(6)
    assert [line["round"] for line in ledger] == [5, 5]


def test_truncating_a_ledger_that_is_not_there_leaves_an_empty_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.truncate(3)
    assert list(ledger) == []
    ledger.append(FULL)
    assert [line["round"] for line in ledger] == [3]


def test_a_last_line_cut_anywhere_is_not_read_and_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = written(path, [*numbered(0, 1), FULL])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert [line["round"] for line in ledger] == [0, 1]
        ledger.truncate(2)
        assert path.read_bytes() == whole[:start]
        ledger.append(FULL)
        assert path.read_bytes() == whole


def test_a_line_cut_anywhere_is_left_out_though_others_follow(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = written(path, [*numbered(0, 1), FULL])
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        ledger.append(FULL)
        assert [line["round"] for line in ledger] == [0, 1, 3]
