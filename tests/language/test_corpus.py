"""Corpora: tokens and vocabulary of hand-made and real text, batches, and broken folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data
from experiments.data import DataError
from experiments.language import corpus

PTB = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
WIKITEXT = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")


def real_folder(name: str, files: tuple[str, ...]) -> Path:
    root = os.environ.get(data.DATA_VARIABLE)
    if not root:
        pytest.skip(f"the files of {name} are needed: {data.DATA_VARIABLE} is not set")
    folder = Path(root) / name
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        pytest.skip(f"the files of {name} are needed: {', '.join(missing)} not in {folder}")
    return folder


@pytest.fixture(scope="module")
def ptb() -> corpus.Corpus:
    return corpus.load("ptb", root=real_folder("ptb", PTB).parent)


@pytest.fixture(scope="module")
def reduced_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with WikiText-2's two small files alone, whatever the real one holds."""
    folder = real_folder("wikitext-2", WIKITEXT[1:])
    root = tmp_path_factory.mktemp("reduced")
    (root / "wikitext-2").mkdir()
    for file in WIKITEXT[1:]:
        (root / "wikitext-2" / file).symlink_to((folder / file).resolve())
    return root


def write(root: Path, name: str, texts: dict[str, str]) -> Path:
    (root / name).mkdir()
    for file, text in texts.items():
        (root / name / file).write_text(text, encoding="utf-8")
    return root


def words_of(made: corpus.Corpus, tokens: torch.Tensor) -> list[str]:
    return [made.vocabulary[number] for number in tokens.tolist()]


# --- tokens and vocabulary ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" a b \n", ["a", "b", "<eos>"]),
        ("a b", ["a", "b", "<eos>"]),
        (
            " \n = A title = \n\n b\t <unk>  c\r\n",
            ["<eos>", "=", "A", "title", "=", "<eos>", "<eos>", "b", "<unk>", "c", "<eos>"],
        ),
        ("one\u2028line\n", ["one", "line", "<eos>"]),
    ],
)
def test_tokenize(text: str, expected: list[str]) -> None:
    assert corpus.tokenize(text) == expected


def test_words_are_numbered_by_frequency_then_first_occurrence() -> None:
    made = corpus.make("mine", "b a\na c\n", "c d <unk>\n", "c e\n")
    assert made.vocabulary == ("<eos>", "c", "a", "b", "d", "<unk>", "e")
    assert made.train.tolist() == [3, 2, 0, 2, 1, 0]
    assert made.validation.tolist() == [1, 4, 5, 0]
    assert made.test.tolist() == [1, 6, 0]
    assert {part.dtype for part in (made.train, made.validation, made.test)} == {torch.int64}
    assert made.note == "mine; 6/4/3 tokens, vocabulary 7"


@pytest.mark.parametrize("unknown", ["<unk>", "x"])
def test_rare_words_become_unknown(unknown: str) -> None:
    """Whether the text has an <unk> of its own or not."""
    made = corpus.make("mine", f"b a a b a c {unknown}\n", "c\n", "d\n", words=4)
    assert made.vocabulary == ("<eos>", "<unk>", "a", "b")
    assert words_of(made, made.train) == ["b", "a", "a", "b", "a", "<unk>", "<unk>", "<eos>"]
    assert words_of(made, made.test) == ["<unk>", "<eos>"]
    assert "less frequent words are <unk>" in made.note


@pytest.mark.parametrize("words", [2, -1, 6, True, 3.0, "3"])
def test_number_of_words_is_checked(words: int) -> None:
    with pytest.raises(ValueError, match=r"^mine: words must be an integer.* found "):
        corpus.make("mine", "a b c\n", "d\n", "", words=words)


def test_all_words_may_be_kept_by_number() -> None:
    everything = corpus.make("mine", "a b <unk>\n", "", "")
    limited = corpus.make("mine", "a b <unk>\n", "", "", words=4)
    assert set(limited.vocabulary) == set(everything.vocabulary)


