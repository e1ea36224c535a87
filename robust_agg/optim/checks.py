"""What an attachment can follow, and what it refuses."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from robust_agg.errors import check_choice, check_instance, shown
from robust_agg.online.block import BlockL2
from robust_agg.online.coordinate import L1
from robust_agg.online.estimator import OnlineMedian
from robust_agg.online.radial import Radial, Squared

Scope = Literal["model", "group"]
"""What is one vector, whose length ‖·‖₂ is: all parameters, or each parameter group."""


def check_attachment(
    optimizer: Optimizer, estimator: OnlineMedian, vector: str, bias_correction: bool
) -> None:
    """Raise ``ValueError``, or ``TypeError`` for no optimizer, unless they go together."""
    given: object = optimizer
    if not isinstance(given, Optimizer):
        raise TypeError(f"OnlineEstimate: optimizer must be a torch one, found {shown(given)}")
    if isinstance(given, LBFGS):
        raise ValueError(
            "OnlineEstimate: optimizer must take one gradient a step, found LBFGS, which "
            "compares several"
        )
    check_instance("OnlineEstimate", "estimator", estimator, OnlineMedian)
    check_instance("OnlineEstimate", "bias_correction", bias_correction, bool)
    check_choice("OnlineEstimate", "vector", vector, get_args(Scope))
    divergence = estimator.divergence
    if not isinstance(divergence, Radial | BlockL2 | L1):
        raise ValueError(
            "OnlineEstimate: the estimator's divergence must be L1, BlockL2 or a Radial one, "
            f"found {type(divergence).__name__}"
        )
    if estimator.iterations != 1:
        raise ValueError(
            f"OnlineEstimate: the estimator's iterations must be 1, found {estimator.iterations}"
        )
    if bias_correction and not isinstance(divergence, Squared):
        raise ValueError(
            "OnlineEstimate: bias_correction must be False unless the estimator is a Momentum, "
            f"found {estimator.name}"
        )


def check_gradient(gradient: Tensor | None) -> None:
    """Raise ``ValueError`` unless a gradient, if any, is dense, whole and of a floating dtype."""
    if gradient is None:
        return
    if gradient.layout != torch.strided:
        raise ValueError(
            f"OnlineEstimate: gradients must be dense, found one of layout {gradient.layout} "
            f"and shape {tuple(gradient.shape)}"
        )
    if not gradient.is_floating_point() or gradient.dtype.itemsize < 2:
        raise ValueError(
            "OnlineEstimate: gradients must have a floating dtype of 16 bits or more, "
            f"found {gradient.dtype}"
        )
    if hasattr(gradient, "device_mesh"):
        raise ValueError(
            "OnlineEstimate: gradients must be whole on every rank, "
            f"found a shard, {type(gradient).__name__}"
        )
