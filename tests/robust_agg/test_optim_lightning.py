"""The attachment in a training that Lightning runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as lightning
import torch
from optim_models import LR, ROUNDS, batches, by_hand, flat, loss_of, model
from torch import Tensor

import robust_agg as ra
from robust_agg.optim import OnlineEstimate


class Task(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = model()

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.parameters(), lr=LR)
        self.estimate = OnlineEstimate(optimizer, ra.VClip())
        return optimizer


def fit(task: Task, epochs: int, folder: Path, resume: Path | None = None) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, batches(), ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.filterwarnings("ignore")  # of Lightning: that its loaders have few workers
def test_lightning_trains_by_the_estimate_and_resumes_with_it(tmp_path: Path) -> None:
    """Every step of Lightning has a closure, and its checkpoint holds the optimizer's state."""
    first, through, again = Task(), Task(), Task()
    checkpoint = tmp_path / "one.ckpt"
    fit(first, 1, tmp_path).save_checkpoint(checkpoint)
    found = flat(list(first.network.parameters()))
    torch.testing.assert_close(found, by_hand(ra.VClip(), [LR] * ROUNDS)[-1])
    fit(through, 2, tmp_path)
    fit(again, 2, tmp_path, checkpoint)
    assert int(again.estimate.state_dict()["steps.0"]) == 2 * ROUNDS
    resumed, wanted = (flat(list(task.network.parameters())) for task in (again, through))
    assert torch.equal(resumed, wanted)
    assert not torch.equal(resumed, found)