def test_fingerprint_follows_tokens_and_words() -> None:
    prints = {
        corpus.make("mine", *texts).fingerprint
        for texts in [("a b\n", "a\n", ""), ("a c\n", "a\n", ""), ("a b\n", "", "a\n")]
    }
    assert len(prints) == 3
    first, second = (corpus.make("mine", "a b\n", "a\n", "") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert len(first.fingerprint) == 16


# --- batches --------------------------------------------------------------------------------------


def test_batches_of_a_hand_made_stream() -> None:
    """Twenty-three tokens in two columns of eleven: one token is left out, the last is short."""
    pairs = corpus.batches(torch.arange(23), 2, 4)
    assert [inputs.tolist() for inputs, _ in pairs] == [
        [[0, 11], [1, 12], [2, 13], [3, 14]],
        [[4, 15], [5, 16], [6, 17], [7, 18]],
        [[8, 19], [9, 20]],
    ]
    assert [targets.tolist() for _, targets in pairs] == [
        [[1, 12], [2, 13], [3, 14], [4, 15]],
        [[5, 16], [6, 17], [7, 18], [8, 19]],
        [[9, 20], [10, 21]],
    ]


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 100))
def test_batches_cover_every_column_once(batch_size: int, bptt: int, more: int) -> None:
    tokens = torch.arange(2 * batch_size + more)
    pairs = corpus.batches(tokens, batch_size, bptt)
    rows = len(tokens) // batch_size
    columns = tokens[: rows * batch_size].view(batch_size, rows)
    assert torch.equal(torch.cat([inputs for inputs, _ in pairs]), columns[:, :-1].t())
    assert torch.equal(torch.cat([targets for _, targets in pairs]), columns[:, 1:].t())
    assert all(len(inputs) == bptt for inputs, _ in pairs[:-1])
    assert 1 <= len(pairs[-1][0]) <= bptt


@pytest.mark.parametrize(
    ("tokens", "batch_size", "bptt", "message"),
    [
        (torch.arange(9), 0, 3, "batch_size must be an integer >= 1, found 0"),
        (torch.arange(9), 3, 0, "bptt must be an integer >= 1, found 0"),
        (torch.arange(9), 5, 3, r"at least two a column, found shape \(9,\) for batch_size=5"),
        (torch.arange(0), 1, 3, r"found shape \(0,\) for batch_size=1"),
        (torch.zeros(9, 2), 1, 3, r"found shape \(9, 2\)"),
    ],
)
def test_batches_are_checked(
    tokens: torch.Tensor, batch_size: int, bptt: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^batches: .*{message}"):
        corpus.batches(tokens, batch_size, bptt)


# --- the real corpora -----------------------------------------------------------------------------


def test_ptb(ptb: corpus.Corpus) -> None:
    assert [len(part) for part in (ptb.train, ptb.validation, ptb.test)] == [
        929_589,
        73_760,
        82_430,
    ]
    assert len(ptb.vocabulary) == len(set(ptb.vocabulary)) == 10_000
    assert ptb.vocabulary[:4] == ("<eos>", "the", "<unk>", "n")
    assert all(word == word.lower() for word in ptb.vocabulary)
    assert words_of(ptb, ptb.train[:3]) == ["aer", "banknote", "berlitz"]
    assert (ptb.train == 0).sum() == 42_068, "one <eos> a line"
    assert "929,589/73,760/82,430 tokens, vocabulary 10,000" in ptb.note
    assert ptb.fingerprint == "02f3e0eaf7c58278"


def test_ptb_in_batches(ptb: corpus.Corpus) -> None:
    """14,524 rows of 64 columns have 14,523 targets each: 414 batches of 35 rows and one of 33."""
    pairs = corpus.batches(ptb.train, 64, 35)
    assert len(pairs) == 415
    assert pairs[0][0].shape == (35, 64)
    assert pairs[-1][0].shape == pairs[-1][1].shape == (33, 64)


def test_ptb_with_few_words(ptb: corpus.Corpus) -> None:
    few = corpus.load("ptb", root=real_folder("ptb", PTB).parent, words=2000)
    assert len(few.vocabulary) == 2000
    assert few.vocabulary[:3] == ("<eos>", "<unk>", "the")
    assert len(few.train) == len(ptb.train)
    known = set(few.vocabulary)
    expected = [word if word in known else "<unk>" for word in words_of(ptb, ptb.train[:5000])]
    assert words_of(few, few.train[:5000]) == expected


def test_wikitext_without_its_training_part(reduced_root: Path) -> None:
    made = corpus.load("wikitext-2", root=reduced_root)
    assert [len(part) for part in (made.train, made.validation, made.test)] == [463_215, 0, 0]
    assert len(made.vocabulary) == 18_328
    assert words_of(made, made.train[:7]) == [
        *("<eos>", "=", "Homarus", "gammarus", "=", "<eos>", "<eos>"),
    ]
    assert "validation and test parts together as the training stream" in made.note
    assert "no held-out part" in made.note
    assert made.fingerprint == "fa8188fca0cd5536"


def test_wikitext_complete() -> None:
    made = corpus.load("wikitext-2", root=real_folder("wikitext-2", WIKITEXT).parent)
    sizes = [len(part) for part in (made.train, made.validation, made.test)]
    assert sizes == [2_088_628, 217_646, 245_569]
    assert len(made.vocabulary) == 33_278


# --- folders --------------------------------------------------------------------------------------


def test_wikitext_keeps_case_and_takes_the_training_part(tmp_path: Path) -> None:
    texts = dict(zip(WIKITEXT, (" = A a = \n \n", "a\n", "A <unk>\n"), strict=True))
    made = corpus.load("wikitext-2", root=write(tmp_path, "wikitext-2", texts))
    assert words_of(made, made.train) == ["=", "A", "a", "=", "<eos>", "<eos>"]
    assert words_of(made, made.test) == ["A", "<unk>", "<eos>"]
    assert made.note == "WikiText-2, word level; 6/2/3 tokens, vocabulary 5"


def test_ptb_is_lower_cased(tmp_path: Path) -> None:
    texts = dict(zip(PTB, ("the N years\n", "N\n", "n\n"), strict=True))
    made = corpus.load("ptb", root=write(tmp_path, "ptb", texts))
    assert made.vocabulary == ("<eos>", "n", "the", "years")


def test_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, "ptb", dict.fromkeys(PTB, "a b\n"))
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path))
    assert len(corpus.load("ptb").train) == 3
    monkeypatch.setenv(data.DATA_VARIABLE, str(tmp_path / "absent"))
    assert len(corpus.load("ptb", root=tmp_path).train) == 3, "root goes before the variable"


