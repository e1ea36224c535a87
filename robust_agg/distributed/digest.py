"""Digests that ranks exchange as tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

DIGEST_BYTES = hashlib.sha256().digest_size


def digest(raw: bytes) -> Tensor:
    """The SHA-256 of some bytes, ``(4,)`` numbers of 64 bits."""
    return torch.frombuffer(bytearray(hashlib.sha256(raw).digest()), dtype=torch.int64)
