"""Compiled code that is kept on disk: found again, and never trusted when it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robust_agg.kernels import llvm, object_cache

pytestmark = pytest.mark.skipif(not llvm.available(), reason="nothing is compiled without llvmlite")


def doubled() -> int:
    """What a newly compiled function makes of 21."""
    f = llvm.Function("doubled", {"cell": "ptr"})
    value = f.let("load i64, ptr %cell")
    f.do(f"store i64 {f.let(f'mul i64 {value}, 2')}, ptr %cell")
    cell = torch.tensor([21])
    llvm.compile_function(f)(cell.data_ptr())
    return int(cell)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUST_AGG_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setattr(llvm, "WORTH_KEEPING", 0.0)
    return tmp_path / "new" / "cache"


def test_code_is_compiled_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doubled() == 42
    (file,) = kept.iterdir()
    before = file.stat().st_mtime_ns

    def write(key: str, code: bytes) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(object_cache, "write", write)
    assert doubled() == 42
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 100])
def test_damaged_code_is_compiled_again(kept: Path, damage: bytes) -> None:
    doubled()
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage + whole[len(damage) : -1] if damage else b"")
    assert doubled() == 42
    assert file.read_bytes() == whole


def test_what_compiles_quickly_is_not_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "WORTH_KEEPING", 60.0)
    assert doubled() == 42
    assert not kept.exists()


def test_without_a_cache_nothing_is_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_AGG_CACHE", "0")
    assert object_cache.folder() is None
    assert doubled() == 42
    assert not kept.exists()


def test_a_folder_that_cannot_be_made_is_no_error(kept: Path) -> None:
    kept.parent.write_text("a file")
    assert doubled() == 42


def test_the_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ROBUST_AGG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert object_cache.folder() == tmp_path / "robust-agg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert object_cache.folder() == tmp_path / ".cache" / "robust-agg"
