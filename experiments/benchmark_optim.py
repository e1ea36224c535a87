"""How much an online estimate adds to an optimizer step.

    python -m experiments.benchmark_optim

For each estimator the time of ``SGD(momentum=0)`` with the estimate attached, beside that of
``SGD(momentum=0.9)`` without, both at ``foreach=True``, in one process and in turns. New gradients
are copied into ``.grad`` before each step, and that is not timed. Other processes only ever add to
a time, so that the ratio is that of the fastest turns; the median of the turns' own ratios stands
beside it. With one thread it is the time of this process alone that is taken.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.provenance import where
from robust_agg import (
    Adaptive,
    AdaptiveMomentum,
    BlockL2,
    CClip,
    Huber,
    Momentum,
    OnlineMedian,
    SignedIncrement,
    VClip,
)
from robust_agg.optim import OnlineEstimate


def shapes(parameters: int) -> list[tuple[int, ...]]:
    """Ten square layers with biases, of about so many parameters."""
    width = max(1, round((parameters / 10) ** 0.5))
    return [(width, width), (width,)] * 10


class Trained:
    """Parameters with an optimizer, and the gradients that it is given in turn."""

    def __init__(self, sizes: list[tuple[int, ...]], gradients: list[list[Tensor]]) -> None:
        self.parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.gradients = gradients
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-3, foreach=True)

    def seconds(self, turn: int) -> float:
        """The time of one step."""
        chosen = self.gradients[turn % len(self.gradients)]
        for parameter, gradient in zip(self.parameters, chosen, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        begun = clock()
        self.optimizer.step()
        return clock() - begun


def estimators(sizes: list[tuple[int, ...]], scale: float) -> dict[str, tuple[OnlineMedian, bool]]:
    """Every estimator, with whether its bias is corrected; ``scale`` is a usual ‖g - m‖₂."""
    lengths = tuple(torch.Size(size).numel() for size in sizes)
    entry = scale / sum(lengths) ** 0.5
    return {
        "Momentum, eq. 7": (Momentum(beta=0.9), False),
        "Momentum, eq. 11": (Momentum(beta=0.9, method="prox"), False),
        "Momentum, bias corrected": (Momentum(beta=0.9), True),
        "VClip": (VClip(tau=0.1 * scale), False),
        "VClip, adaptive": (VClip(tau=Adaptive()), False),
        "CClip": (CClip(tau=0.1 * entry), False),
        "CClip, adaptive": (CClip(tau=Adaptive()), False),
        "SignedIncrement": (SignedIncrement(tau=0.1 * entry), False),
        "AdaptiveMomentum": (AdaptiveMomentum(tau=0.1 * scale), False),
        "Huber": (OnlineMedian(divergence=Huber(delta=scale), tau=0.1), False),
        "BlockL2, a block a tensor": (
            OnlineMedian(divergence=BlockL2(lengths), tau=0.1 * scale),
            False,
        ),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="experiments.benchmark_optim")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    sizes = shapes(given.parameters)
    draw = torch.Generator().manual_seed(0)
    gradients = [[torch.randn(size, generator=draw) for size in sizes] for _ in range(2)]
    count = sum(torch.Size(size).numel() for size in sizes)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(where(), highlight=False)

    table = Table(
        title=f"A step of SGD of {count:,} float32 parameters by an online estimate, "
        "beside SGD(momentum=0.9)"
    )
    for heading in ("estimate", "ms", "x SGD(momentum=0.9)", "median of turns"):
        table.add_column(heading, justify="left" if heading == "estimate" else "right")
    rows: dict[str, tuple[OnlineMedian, bool] | None] = {"none, momentum 0": None}
    rows.update(estimators(sizes, count**0.5))
    for name, attached in rows.items():
        # Both anew for each row: memory that has been in use for long is in larger pages.
        trained, beside = Trained(sizes, gradients), Trained(sizes, gradients)
        beside.optimizer = torch.optim.SGD(beside.parameters, lr=1e-3, momentum=0.9, foreach=True)
        if attached is not None:
            estimator, corrected = attached
            OnlineEstimate(trained.optimizer, estimator, bias_correction=corrected)
        turns = range(-2, given.turns)  # the first two allocate
        times = [(trained.seconds(turn), beside.seconds(turn)) for turn in turns][2:]
        own, other = (min(column) for column in zip(*times, strict=True))
        usual = median(ours / theirs for ours, theirs in times)
        table.add_row(name, f"{1e3 * own:.1f}", f"{own / other:.2f}", f"{usual:.2f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
