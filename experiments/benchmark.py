"""How fast: the geometric median beside the plain loop, and a thousand workers in one process.

    python -m experiments.benchmark

Both parts print what they measured with the machine and the commit. Times are medians of repeats
in this process, beside ``rows.sum()``, which reads the rows once: ratios carry over to another
machine better than milliseconds do.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, pairwise
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.data import DataError, load
from experiments.models import MLP
from experiments.provenance import where
from robust_agg import GeometricMedian, Server
from robust_agg.seeding import generator
from workers.host import HostSpec
from workers.inline import InlineHosts
from workers.worker import LogicalWorker, Shard

LIMIT = 100
"""Steps after which a loop counts as not converging."""

TARGET = 1e-6
"""Relative error against float64 at which both methods stop."""


def weiszfeld(rows: Tensor, y: Tensor, norms: torch.dtype) -> Iterator[Tensor]:
    """Weiszfeld's iteration as one writes it in torch: every step passes over the rows.

    ``norms`` is the dtype in which norms are summed: in float32 their rounding, over a million
    coordinates, can keep the iteration from ever coming within 1e-6.
    """
    while True:
        yield y
        weights = 1 / torch.linalg.vector_norm(rows - y, dim=1, dtype=norms)
        y = (weights / weights.sum()).to(rows.dtype) @ rows


def plain_loop(rows: Tensor, norms: torch.dtype, steps: int) -> Tensor:
    """So many steps from the mean."""
    return next(islice(weiszfeld(rows, rows.mean(dim=0), norms), steps, None))


def exact_median(rows: Tensor) -> Tensor:
    """The geometric median in float64, by the same iteration to a relative step of 1e-11."""
    rows = rows.double()
    steps = pairwise(weiszfeld(rows, rows.mean(dim=0), torch.float64))
    for before, after in islice(steps, LIMIT):
        if float((after - before).norm() / after.norm()) < 1e-11:
            return after
    raise RuntimeError("the float64 reference did not converge")


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    return median(times)


def geometric_medians(console: Console, n: int, d: int, repeats: int) -> bool:
    """The first part; whether the library reached the target on all rows."""
    table = Table(title=f"Geometric median of {n} rows of {d:,} float32, to {TARGET} of float64")
    for heading in (
        "rows",
        "method",
        "steps",
        "relative error",
        "ms",
        "x read",
        "x ours",
    ):
        table.add_column(heading, justify="left" if heading in ("rows", "method") else "right")
    reached = True
    gaussian = torch.randn(n, d, generator=generator(0, "benchmark"))
    far = gaussian.clone()
    far[torch.randperm(n, generator=generator(1, "benchmark"))[: 10 * n // 32]] += 1e3 / d**0.5
    for name, rows in (("Gaussian", gaussian), ("10 of 32 at distance 1e3", far)):
        exact = exact_median(rows)
        read = milliseconds(rows.sum, repeats)
        ours = milliseconds(partial(GeometricMedian(), rows), repeats)
        why = GeometricMedian().explain(rows)
        assert why.solver is not None
        # What is timed is what is measured.
        assert torch.equal(why.output, GeometricMedian()(rows))
        error = relative_error(why.output, exact)
        reached = reached and error <= TARGET
        lines = [("GeometricMedian()", str(why.solver.iterations), error, ours)]
        for norms in (torch.float64, torch.float32):
            steps, error = steps_to_target(rows, exact, norms)
            taken = milliseconds(partial(plain_loop, rows, norms, steps), repeats)
            label = f"plain loop, norms in {norms}".replace("torch.", "")
            lines.append((label, f"{steps}{'' if error <= TARGET else ' (stalls)'}", error, taken))
        for label, shown, gap, taken in lines:
            numbers = (f"{gap:.1e}", f"{taken:.1f}", f"{taken / read:.1f}", f"{taken / ours:.1f}")
            table.add_row(name, label, shown, *numbers)
    console.print(table)
    return reached


def relative_error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


def steps_to_target(rows: Tensor, exact: Tensor, norms: torch.dtype) -> tuple[int, float]:
    """The fewest steps to the target, or to within 1 % of the error where the loop stalls."""
    errors: list[float] = []
    for y in islice(weiszfeld(rows, rows.mean(dim=0), norms), LIMIT):
        errors.append(relative_error(y, exact))
        stalls = len(errors) > 2 and errors[-1] > 0.99 * errors[-2]
        if errors[-1] <= TARGET or stalls:
            break
    best = min(range(len(errors)), key=errors.__getitem__)
    return best, errors[best]


def many_workers(console: Console, workers: int, rounds: int) -> None:
    """The second part: whole rounds of many logical workers in this process."""
    model = MLP(hidden=(100,))
    inputs, targets, note = _images()
    draw = generator(2, "benchmark")
    logical = []
    for i in range(workers):
        chosen = torch.randint(len(inputs), (32,), generator=draw)
        logical.append(LogicalWorker(id=i, shard=Shard(inputs[chosen], targets[chosen])))

    def build() -> nn.Module:
        return model.build(tuple(inputs.shape[1:]), 10, generator(3, "benchmark"))

    network = build()
    server = Server(
        network,
        torch.optim.SGD(network.parameters(), lr=0.1),
        GeometricMedian(),
        f=workers // 5,
        device="cpu",
    )
    spec = HostSpec(
        workers=tuple(logical),
        model=build,
        loss=nn.functional.cross_entropy,
        seed=0,
        batch_size=32,
        threads=torch.get_num_threads(),
    )
    table = Table(
        title=f"{workers:,} workers, 784-100-10 MLP ({server.parameters().numel():,} parameters), "
        "batches of 32, geometric median, one process",
        caption=note,
    )
    for heading in ("round", "gradients s", "admit s", "aggregate s", "step s", "round s"):
        table.add_column(heading, justify="right")
    with InlineHosts([spec]) as transport:
        for number in range(rounds):
            begun = time.perf_counter()
            collection = transport.collect(number, server.parameters())
            record = server.step(
                collection.updates, senders=transport.workers, refused=collection.refused
            )
            total = time.perf_counter() - begun
            assert record.skipped is None, record.skipped
            stages = [record.seconds[name] for name in ("admit", "aggregate", "step")]
            cells = [collection.seconds, *stages, total]
            table.add_row(str(number), *(f"{value:.3f}" for value in cells))
    console.print(table)
    console.print(f"peak memory of this process, imports included: {peak_gigabytes():.2f} GB")


def _images() -> tuple[Tensor, Tensor, str]:
    try:
        data = load("mnist")
    except DataError as error:
        draw = generator(4, "benchmark")
        inputs = torch.rand(10_000, 1, 28, 28, generator=draw)
        targets = torch.randint(10, (10_000,), generator=draw)
        return inputs, targets, f"random pixels, for want of images: {error}"
    return data.train.inputs, data.train.targets, "images of MNIST"


def peak_gigabytes() -> float:
    """The largest resident set so far; ``ru_maxrss`` is in KiB, on macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="experiments.benchmark")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    small = parser.parse_args(arguments).small
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(where(), highlight=False)
    # The thousand workers first: their peak memory would otherwise be that of the first part.
    many_workers(console, workers=50 if small else 1000, rounds=2 if small else 5)
    reached = geometric_medians(
        console, n=32, d=10_000 if small else 1_000_000, repeats=3 if small else 9
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
