"""What tests of attached estimates share: parameters, a small training, and their oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_agg as ra
from robust_agg.optim import OnlineEstimate

SHAPES = ((3, 4), (5,), (), (2, 3, 2))
D = 30

TABLE: dict[str, Callable[[], ra.OnlineMedian]] = {
    "eq7": lambda: ra.Momentum(beta=0.8),
    "eq11": lambda: ra.Momentum(tau=0.3, method="prox"),
    "vclip": lambda: ra.VClip(tau=1.5),
    "cclip": lambda: ra.CClip(tau=0.4),
    "signed increment": lambda: ra.SignedIncrement(tau=0.3),
    "adaptive momentum": lambda: ra.AdaptiveMomentum(tau=0.9),
    "huber": lambda: ra.OnlineMedian(divergence=ra.Huber(delta=2.0), tau=0.7),
    "huber, subgradient": lambda: ra.OnlineMedian(
        divergence=ra.Huber(delta=2.0), tau=0.3, method="subgradient"
    ),
    "blocks": lambda: ra.OnlineMedian(divergence=ra.BlockL2((12, 5, 1, 12)), tau=0.8),
    "blocks across": lambda: ra.OnlineMedian(divergence=ra.BlockL2((4, 16, 10)), tau=0.8),
    "vclip, adaptive": lambda: ra.VClip(tau=ra.Adaptive(rho=0.3, window=5)),
    "cclip, adaptive": lambda: ra.CClip(tau=ra.Adaptive(quantile=0.55, window=20)),
    "signed, adaptive": lambda: ra.SignedIncrement(),
    "huber, adaptive": lambda: ra.OnlineMedian(divergence=ra.Huber(delta=2.0)),
    "blocks, adaptive": lambda: ra.OnlineMedian(divergence=ra.BlockL2((12, 5, 1, 12))),
}


def parameters(
    shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def heavy_tailed(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Student's t with two degrees of freedom around 1."""
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    squares = torch.rand(shape, generator=generator, dtype=torch.float64).log().neg()
    return (1 + normal / squares.sqrt()).to(dtype)


def give(chosen: Sequence[nn.Parameter], generator: torch.Generator) -> None:
    for parameter in chosen:
        parameter.grad = heavy_tailed(tuple(parameter.shape), generator, parameter.dtype)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One row; the dtype is the widest."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])


def gradients(chosen: Sequence[nn.Parameter]) -> list[Tensor]:
    found = []
    for parameter in chosen:
        assert parameter.grad is not None
        found.append(parameter.grad)
    return found


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimates(estimate: OnlineEstimate, chosen: Sequence[nn.Parameter]) -> Tensor:
    return flat([estimate.of(parameter) for parameter in chosen])


class Oracle:
    """``estimator.step`` on the gradients of some parameters as one row."""

    def __init__(self, estimator: ra.OnlineMedian, chosen: Sequence[nn.Parameter]) -> None:
        self.estimator = estimator
        self.state = estimator.init(flat(chosen))

    def step(self, row: Tensor) -> Tensor:
        _, self.state = self.estimator.step(row[None], self.state)
        return self.m

    @property
    def m(self) -> Tensor:
        return self.state["estimate"]


# --- a training of six steps ------------------------------------------------------------

ROUNDS = 6
LR = 0.1


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    generator = draw()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return made


def data() -> TensorDataset:
    """Targets with heavy tails."""
    generator = draw(1)
    inputs = torch.randn(8 * ROUNDS, 6, generator=generator)
    noise = torch.randn(8 * ROUNDS, generator=generator) / torch.randn(
        8 * ROUNDS, generator=generator
    )
    return TensorDataset(inputs, inputs.sum(dim=1) + noise)


def batches() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=8)


def loss_of(network: Callable[[Tensor], Tensor], batch: list[Tensor]) -> Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(network(inputs)[:, 0], targets)


def by_hand(estimator: ra.OnlineMedian, rates: list[float]) -> list[Tensor]:
    """Eq. 17 with the estimator itself: the parameters after each round."""
    network = model()
    chosen = list(network.parameters())
    oracle = Oracle(estimator, chosen)
    path = []
    for rate, batch in zip(rates, batches(), strict=True):
        network.zero_grad()
        loss_of(network, batch).backward()
        m = oracle.step(flat(gradients(chosen)))
        with torch.no_grad():
            for parameter, part in zip(chosen, m.split([p.numel() for p in chosen]), strict=True):
                parameter -= rate * part.view_as(parameter)
        path.append(flat(chosen).clone())
    return path
