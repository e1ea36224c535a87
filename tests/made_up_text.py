"""A text in the place of Penn Treebank: small, made up, and such that a model learns something."""

from __future__ import annotations

from pathlib import Path

import torch


def write_ptb(root: Path) -> None:
    """Make ``root/ptb`` with all three parts, of 300 different words."""
    (root / "ptb").mkdir()
    for seed, (part, count) in enumerate({"train": 2000, "valid": 200, "test": 20}.items()):
        (root / "ptb" / f"ptb.{part}.txt").write_text(_lines(count, seed))


def _lines(count: int, seed: int) -> str:
    """Lines of 20 words, some frequent, half of them followed by the same one each time."""
    draw = torch.Generator().manual_seed(seed)
    words = (300 * torch.rand(20 * count, generator=draw) ** 3).long()
    again = torch.rand(20 * count, generator=draw) < 0.5
    words[1:] = torch.where(again[1:], (words[:-1] * 7 + 1) % 300, words[1:])
    texts = [f"w{word}" for word in words.tolist()]
    return "".join(" ".join(texts[i : i + 20]) + "\n" for i in range(0, len(texts), 20))
