"""Real data sets as tensors, with fixed train, validation and test splits.

``digits`` needs no file; ``mnist`` reads IDX files from a folder or downloads them. The splits are
part of the data set: they depend on no run's seed, so two runs always compare on the same samples.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NAMES = ("digits", "mnist")
"""The names :func:`load` knows."""

DATA_VARIABLE = "ROBUST_AGG_DATA"
"""Environment variable: the folder that holds ``mnist/``, ``ptb/`` and ``wikitext-2/``."""

MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# Of the compressed files as published, SHA-256 where no algorithm is named. A re-packed copy of the
# same images has others, which is why files found in a folder are checked by structure instead.
MNIST_CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
_T10K = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_SPLIT_SEED = 20230
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
"""Mean and standard deviation of the 60,000 training images' pixels, scaled to [0, 1]."""

_EXTRA = "pip install 'robust-agg[experiments]'"
_IDX_DIMENSIONS = [bytes((n,)) for n in range(1, 9)]

PathLike: TypeAlias = str | os.PathLike[str]
Images: TypeAlias = npt.NDArray[np.uint8]
SplitName: TypeAlias = Literal["validation", "test"]
"""What a model can be evaluated on."""


class DataError(ValueError):
    """A data set cannot be provided; the message is one line for the person at the terminal."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their labels: ``inputs`` float32 ``(N, ...)``, ``targets`` int64 ``(N,)``.

    Raises:
        ValueError: dtypes or lengths are others.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        dtypes = (self.inputs.dtype, self.targets.dtype)
        shapes = (tuple(self.inputs.shape), tuple(self.targets.shape))
        if dtypes != (torch.float32, torch.int64) or not shapes[1] or shapes[0][:1] != shapes[1]:
            raise ValueError(
                "Split: inputs must be float32 (N, ...) and targets int64 (N,), "
                f"found {dtypes[0]} {shapes[0]} and {dtypes[1]} {shapes[1]}"
            )

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set; ``note`` says where it came from and how it was split and scaled."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    note: str

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of all samples and labels, in their order."""
        splits = (self.train, self.validation, self.test)
        return fingerprint(tensor for split in splits for tensor in (split.inputs, split.targets))