def one_line(error: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    for part in parts:
        assert str(part) in message


def test_unknown_name() -> None:
    with pytest.raises(DataError) as error:
        corpus.load("wikitext-103")
    one_line(error, "ptb, wikitext-2", "'wikitext-103'")


def test_missing_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(data.DATA_VARIABLE, raising=False)
    with pytest.raises(DataError) as error:
        corpus.load("ptb")
    one_line(error, data.DATA_VARIABLE, "holds ptb/", "no value")
    with pytest.raises(DataError) as error:
        corpus.load("wikitext-2", root=tmp_path / "absent")
    one_line(error, "root", "holds wikitext-2/", tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "there", "missing"),
    [
        ("ptb", (), ", ".join(PTB)),
        ("ptb", PTB[:2], PTB[2]),
        ("wikitext-2", (), ", ".join(WIKITEXT[1:])),
        ("wikitext-2", WIKITEXT[::2], WIKITEXT[1]),
    ],
)
def test_missing_files(tmp_path: Path, name: str, there: tuple[str, ...], missing: str) -> None:
    write(tmp_path, name, dict.fromkeys(there, "a\n"))
    with pytest.raises(DataError) as error:
        corpus.load(name, root=tmp_path)
    one_line(error, f"{name}: {missing} must be in {tmp_path / name}")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path, "ptb", dict.fromkeys(PTB, "a b\n"))
    path = tmp_path / "ptb" / PTB[1]
    path.write_bytes(b"a b\n\xff\n")
    with pytest.raises(DataError) as error:
        corpus.load("ptb", root=tmp_path)
    one_line(error, path, "UTF-8", "byte 4")
    path.write_text(" \n\n")
    with pytest.raises(DataError) as error:
        corpus.load("ptb", root=tmp_path)
    one_line(error, path, "must hold words")
