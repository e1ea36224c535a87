"""What a step takes with each defence, in turns and in the same processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from experiments.cluster.command import own_device
from experiments.cluster.model import TransformerLM, cross_entropy
from experiments.cluster.setting import Setting
from experiments.cluster.text import read
from robust_agg.distributed import Evidence, robust_hook

WARM = 3
"""Turns that do not count: buckets are formed anew after the first, kernels compiled."""


def in_turns(settings: Sequence[Setting], turns: int) -> list[dict[str, float]]:
    """Seconds of a step by defence, for each turn; on all ranks of the default process group."""
    steps = {setting.defence: _step(setting) for setting in settings}
    times = [{name: _seconds(step, turn) for name, step in steps.items()} for turn in range(turns)]
    return times[WARM:] or times


def _seconds(step: Callable[[int], None], turn: int) -> float:
    dist.barrier()
    begun = time.perf_counter()
    step(turn)
    dist.barrier()
    return time.perf_counter() - begun


def _step(setting: Setting) -> Callable[[int], None]:
    """A step as the script takes it: forward, backward, defence, optimizer."""
    device = own_device()
    words, batches, _ = read(setting, device)
    torch.manual_seed(setting.seed)
    model = DistributedDataParallel(TransformerLM(words, setting.length).to(device))
    optimizer = setting.optimizer_of(model.parameters())
    if (rule := setting.rule()) is not None:
        # Those of all models are used in turns, and need a name each.
        hook = robust_hook(rule, f=setting.f, distances=True, name=f"hook {setting.defence}")
        model.register_comm_hook(*hook)
        evidence = Evidence(hook[0], share=setting.share)

    def step(number: int) -> None:
        optimizer.zero_grad()
        cross_entropy(model, *batches[number % len(batches)]).backward()
        if setting.defence == "clip":
            clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()
        if rule is not None:
            evidence.update()

    return step
