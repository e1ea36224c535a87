"""The images that whole trainings are measured on."""

from __future__ import annotations

import torch

from experiments.data import DataError, Split, load
from robust_agg.seeding import generator


def images() -> tuple[Split, Split, str]:
    """MNIST to train and to test on; random pixels, which cost as much, where it is not there."""
    try:
        data = load("mnist")
    except DataError as error:
        draw = generator(0, "bench images")
        inputs = torch.rand(10_000, 1, 28, 28, generator=draw)
        split = Split(inputs, torch.randint(10, (10_000,), generator=draw))
        return split, split, f"random pixels, for want of images: {error}"
    return data.train, data.test, data.note
