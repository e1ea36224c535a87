"""Checkpoints: one file, written whole or not at all, holding data and never code.

A checkpoint is a tree of dicts, lists, tuples, tensors, numbers, strings, booleans and None. Its
tensors are stored by safetensors, the rest as JSON in the same file's header; nothing is pickled,
so a checkpoint from a stranger can be read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_HEADER = "robust_agg"


class CheckpointError(ValueError):
    """A file that is no readable checkpoint, or a tree that cannot be stored."""


def save_checkpoint(path: str | os.PathLike[str], tree: Any) -> None:
    """Write ``tree`` to ``path``: to a temporary file beside it, synced, then renamed over it.

    Whoever reads ``path`` sees the old checkpoint or the new one, whenever the process dies.

    Raises:
        CheckpointError: the tree holds something that is neither data nor a tensor.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    outline = _strip(tree, "", tensors)
    try:
        payload = save(tensors, metadata={_HEADER: json.dumps(outline)})
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint: tensors must be of a dtype that safetensors has, found {error.args[0]}"
        ) from error
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; a checkpoint is as readable as any file of the user's.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """The tree that :func:`save_checkpoint` wrote, tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, cut short, or not one of ours.
    """
    try:
        # All at once: `safe_open` opens the file by its name again for the tensors, which may be
        # another one's by then; and its pages would kill the process if someone truncated the file.
        content = Path(path).read_bytes()
        tensors = load(content)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {error}") from error
    header = _metadata(content).get(_HEADER)
    if header is None:
        raise CheckpointError(f"{path}: a checkpoint of robust-agg is required, found none")
    try:
        return _dress(json.loads(header), tensors)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: its outline is wrong") from error


def _metadata(content: bytes) -> dict[str, str]:
    """The texts that a safetensors file, which is whole, has beside its tensors."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return found


def _strip(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``tree`` as JSON, its tensors moved into ``tensors`` under their path."""
    if isinstance(tree, Tensor):
        _check_storable(tree, name)
        # Numbered, for paths can read alike: {"a/b": …} and {"a": {"b": …}}, {1: …} and {"1": …}.
        stored = f"{len(tensors)}:{name}"
        tensors[stored] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": stored}
    if isinstance(tree, dict):
        for key in tree:
            if not _is_scalar(key):
                raise CheckpointError(
                    f"checkpoint: {name} must have keys that are numbers, strings, booleans or "
                    f"None, found {type(key).__name__}"
                )
        # Keys may be integers, which JSON objects cannot have.
        return {"items": [[k, _strip(v, f"{name}/{k}", tensors)] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_strip(v, f"{name}/{i}", tensors) for i, v in enumerate(tree)]}
    if _is_scalar(tree):
        return tree
    raise CheckpointError(f"checkpoint: {name} must be data, found {type(tree).__name__}")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _check_storable(tensor: Tensor, name: str) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise CheckpointError(
            f"checkpoint: {name} must be a dense tensor with data, "
            f"found {tensor.layout}, {tensor.dtype} on {tensor.device}"
        )


def _dress(outline: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(outline, dict):
        if not _is_scalar(outline):
            raise TypeError(type(outline).__name__)
        return outline
    ((kind, value),) = outline.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: _dress(child, tensors) for key, child in value}
    children = [_dress(child, tensors) for child in value]
    return {"list": list, "tuple": tuple}[kind](children)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_device(state: Any, device: torch.device | str) -> dict[str, Tensor]:
    """A flat state with its vectors of floating numbers on ``device``; counters stay on the CPU."""
    return {
        name: value.to(device) if value.dim() == 1 and value.dtype.is_floating_point else value
        for name, value in state.items()
    }


def check_alike(what: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless both have the same names, shapes and dtypes."""
    for name in sorted(own.keys() | found.keys()):
        a, b = (
            (tuple(tree[name].shape), tree[name].dtype) if name in tree else None
            for tree in (own, found)
        )
        if a != b:
            raise ValueError(
                f"Server: the {what} must be the checkpoint's, which has {name!r} {b}, found {a}"
            )
