"""Where a training goes on: at the same step on all ranks, with what is as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from experiments.cluster.command import own_device
from experiments.cluster.setting import Setting
from experiments.config import ConfigError
from robust_agg.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

NAME = "checkpoint.safetensors"
_KEYS = ("setting", "step", "losses", "evidence", "model", "optimizer", "hook")


def save(setting: Setting, tree: Mapping[str, Any]) -> None:
    """Keep a training: the values of ``step``, ``losses``, ``evidence``, ``model``, …"""
    kept = {"setting": setting.kept(dist.get_world_size()), **tree}
    assert kept.keys() == set(_KEYS)
    save_checkpoint(setting.out / NAME, kept)


def load(setting: Setting) -> dict[str, Any] | None:
    """What was kept; None where nothing was. All ranks of the default process group call it.

    Raises:
        CheckpointError: the file is none of ours.
        ConfigError: it is of another training, or of a later step than the last one; or the ranks
            find different ones, or have different options.
    """
    path = setting.out / NAME
    saved: dict[str, Any] | None = None
    if path.exists():
        saved = _checked(load_checkpoint(path), setting)
    _compare(setting, 0 if saved is None else saved["step"])
    return saved


def _checked(tree: Any, setting: Setting) -> dict[str, Any]:
    found = tree if isinstance(tree, dict) else {}
    for key in _KEYS:
        if key not in found:
            raise CheckpointError(
                f"out: {setting.out / NAME} must be a checkpoint of ddp, found one without {key!r}"
            )
    setting.check_continues(found["setting"], dist.get_world_size())
    if found["step"] > setting.steps:
        raise ConfigError(
            f"steps must be at least the checkpoint's {found['step']}, found {setting.steps}"
        )
    return found


def _compare(setting: Setting, step: int) -> None:
    """Raise on all ranks unless all begin with the same step, and with the same options."""
    options = repr(setting.options(dist.get_world_size())).encode()
    digest = int.from_bytes(hashlib.sha256(options).digest()[:7], "big")
    own = torch.tensor([step, digest], device=own_device())
    each = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(each, own)
    (first, same), *others = (found.tolist() for found in each)
    for rank, (other, digest) in enumerate(others, start=1):
        if other != first:
            raise ConfigError(
                f"out must be a folder that all machines share, found one that holds step {first} "
                f"on rank 0 and one that holds step {other} on rank {rank}"
            )
        if digest != same:
            raise ConfigError(
                f"all ranks must have the options of rank 0, found others on rank {rank}"
            )
