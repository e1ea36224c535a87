"""Trains a small language model with DistributedDataParallel, a process a rank.

    python -m torch.distributed.run --nproc-per-node 4 -m experiments.cluster.ddp --bad 3

An ordinary script. What makes it robust is the line with ``register_comm_hook``; what breaks the
hardware of a rank is the line with ``BitFlips``. It goes on from its last checkpoint: with
``--max-restarts 3`` before ``-m`` a job survives the loss of a rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from experiments.cluster import checkpoint
from experiments.cluster.command import launched, own_device
from experiments.cluster.evidence import KeptEvidence
from experiments.cluster.fault import BitFlips
from experiments.cluster.model import TransformerLM, cross_entropy, mean_loss
from experiments.cluster.outcome import Outcome
from experiments.cluster.setting import Setting
from experiments.cluster.text import read
from robust_agg import Ledger
from robust_agg.distributed import robust_hook


def train(setting: Setting) -> Outcome:
    """Train on all ranks of the default process group, or go on with it.

    Raises:
        RankError: a rank is gone, or stalls.
    """
    rank, device = dist.get_rank(), own_device()
    setting.check_ranks(dist.get_world_size())
    words, batches, validation = read(setting, device)
    torch.manual_seed(setting.seed)
    model = DistributedDataParallel(TransformerLM(words, setting.length).to(device))
    optimizer = setting.optimizer_of(model.parameters())
    outcome = Outcome(setting.out / "losses.json")

    hook = None
    if (rule := setting.rule()) is not None:
        hook = robust_hook(rule, f=setting.f, timeout=setting.timeout, distances=True)
        model.register_comm_hook(*hook)
        ledger = Ledger(setting.out / "ledger.jsonl")
        evidence = KeptEvidence(hook[0], share=setting.share, ledger=ledger)

    if rank in setting.bad:
        stream = setting.bad.index(rank)
        fault = BitFlips(model, probability=setting.flips, seed=setting.seed, stream=stream)

    first = 0
    if (saved := checkpoint.load(setting)) is not None:
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if hook is not None:
            hook[0].load_state_dict(saved["hook"], model)
            evidence.load_state_dict(saved["evidence"])
        first = saved["step"]
        outcome.load(saved["losses"])
    if hook is not None and rank == 0:
        ledger.truncate(first)  # the steps after the checkpoint are done again

    for step in range(first, setting.steps + 1):
        if step % setting.evaluate_every == 0 or step == setting.steps:
            loss = mean_loss(model.module, validation)  # by all ranks, each of which has a part
            if rank == 0:
                outcome.add(step, loss)
        if step == setting.steps:
            break
        if rank in setting.bad:
            fault.at(step)

        optimizer.zero_grad()
        cross_entropy(model, *batches[step % len(batches)]).backward()
        if setting.defence == "clip":
            clip_grad_norm_(model.parameters(), setting.clip)
        optimizer.step()

        if hook is not None:
            evidence.update()
        if (step + 1) % setting.checkpoint_every == 0:
            tree = {
                "step": step + 1,
                "losses": outcome.losses,
                "model": model.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "hook": None if hook is None else hook[0].state_dict(model),  # by all ranks
                "evidence": None if hook is None else evidence.state_dict(),
            }
            if rank == 0:
                checkpoint.save(setting, tree)

    if rank == 0 and hook is not None:
        outcome.suspect(evidence.suspects)
    return outcome


if __name__ == "__main__":
    launched(train)
