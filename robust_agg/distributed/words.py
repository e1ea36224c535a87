"""Words that ranks send each other when they disagree."""

from __future__ import annotations

import torch
from torch import Tensor

_SENT, _SHOWN = 8192, 300
# Bytes of a text that others get, and letters of it that an error shows.


def as_bytes(text: str) -> Tensor:
    """The beginning of a text, in as many bytes as that of any other."""
    raw = text.encode()[:_SENT]
    return torch.frombuffer(bytearray(raw.ljust(_SENT, b"\0")), dtype=torch.uint8)


def as_text(raw: Tensor) -> str:
    """What :func:`as_bytes` has made bytes of."""
    return raw.numpy().tobytes().rstrip(b"\0").decode(errors="replace")


def around_difference(*texts: str) -> list[str]:
    """The texts, of long ones what is around the first difference."""
    start = 0
    if max(map(len, texts)) > _SHOWN:
        letters = enumerate(zip(*texts, strict=False))
        apart = next((i for i, pair in letters if len(set(pair)) > 1), 0)
        start = max(0, apart - _SHOWN // 3)
    return [
        ("…" if start else "")
        + text[start : start + _SHOWN]
        + ("…" if len(text) > start + _SHOWN else "")
        for text in texts
    ]
