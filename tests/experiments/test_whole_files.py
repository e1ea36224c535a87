"""Files that are whole, after a crash of the machine too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.files import replacing


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "file").write_text("old")
    seen: list[tuple[Path, str]] = []
    real = os.fsync

    def watched(opened: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{opened}")), path.read_text()))
        real(opened)

    monkeypatch.setattr(os, "fsync", watched)
    with replacing(path) as file:
        file.write_text("new")
    (synced, before), last = seen
    assert (synced.parent, before) == (tmp_path, "old")
    assert last == (tmp_path, "new")
    assert [*tmp_path.iterdir()] == [path]


def test_what_is_not_whole_takes_no_name(tmp_path: Path) -> None:
    (path := tmp_path / "file").write_text("old")
    writing = replacing(path)
    writing.__enter__().write_text("ha")
    assert not writing.__exit__(KeyError, KeyError(), None), "the error is the caller's"
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]
