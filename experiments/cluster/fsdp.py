"""Trains a small language model sharded by FSDP2, a process a rank.

    python -m torch.distributed.run --nproc-per-node 4 -m experiments.cluster.fsdp --bad 3

As ``ddp``, with ``fully_shard`` and without checkpoints, so that it always begins anew: what makes
it robust is the line with ``RobustFSDP``.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_

from experiments.cluster import checkpoint
from experiments.cluster.command import launched, own_device
from experiments.cluster.fault import BitFlips
from experiments.cluster.model import TransformerLM, cross_entropy, mean_loss
from experiments.cluster.outcome import Outcome
from experiments.cluster.setting import Setting
from experiments.cluster.text import read
from experiments.config import ConfigError
from robust_agg import Ledger
from robust_agg.distributed import Evidence
from robust_agg.distributed.fsdp import RobustFSDP


def train(setting: Setting) -> Outcome:
    """Train on all ranks of the default process group.

    Raises:
        ConfigError: the folder holds a training of ddp.
        RankError: a rank is gone, or stalls.
    """
    rank, device = dist.get_rank(), own_device()
    setting.check_ranks(dist.get_world_size())
    if (setting.out / checkpoint.NAME).exists():
        raise ConfigError(f"out: {setting.out} holds a training of ddp, found that of fsdp")
    words, batches, validation = read(setting, device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    torch.manual_seed(setting.seed)
    model = TransformerLM(words, setting.length).to(device)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = setting.optimizer_of(model.parameters())
    outcome = Outcome(setting.out / "losses.json")

    robust = None
    if (rule := setting.rule()) is not None:
        robust = RobustFSDP(model, rule, f=setting.f, timeout=setting.timeout, distances=True)
        ledger = Ledger(setting.out / "ledger.jsonl")
        if rank == 0:
            ledger.truncate(0)  # of what was begun here before
        evidence = Evidence(robust, share=setting.share, ledger=ledger)

    if rank in setting.bad:
        stream = setting.bad.index(rank)
        fault = BitFlips(model, probability=setting.flips, seed=setting.seed, stream=stream)

    for step in range(setting.steps + 1):
        if step % setting.evaluate_every == 0 or step == setting.steps:
            loss = mean_loss(model, validation)  # by all ranks, each of which has a part
            if rank == 0:
                outcome.add(step, loss)
        if step == setting.steps:
            break
        if rank in setting.bad:
            fault.at(step)

        optimizer.zero_grad()
        cross_entropy(model, *batches[step % len(batches)]).backward()
        if robust is not None:
            robust.finish()
            evidence.update()
        if setting.defence == "clip":
            clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()

    if rank == 0 and robust is not None:
        outcome.suspect(evidence.suspects)
    return outcome


if __name__ == "__main__":
    launched(train)