def fingerprint(tensors: Iterable[Tensor], text: str = "") -> str:
    """Sixteen hexadecimal digits of the SHA-256 of ``text`` and of all numbers in their order."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def load(name: str, *, root: PathLike | None = None) -> Dataset:
    """The data set called ``name``, one of :data:`NAMES`.

    - ``digits``: the 1,797 handwritten 8x8 digits that scikit-learn carries (Alpaydin and Kaynak
      1998), shape (1, 8, 8), pixels scaled to [0, 1], split 1297/200/300.
    - ``mnist``: LeCun et al. 1998, shape (1, 28, 28), pixels scaled to [0, 1] and then standardised
      by :data:`MNIST_MEAN` and :data:`MNIST_STD`. Files are looked for in ``root/mnist``, where
      ``root`` defaults to the variable ``ROBUST_AGG_DATA``; one that is not there is downloaded
      into the user's cache and checked against its published checksum. A folder with the ``t10k``
      files alone is taken as it is: its samples are split 70/10/20 per cent, and ``note`` says so.
      Otherwise 1/12 of the training files becomes the validation split (55,000/5,000/10,000).
      Files in a folder are the user's own: their structure is checked, their checksum is not.

    Every split is stratified: a class has its share of each part, to within a few samples.

    Raises:
        DataError: unknown name, missing folder, damaged file, failed download or missing package.
    """
    if name == "digits":
        return _digits()
    if name == "mnist":
        return _mnist(data_folder("mnist", root))
    raise DataError(f"load: name must be one of {', '.join(NAMES)}, found {name!r}")


loaded: Callable[[str], Dataset] = lru_cache(load)
"""A dataset, read once a process."""


def stratified_split(
    targets: Tensor, sizes: tuple[int, ...], generator: torch.Generator
) -> list[Tensor]:
    """Disjoint ascending index tensors of exactly ``sizes``, covering all of ``targets`` ``(N,)``.

    Sorted by label (at random within one), every part takes evenly spaced samples of what the parts
    before it left: each class is shared in proportion, with at most one sample off a part.

    Raises:
        ValueError: ``sizes`` do not add up to N, or one is below 1.
    """
    if sum(sizes) != len(targets) or min(sizes, default=0) < 1:
        raise ValueError(
            "stratified_split: sizes must be positive and add up to the samples, "
            f"found sizes={sizes}, samples={len(targets)}"
        )
    order = torch.randperm(len(targets), generator=generator)
    order = order[torch.argsort(targets[order], stable=True)]
    parts = []
    for size in sizes[:-1]:
        steps = torch.arange(len(order) + 1) * size // len(order)
        taken = steps[1:] > steps[:-1]
        parts.append(order[taken].sort().values)
        order = order[~taken]
    return [*parts, order.sort().values]


def parse_idx(payload: bytes, source: str) -> Images:
    """The array in ``payload``, an uncompressed IDX file of unsigned bytes.

    Layout: two zero bytes, a type byte (8: unsigned byte), the number of dimensions (here at most
    8), one big-endian uint32 for each, then exactly their product of bytes, here at least one.
    ``source`` names the file in errors.

    Raises:
        DataError: any of these does not hold.
    """
    if payload[:3] != bytes((0, 0, 8)) or payload[3:4] not in _IDX_DIMENSIONS:
        raise DataError(
            f"{source}: an IDX file of unsigned bytes starts with 00 00 08 and 01 to 08 "
            f"dimensions, found {payload[:4].hex(' ') or 'nothing'}"
        )
    header = 4 + 4 * payload[3]
    if len(payload) < header:
        raise DataError(f"{source}: the IDX header takes {header} bytes, found {len(payload)}")
    shape = tuple(int(n) for n in np.frombuffer(payload, ">u4", payload[3], offset=4))
    expected = header + math.prod(shape)
    if len(payload) != expected or 0 in shape:
        raise DataError(f"{source}: shape {shape} takes {expected} bytes, found {len(payload)}")
    return np.frombuffer(payload, np.uint8, offset=header).reshape(shape)


def read_idx(path: Path) -> Images:
    """The array in the gzip-compressed IDX file at ``path``.

    Raises:
        DataError: the file cannot be read or decompressed, or :func:`parse_idx` refuses it.
    """
    try:
        with gzip.open(path) as file:
            payload = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable gzip file ({_one_line(error)})") from None
    return parse_idx(payload, str(path))


def read_mnist_pair(images_path: Path, labels_path: Path) -> Split:
    """The standardised images ``(N, 1, 28, 28)`` and labels ``(N,)`` of two MNIST files.

    Raises:
        DataError: a file is damaged, or the two are no MNIST images and labels of one length.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"mnist: {images_path.name} must be (N, 28, 28) and {labels_path.name} (N,), "
            f"found {images.shape} and {labels.shape} in {images_path.parent}"
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path}: labels must be 0 to 9, found {labels.max()}")
    scaled = torch.from_numpy(images.astype(np.float32)).div_(255)
    inputs = scaled.sub_(MNIST_MEAN).div_(MNIST_STD).unsqueeze(1)
    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _divide(split: Split, sizes: tuple[int, ...]) -> list[Split]:
    if min(sizes) < 1:
        raise DataError(f"mnist: {len(split)} samples are too few to split into {sizes}")
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    parts = stratified_split(split.targets, sizes, generator)
    return [Split(split.inputs[part], split.targets[part]) for part in parts]


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(f"digits: the images come with scikit-learn, run: {_EXTRA}") from None
    bunch = load_digits()
    inputs = torch.from_numpy(bunch.images.astype(np.float32)).div_(16).unsqueeze(1)
    whole = Split(inputs, torch.from_numpy(bunch.target.astype(np.int64)))
    train, validation, test = _divide(whole, (len(whole) - 500, 200, 300))
    note = f"scikit-learn's digits, {_sizes(train, validation, test)}, pixels in [0, 1]"
    return Dataset("digits", train, validation, test, 10, (1, 8, 8), note)


