"""The text that all trainings of these tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_text import write_ptb

from experiments.data import DATA_VARIABLE


@pytest.fixture(scope="session")
def ptb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds ptb/."""
    root = tmp_path_factory.mktemp("data")
    write_ptb(root)
    return root


@pytest.fixture(autouse=True)
def data(ptb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(ptb))
