"""Penn Treebank as the ranks read it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.cluster.setting import VALIDATION_COLUMNS, Setting
from experiments.language.corpus import Corpus, batches, load
from robust_agg.seeding import derive

Batches = list[tuple[Tensor, Tensor]]
"""Inputs and targets ``(T, B)`` int64."""


class Text(NamedTuple):
    """What a rank reads.

    Attributes:
        words: the size of the vocabulary.
        train: this rank's part of all batches, in the order of the text from a place that the seed
            decides.
        validation: this rank's part, as many batches as any other rank has.
    """

    words: int
    train: Batches
    validation: Batches


def read(setting: Setting, device: torch.device) -> Text:
    """The text for this rank of the default process group.

    Raises:
        DataError: the text is not in ``ROBUST_AGG_DATA``.
    """
    corpus = _corpus(setting.words)
    rank, size = dist.get_rank(), dist.get_world_size()
    own = slice(rank * setting.columns, (rank + 1) * setting.columns)
    every = batches(corpus.train, setting.columns * size, setting.length)
    begin = derive(setting.seed, "first batch") % len(every)
    train = [(x[:, own], y[:, own]) for x, y in every[begin:] + every[:begin]]
    columns = max(VALIDATION_COLUMNS, size)
    tokens = corpus.validation[: setting.validation_words + columns]
    validation = [
        (x[:, rank::size], y[:, rank::size]) for x, y in batches(tokens, columns, setting.length)
    ]
    return Text(
        len(corpus.vocabulary),
        [(x.to(device), y.to(device)) for x, y in train],
        [(x.to(device), y.to(device)) for x, y in validation],
    )


@lru_cache(maxsize=1)
def _corpus(words: int) -> Corpus:
    """Penn Treebank, once for all trainings of a process."""
    return load("ptb", words=words)
