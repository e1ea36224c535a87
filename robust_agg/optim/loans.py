"""What ``.grad`` is within a step of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from robust_agg import torch_compat
from robust_agg.optim import passes

READERS = (SGD, Adam, AdamW)
"""Optimizers that only read the gradient, but for the options below."""

WRITING_OPTIONS = ("nesterov", "fused", "differentiable")


class _Loan(NamedTuple):
    parameter: nn.Parameter
    gradient: Tensor
    handed: Tensor
    version: int


class Loans:
    """The estimates in place of the gradients, from :meth:`begin` to :meth:`end`.

    An optimizer known to only read ``.grad`` gets m itself, which saves a pass over memory. Any
    other gets a copy: some write to it (SGD with Nesterov's momentum), and m must outlive that.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._open: list[_Loan] = []
        self._copies: dict[nn.Parameter, Tensor] = {}

    def begin(self, parameters: Sequence[nn.Parameter], estimates: Sequence[Tensor]) -> None:
        """Let every ``.grad`` be the estimate, in its own dtype."""
        lends = self._lends()
        copied: list[tuple[Tensor, Tensor]] = []
        for parameter, m in zip(parameters, estimates, strict=True):
            gradient = cast(Tensor, parameter.grad)
            handed = m
            if not lends or m.dtype != gradient.dtype:
                handed = self._copy_of(parameter, gradient)
                copied.append((m, handed))
            self._open.append(_Loan(parameter, gradient, handed, torch_compat.version(m)))
            parameter.grad = handed
        if copied:
            passes.copy(*(list(column) for column in zip(*copied, strict=True)))

    def end(self, estimates: Mapping[nn.Parameter, Tensor]) -> None:
        """Put the gradients back where they were.

        Raises:
            RuntimeError: an estimate was written to.
        """
        loans, self._open = self._open, []
        written: list[Tensor] = []
        for parameter, gradient, handed, version in loans:
            if parameter.grad is not None:  # as by a hook that means it
                parameter.grad = gradient
            if handed is estimates.get(parameter) and torch_compat.version(handed) != version:
                written.append(handed)
        if written:
            raise RuntimeError(
                "OnlineEstimate: the estimate must only be read within a step, "
                f"found one of shape {tuple(written[0].shape)} that was written to"
            )

    def _copy_of(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        kept = self._copies.get(parameter)
        if kept is None or kept.dtype != gradient.dtype or kept.shape != gradient.shape:
            # Kept from step to step: new memory costs more than what is written to it.
            kept = self._copies[parameter] = torch.empty_like(gradient)
        return kept

    def _lends(self) -> bool:
        return (
            type(self.optimizer) in READERS
            # A hook may clip or zero what it finds.
            and not torch_compat.has_step_hooks(self.optimizer)
            and not any(
                group.get(option)
                for group in self.optimizer.param_groups
                for option in WRITING_OPTIONS
            )
        )
