"""Text as one stream of word numbers, and the ordered batches cut from it.

The pre-processing is Transformer-XL's (Dai et al. 2019), which Kunstner et al. 2023 use for their
Figure 1 and Schaipp et al. 2023 after them: a line is split on blanks and followed by ``<eos>``,
blank lines too; a word's number is its rank by frequency over all parts, ties by first occurrence,
and ``<eos>`` has number 0.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from experiments.data import DATA_VARIABLE, DataError, PathLike, data_folder, fingerprint
from robust_agg.errors import as_integer, check_count, shown

NAMES = ("ptb", "wikitext-2")
"""The names :func:`load` knows."""

EOS = "<eos>"
"""The mark at the end of every line."""
UNK = "<unk>"
"""The word that stands for all words outside the vocabulary."""

_PTB_FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
_WIKITEXT_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Three streams of word numbers, int64 ``(tokens,)``, and the words they stand for.

    ``vocabulary[i]`` is the word with number i; ``note`` says where the text came from and what
    was done to it.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    note: str

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 of the vocabulary and all tokens in order."""
        return fingerprint((self.train, self.validation, self.test), "\n".join(self.vocabulary))


def load(name: str, *, root: PathLike | None = None, words: int | None = None) -> Corpus:
    """The corpus called ``name``, one of :data:`NAMES`, from ``root/name``.

    ``root`` defaults to the variable ``ROBUST_AGG_DATA``; nothing is downloaded.

    - ``ptb``: Penn Treebank as Mikolov et al. 2010 prepared it, lower-cased: 929,589 training
      tokens, 73,760 validation, 82,430 test, a vocabulary of 10,000 with ``<eos>`` and ``<unk>``.
    - ``wikitext-2``: Merity et al. 2017, word level, case and ``<unk>`` kept: 2,088,628 training
      tokens, 217,646 validation, 245,569 test, a vocabulary of 33,278. Where the folder has no
      ``wiki.train.tokens``, the other two parts together become the training stream (463,215
      tokens, a vocabulary of 18,328), validation and test are empty, and ``note`` says so.

    Args:
        name: which corpus.
        root: the folder that holds ``ptb/`` and ``wikitext-2/``.
        words: the size of the vocabulary, ``<eos>`` and ``<unk>`` included; less frequent words
            become ``<unk>``. None keeps all.

    Raises:
        DataError: unknown name, missing folder or file, a file that is no UTF-8 text, or ``words``
            is below 3 or above the vocabulary.
    """
    if name not in NAMES:
        raise DataError(f"load: name must be one of {', '.join(NAMES)}, found {shown(name)}")
    folder = _folder(name, root)
    if name == "ptb":
        texts = [text.lower() for text in _read(folder, _PTB_FILES)]
        note = "Penn Treebank (Mikolov's preprocessing), lower-cased"
    elif (folder / _WIKITEXT_FILES[0]).exists():
        texts = _read(folder, _WIKITEXT_FILES)
        note = "WikiText-2, word level"
    else:
        texts = ["".join(_read(folder, _WIKITEXT_FILES[1:])), "", ""]
        note = (
            "WikiText-2, word level, its validation and test parts together as the training "
            f"stream: no {_WIKITEXT_FILES[0]}, and no held-out part"
        )
    train, validation, test = texts
    return make(name, train, validation, test, words=words, note=note)


def make(
    name: str, train: str, validation: str, test: str, *, words: int | None = None, note: str = ""
) -> Corpus:
    """The corpus of three texts, its vocabulary counted over all of them.

    ``note`` is continued with the sizes.

    Raises:
        DataError: ``words`` is neither None nor an integer from 3 to the number of all words.
    """
    streams = [tokenize(text) for text in (train, validation, test)]
    vocabulary = _vocabulary(name, streams, words)
    numbers = {word: number for number, word in enumerate(vocabulary)}
    unknown = numbers.get(UNK, -1)
    train_tokens, validation_tokens, test_tokens = (
        torch.tensor([numbers.get(word, unknown) for word in stream], dtype=torch.int64)
        for stream in streams
    )
    sizes = "/".join(f"{len(stream):,}" for stream in streams)
    note = f"{note or name}; {sizes} tokens, vocabulary {len(vocabulary):,}"
    if words is not None:
        note += f" (less frequent words are {UNK})"
    return Corpus(
        name=name,
        train=train_tokens,
        validation=validation_tokens,
        test=test_tokens,
        vocabulary=vocabulary,
        note=note,
    )


def tokenize(text: str) -> list[str]:
    """The words of every line, split on blanks, and :data:`EOS` after each, blank lines included.

    A last line without a line break is a line; an empty text has none.
    """
    return [word for line in io.StringIO(text) for word in (*line.split(), EOS)]


def batches(tokens: Tensor, batch_size: int, bptt: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of inputs and targets ``(T, B)``, in the order of the text.

    The stream ``(tokens,)`` is cut into B = ``batch_size`` equal columns, up to B - 1 tokens at its
    end left out; every batch is the next T = ``bptt`` rows of all columns, the last one what
    remains (it may be shorter), and the targets are the inputs one row on. All are views of one
    matrix.

    Raises:
        ValueError: ``batch_size`` or ``bptt`` is below 1, ``tokens`` is not one-dimensional, or it
            holds fewer than two tokens a column.
    """
    check_count("batches", "batch_size", batch_size, minimum=1)
    check_count("batches", "bptt", bptt, minimum=1)
    if tokens.dim() != 1 or len(tokens) < 2 * batch_size:
        raise ValueError(
            "batches: tokens must be one-dimensional and hold at least two a column, found shape "
            f"{tuple(tokens.shape)} for batch_size={batch_size}"
        )
    rows = len(tokens) // batch_size
    matrix = tokens[: rows * batch_size].view(batch_size, rows).t().contiguous()
    starts = range(0, rows - 1, bptt)
    ends = [min(start + bptt, rows - 1) for start in starts]
    return [
        (matrix[start:end], matrix[start + 1 : end + 1])
        for start, end in zip(starts, ends, strict=True)
    ]


def _vocabulary(name: str, streams: Sequence[list[str]], words: int | None) -> tuple[str, ...]:
    counts = Counter(word for stream in streams for word in stream if word != EOS)
    ranking = [word for word, _ in counts.most_common()]
    if words is None:
        return (EOS, *ranking)
    if not 3 <= as_integer(name, "words", words) <= len(ranking) + 1:
        raise DataError(
            f"{name}: words must be an integer from 3 to {len(ranking) + 1} (all of them), "
            f"found {shown(words)}"
        )
    frequent = [word for word in ranking if word != UNK]
    return (EOS, UNK, *frequent[: words - 2])


def _folder(name: str, root: PathLike | None) -> Path:
    folder = data_folder(name, root)
    if folder is None:
        raise DataError(
            f"{name}: {DATA_VARIABLE} must be an existing folder that holds {name}/, found no value"
        )
    return folder


def _read(folder: Path, names: Sequence[str]) -> list[str]:
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{folder.name}: {', '.join(missing)} must be in {folder}, found none")
    return [_text(folder / file) for file in names]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: not readable ({type(error).__name__})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text, found byte {error.start} is none") from None
    if not text.strip():
        raise DataError(f"{path}: must hold words, found none")
    return text