def data_folder(name: str, root: PathLike | None) -> Path | None:
    """``root/name``, with ``root`` from :data:`DATA_VARIABLE` if None; None where neither is given.

    Raises:
        DataError: ``root`` is no folder.
    """
    given, origin = root, "root"
    if given is None:
        given, origin = os.environ.get(DATA_VARIABLE, ""), DATA_VARIABLE
        if not given:
            return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{name}: {origin} must be an existing folder that holds {name}/, found {str(folder)!r}"
        )
    return folder / name


def _mnist(folder: Path | None) -> Dataset:
    if folder is not None and {n for n in MNIST_CHECKSUMS if (folder / n).is_file()} == {*_T10K}:
        whole = read_mnist_pair(*(folder / name for name in _T10K))
        tenth = len(whole) // 10
        parts = _divide(whole, (len(whole) - 3 * tenth, tenth, 2 * tenth))
        note = (
            f"MNIST's {len(whole)} t10k images alone (no training files beside them), "
            f"{_sizes(*parts)} drawn from them with a fixed seed: not the standard test set"
        )
        return _mnist_dataset(parts, note)
    files = [_locate(name, folder) for name in (*_TRAIN, *_T10K)]
    whole, test = read_mnist_pair(*files[:2]), read_mnist_pair(*files[2:])
    validation = len(whole) // 12
    parts = [*_divide(whole, (len(whole) - validation, validation)), test]
    note = f"MNIST, {_sizes(*parts)}, validation drawn from the training files with a fixed seed"
    return _mnist_dataset(parts, note)


def _mnist_dataset(parts: list[Split], note: str) -> Dataset:
    note += f"; pixels standardised by mean {MNIST_MEAN} and standard deviation {MNIST_STD}"
    train, validation, test = parts
    return Dataset("mnist", train, validation, test, 10, (1, 28, 28), note)


def _sizes(train: Split, validation: Split, test: Split) -> str:
    return f"train/validation/test {len(train)}/{len(validation)}/{len(test)}"


def _locate(name: str, folder: Path | None) -> Path:
    if folder is not None and (folder / name).is_file():
        return folder / name
    where = f"not in {folder}" if folder else f"in no folder ({DATA_VARIABLE} is not set)"
    return download(MNIST_MIRROR + name, MNIST_CHECKSUMS[name], f"mnist: {name} is {where}")


def download(url: str, checksum: str, context: str) -> Path:
    """The file at ``url`` in the user's cache, downloaded unless there with this ``checksum``.

    ``checksum`` is ``algorithm:hex``, or hex alone for SHA-256; ``context`` opens the error: which
    file, and where it was sought.

    Raises:
        DataError: no network, no such file, another checksum, or pooch is not installed.
    """
    remedy = f"put the IDX files in a folder mnist/ and set {DATA_VARIABLE} to its parent"
    try:
        import pooch
    except ImportError:
        raise DataError(f"{context}, and downloading needs pooch; {_EXTRA}, or {remedy}") from None
    cache = Path(pooch.os_cache("robust-agg")) / "mnist"
    try:
        return Path(pooch.retrieve(url, checksum, fname=url.rpartition("/")[2], path=cache))
    except OSError as error:
        # Only the type: requests' text runs over pools, retries and object addresses.
        reason = type(error).__name__
    except ValueError as error:
        reason = _one_line(error)
    raise DataError(f"{context}, and downloading {url} into {cache} failed ({reason}); {remedy}")
