"""The benchmark of attached estimates runs, with a row for each."""

from __future__ import annotations

import pytest
import torch

from experiments import benchmark_optim


def test_it_runs_small(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert benchmark_optim.main(["--parameters", "2000", "--turns", "2", "--threads", "1"]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    for name in benchmark_optim.estimators(benchmark_optim.shapes(2000), 1.0):
        assert f"│ {name} " in printed
