"""Figures 3 and 4: estimates of a language model's gradient at fixed weights (section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from experiments.language.corpus import Corpus, batches, load
from experiments.language.encoder import EncoderLM
from experiments.language.gradient import gradient
from experiments.language.model import LanguageModel
from experiments.language.transformer_xl import TransformerXL
from experiments.paper import fig34_claims, fig34_figures
from experiments.paper.bank import Bank, clip_path, draw
from experiments.paper.streams import UPDATES, follow, log_spaced
from experiments.studies.study import Claim, ModelStudy, Piece, Preset, Row, Tick
from robust_agg.seeding import derive, generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Network = Literal["encoder", "small encoder", "transformer-xl"]

SPECIFICATIONS: Mapping[Network, EncoderLM | TransformerXL] = {
    "encoder": EncoderLM(),
    "small encoder": EncoderLM(d_model=64, feed_forward=64),
    "transformer-xl": TransformerXL(),
}


@dataclass(frozen=True, kw_only=True)
class FixedWeights(ModelStudy):
    """The gradient of a language model at its initial weights is to be estimated from minibatch
    gradients: means of microgradients that are drawn with replacement from a bank. Errors are
    ‖m - ḡ‖₂/‖ḡ‖₂ with ḡ the bank's mean. Below, every τ: VClip's, a length, is also tried as these
    shares of ‖ḡ‖."""

    corpus: ClassVar[str]
    file: ClassVar[str]

    network: Network = "encoder"
    words: int | None = None
    microgradients: int | None = 64
    columns: int = 64
    bptt: int = 35
    batch_sizes: tuple[int, ...] = (64, 256, 1024)
    iterations: int = 1000
    tau: float = 0.01
    taus: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    clip_taus: tuple[float, ...] = (1e-6, 1e-5, 3e-5, 1e-4, 1e-3, 1e-2)
    seeds: int = 3

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                decides=False,
                network="small encoder",
                words=500,
                microgradients=8,
                columns=8,
                batch_sizes=(8, 32),
                iterations=100,
                taus=(1e-2, 1e-1),
                clip_taus=(1e-4, 1e-3),
                seeds=2,
            )
        return cls() if name == "default" else cls(microgradients=None)

    @property
    def fingerprint(self) -> str:
        return self.text.fingerprint

    @cached_property
    def text(self) -> Corpus:
        return load(self.corpus, words=self.words)

    @cached_property
    def model(self) -> LanguageModel:
        specification = SPECIFICATIONS[self.network]
        built = specification.build(len(self.text.vocabulary), generator(0, "weights"))
        return built.to(self.device)

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The ordered batches of the training text, as many as the bank has rows."""
        tokens = self.text.train if len(self.text.train) else self.text.validation
        ordered = batches(tokens, self.columns, self.bptt)
        return ordered if self.microgradients is None else self._spread(ordered)

    def _spread(self, ordered: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Whole batches, evenly over the text."""
        whole = [each for each in ordered if len(each[0]) == self.bptt]
        count = min(self.microgradients or len(whole), len(whole))
        return [whole[len(whole) * k // count] for k in range(count)]

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        bank = Bank(folder / "bank", len(self.batches), size)
        return {
            "microgradients": partial(self._microgradients, bank),
            **{
                f"{name}, batch {size}": partial(piece, bank, size)
                for size in self.batch_sizes
                for name, piece in (("span", self._span), ("CClip", self._cclip))
            },
        }

    def _fill(self, bank: Bank, tick: Tick) -> None:
        def micro(k: int) -> Tensor:
            inputs, targets = (part.to(self.device) for part in self.batches[k])
            return gradient(self.model, inputs, targets, seed=derive(0, "dropout", k))

        bank.fill(micro, tick)

    def _microgradients(self, bank: Bank, tick: Tick) -> list[Row]:
        self._fill(bank, tick)
        mean = bank.coordinates.mean(dim=0)
        deviations = (bank.coordinates - mean).norm(dim=1)
        return [
            {
                "norm": float(mean.norm()),
                "largest": float(deviations.max() / deviations.median()),
                "size": bank.d,
                "rows": bank.count,
            }
        ]

    def _weights(self, size: int, seed: int) -> Tensor:
        count = len(self.batches)
        return draw(count, size // self.columns, self.iterations, generator(seed, "batches", size))

    def _at(self) -> tuple[int, ...]:
        return log_spaced(self.iterations, 120)

    def _span(self, bank: Bank, size: int, tick: Tick) -> list[Row]:
        """Momentum and VClip, for every τ and seed, in the coordinates of the bank's span."""
        self._fill(bank, _silent)  # nothing to do, unless the rows have been deleted
        basis = bank.coordinates
        mean = basis.mean(dim=0)
        start = torch.zeros(self.seeds, len(basis), dtype=torch.float64)
        noise = torch.stack([g[0, 0] - mean for g in self._minibatches(basis, size)])
        relative = float(noise.square().sum(dim=1).mean().sqrt() / mean.norm())
        rows: list[Row] = [{"noise_of": size, "noise": relative}]
        lengths = [tau * float(mean.norm()) for tau in self.taus]
        settings = [("momentum", tau) for tau in sorted({*self.taus, self.tau})]
        settings += [("VClip", tau) for tau in sorted({*lengths, self.tau})]
        for place, (name, tau) in enumerate(settings):
            samples = self._minibatches(basis, size)
            rule = UPDATES[name].rule(tau=tau, streams=self.seeds, d=len(basis))
            for t, _, estimate in follow({name: rule}, samples, start=start, at=self._at()):
                rows += self._errors(name, size, tau, t, estimate - mean, mean)
                if name == "momentum" and t > 0:
                    corrected = estimate / (1 - (1 - tau) ** t) - mean
                    rows += self._errors("bias-corrected momentum", size, tau, t, corrected, mean)
            tick((place + 1) / len(settings))
        return rows

    def _minibatches(self, basis: Tensor, size: int) -> Iterator[Tensor]:
        weights = torch.stack([self._weights(size, seed) for seed in range(self.seeds)], dim=1)
        for each in weights.double():
            yield (each @ basis)[None]

    def _cclip(self, bank: Bank, size: int, tick: Tick) -> list[Row]:
        self._fill(bank, _silent)
        norm = float(bank.coordinates.mean(dim=0).norm())
        taus = sorted({*self.clip_taus, self.tau})
        at = sorted(self._at())
        errors = clip_path(
            bank.rows, self._weights(size, 0), taus, at=at, tick=tick, device=self.device
        )
        return [
            {"method": "CClip", "batch": size, "tau": tau, "iteration": t, "error": error / norm}
            for tau, line in zip(taus, errors.tolist(), strict=True)
            for t, error in zip(at, line, strict=True)
        ]

    def _errors(
        self, method: str, size: int, tau: float, t: int, gaps: Tensor, mean: Tensor
    ) -> list[Row]:
        error = float((gaps.norm(dim=1) / mean.norm()).mean())
        return [{"method": method, "batch": size, "tau": tau, "iteration": t, "error": error}]

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return fig34_figures.draw(
            rows,
            name=self.file,
            title=f"{self.title}; {self.network}{self._part()}",
            caption=f"{self._used(rows)}; ḡ: their mean; minibatches drawn with replacement",
            sizes=self.batch_sizes,
            tau=self.tau,
        )

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return fig34_claims.claims(
            rows,
            sizes=self.batch_sizes,
            tau=self.tau,
            iterations=self.iterations,
        )

    def _part(self) -> str:
        whole = len(self.text.validation) > 0
        return "" if whole else "; validation and test parts of the text, no training part"

    def _used(self, rows: Sequence[Row]) -> str:
        bank = next(row for row in rows if "rows" in row)
        return (
            f"{bank['rows']} microgradients of {self.columns} x {self.bptt} words, "
            "dropout masks fixed for each"
        )

    def notes(self, rows: Sequence[Row]) -> list[str]:
        bank = next(row for row in rows if "rows" in row)
        return [
            self.text.note,
            f"{self.network}, {bank['size']:,} parameters at their initial values, dropout on",
            f"{self._used(rows)}; ḡ is their mean, and a minibatch a mean of some drawn with "
            "replacement (in the paper: the next ordered batch, and the gradient of the whole "
            "training set)",
            f"‖ḡ‖ = {bank['norm']:.3f}; curves: mean of {self.seeds} draws, of CClip one",
            f"the folder's bank/ of {4e-9 * bank['rows'] * bank['size']:.2g} GB may be deleted",
        ]


def _silent(share: float) -> None:
    pass


class PTB(FixedWeights):
    __doc__ = FixedWeights.__doc__
    title = "Figure 3: transformer on PTB, fixed weights"
    corpus: ClassVar[str] = "ptb"
    file: ClassVar[str] = "fig3"


class WikiText(FixedWeights):
    __doc__ = FixedWeights.__doc__
    title = "Figure 4: transformer on WikiText-2, fixed weights"
    corpus: ClassVar[str] = "wikitext-2"
    file: ClassVar[str] = "fig4"

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "full":
            return cls(network="transformer-xl", bptt=128, microgradients=None)
        return super().preset(name)
