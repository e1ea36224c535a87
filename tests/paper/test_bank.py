"""The bank: its means are minibatch gradients, its span and its columns give the same estimates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.config import ConfigError
from experiments.language.encoder import EncoderLM
from experiments.language.gradient import gradient
from experiments.paper import bank as module
from experiments.paper.bank import Bank, clip_path, draw
from experiments.paper.streams import UPDATES, follow
from robust_agg import CClip
from robust_agg.online.estimator import ESTIMATE
from robust_agg.seeding import generator

K, WORDS, LENGTH, COLUMNS = 6, 40, 5, 4


def ignore(share: float) -> None:
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Microgradients of a tiny language model."""
    model = EncoderLM(d_model=8, heads=2, feed_forward=8).build(WORDS, generator(0, "model"))
    size = sum(parameter.numel() for parameter in model.parameters())
    bank = Bank(tmp_path_factory.mktemp("bank"), K, size)
    text = torch.randint(WORDS, (K, 2, LENGTH, COLUMNS), generator=generator(0, "text"))
    bank.fill(lambda k: gradient(model, text[k, 0], text[k, 1], seed=k), ignore)
    return bank


def test_a_minibatch_is_the_mean_of_its_microgradients() -> None:
    """Without dropout the gradient of two batches side by side is the mean of theirs."""
    model = EncoderLM(d_model=8, heads=2, feed_forward=8).build(WORDS, generator(0, "model"))
    text = torch.randint(WORDS, (2, 2, LENGTH, COLUMNS), generator=generator(1, "text"))
    apart = [gradient(model, *text[k], seed=None) for k in range(2)]
    together = gradient(model, *torch.cat([text[0], text[1]], dim=2), seed=None)
    torch.testing.assert_close(torch.stack(apart).mean(dim=0), together, rtol=1e-5, atol=1e-7)


def test_what_is_taken_is_not_taken_again(tmp_path: Path) -> None:
    rows = torch.randn(K, 10, generator=generator(0, "rows"))
    asked: list[int] = []

    def take(k: int) -> Tensor:
        asked.append(k)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return rows[k]

    with pytest.raises(KeyboardInterrupt):
        Bank(tmp_path, K, 10).fill(take, ignore)
    Bank(tmp_path, K, 10).fill(take, ignore)
    assert asked == [0, 1, 2, 3, 3, 4, 5]
    assert torch.equal(Bank(tmp_path, K, 10).rows, rows)


def test_rows_that_are_gone_are_taken_again(tmp_path: Path) -> None:
    rows = torch.randn(K, 10, generator=generator(0, "rows"))
    Bank(tmp_path, K, 10).fill(lambda k: rows[k], ignore)
    (tmp_path / "rows.f32").unlink()
    Bank(tmp_path, K, 10).fill(lambda k: rows[k], ignore)
    assert torch.equal(Bank(tmp_path, K, 10).rows, rows)
    damaged = bytearray((tmp_path / "rows.f32").read_bytes())
    damaged[3 * 40 : 3 * 40 + 8] = bytes(8)
    (tmp_path / "rows.f32").write_bytes(damaged)
    asked: list[int] = []
    Bank(tmp_path, K, 10).fill(lambda k: asked.append(k) or rows[k], ignore)  # type: ignore[func-returns-value]
    assert asked == [3]
    assert torch.equal(Bank(tmp_path, K, 10).rows, rows)
    wider = torch.randn(K, 20, generator=generator(1, "rows"))
    Bank(tmp_path, K, 20).fill(lambda k: wider[k], ignore)
    assert torch.equal(Bank(tmp_path, K, 20).rows, wider)


def test_a_bank_that_has_no_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out: 40000000.0 GB for gradients are required, found"):
        Bank(tmp_path, 10**6, 10**10).fill(lambda k: torch.zeros(1), ignore)


def test_coordinates_have_the_rows_geometry(filled: Bank) -> None:
    rows, coordinates = filled.rows.double(), filled.coordinates
    assert coordinates.shape == (K, K)
    torch.testing.assert_close(torch.cdist(coordinates, coordinates), torch.cdist(rows, rows))
    torch.testing.assert_close(coordinates.norm(dim=1), rows.norm(dim=1))


@pytest.mark.parametrize("method", ["momentum", "VClip"])
@pytest.mark.parametrize("tau", [0.01, 0.2])
def test_the_span_gives_the_errors_of_the_rows_themselves(
    filled: Bank, method: str, tau: float
) -> None:
    weights = draw(K, 2, 40, generator(0, "batches")).double()

    def errors(rows: Tensor) -> list[float]:
        rules = {method: UPDATES[method].rule(tau=tau, streams=1, d=rows.shape[1])}
        samples = ((each @ rows)[None, None] for each in weights)
        start = torch.zeros(1, rows.shape[1], dtype=torch.float64)
        found = follow(rules, samples, start=start, at=range(41))
        return [float((m - rows.mean(dim=0)).norm()) for _, _, m in found]

    direct = torch.tensor(errors(filled.rows.double()))
    torch.testing.assert_close(
        torch.tensor(errors(filled.coordinates)), direct, rtol=1e-5, atol=0.0
    )


def test_column_by_column_is_the_library_s_cclip(
    filled: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled.rows
    weights = draw(K, 2, 40, generator(0, "batches"))
    taus, at = [1e-4, 1e-2], [0, 1, 7, 33, 40]
    expected = []
    for tau in taus:
        rule = CClip(tau=tau)
        state = rule.init(rows[0])
        estimates = [state[ESTIMATE]]
        for each in weights:
            _, state = rule.step((each @ rows)[None], state)
            estimates.append(state[ESTIMATE])
        gaps = torch.stack(estimates)[at].double() - rows.double().mean(dim=0)
        expected.append(gaps.norm(dim=1))
    monkeypatch.setattr(module, "_COLUMNS", 100)
    found = clip_path(rows, weights, taus, at=at, tick=ignore)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-9)


def test_minibatches_are_drawn_with_replacement() -> None:
    weights = draw(K, 3, 500, generator(0, "batches"))
    assert weights.shape == (500, K)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(500))
    assert {round(3 * w) for w in weights.flatten().tolist()} == {0, 1, 2, 3}
    torch.testing.assert_close(weights.mean(dim=0), torch.full((K,), 1 / K), rtol=0.2, atol=0)
