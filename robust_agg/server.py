"""The server: admission, aggregation, model step and ledger of one round."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robust_agg import kernels
from robust_agg.admission import Admitted, Rejection, admit
from robust_agg.aggregator import Aggregator
from robust_agg.checkpoint import check_alike
from robust_agg.codecs import Codec
from robust_agg.codecs.decoder import Decoder, RoundReader
from robust_agg.declared import check_declared
from robust_agg.errors import (
    ConstraintError,
    SearchLimitError,
    TooManyRejectedError,
    as_integer,
    check_choice,
    check_count,
    check_rejected,
)
from robust_agg.ledger import Ledger, Record, finite_or_none
from robust_agg.messages import Schema, Update, size
from robust_agg.online.estimator import Estimator
from robust_agg.seeding import generator
from robust_agg.span import Geometry, too_far
from robust_agg.specification import specification
from robust_agg.trust import for_senders
from robust_agg.types import State

_SPECIFICATION = "rule specification"
_LAST = "last estimate"
_DECODER = "decoder"

OnFailure = Literal["skip", "raise"]


class Server:
    """Holds the model, a rule and its state; each :meth:`step` is one round.

    The estimate of the round goes to ``.grad`` and the optimizer steps. Rounds that cannot be
    trusted (fewer than 2f + 1 rows or than ``quorum``, or more than f rows non-finite) leave model,
    optimizer and estimator as they are.

    Args:
        model: stepped in place, moved to ``device``. Its parameters, in the order of
            ``model.parameters()``, are the d coordinates of a row.
        optimizer: over the model's parameters; momentum 0 unless you want it on the server.
        rule: an aggregator, or an estimator whose state the server carries. The position of a row
            that it trusts is the number of a sender, without whose row a round does not count.
        f: declared number of Byzantine workers, which no message can change.
        seed: of the rule's own randomness, one generator a round.
        device: where rows are stacked and the model lives; CUDA where there is one if None.
        ledger: one line a round, if given.
        on_failure: what a round that cannot be trusted does: ``"skip"`` it or ``"raise"``.
        quorum: rows without which a round does not count.
        codec: how the workers send their rows, see :mod:`robust_agg.codecs`; as they are, if None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: Aggregator | Estimator,
        *,
        f: int,
        seed: int = 0,
        device: torch.device | str | None = None,
        ledger: Ledger | None = None,
        on_failure: OnFailure = "skip",
        quorum: int = 1,
        codec: Codec | None = None,
    ) -> None:
        check_declared(rule, f=f)
        check_count("Server", "quorum", quorum, minimum=1)
        check_choice("Server", "on_failure", on_failure, get_args(OnFailure))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.rule = rule
        self.f = f
        self.seed = as_integer("Server", "seed", seed)
        self.ledger = ledger
        self.on_failure = on_failure
        self.quorum = quorum
        self.round = 0
        self._weights = [p for p in model.parameters() if p.requires_grad]
        if not self._weights:
            raise ValueError("Server: model must have trainable parameters, found none")
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        strangers = sum(id(p) not in stepped for p in self._weights)
        if strangers:
            raise ValueError(
                "Server: optimizer must step all trainable parameters of the model, "
                f"found {strangers} of {len(self._weights)} that it does not"
            )
        # What concatenating them gives: a model of bfloat16 and float32 is sent, and answered, in
        # float32.
        self._dtype = reduce(torch.promote_types, (p.dtype for p in self._weights))
        dim = sum(p.numel() for p in self._weights)
        self._decoder = Decoder(codec, dim=dim, dtype=self._dtype, device=self.device)
        self._estimate: Tensor | None = None
        self._state: State = {}
        if isinstance(rule, Estimator):
            self._state = rule.init(self._flat())

    def parameters(self) -> Tensor:
        """The trainable parameters as one ``(d,)`` CPU tensor, to be sent to the workers."""
        return self._flat().cpu()

    def schema(self, senders: Iterable[int]) -> Schema:
        """What a message of this round must look like."""
        dim, dtype = self._decoder.form
        return Schema(
            round=self.round,
            dim=dim,
            dtype=dtype,
            senders=frozenset(as_integer("Server", "every sender", s) for s in senders),
        )

    @property
    def estimate(self) -> Tensor | None:
        """The last estimate ``(d,)`` the model stepped by; None before there is one."""
        return self._estimate

    @property
    def accepted(self) -> dict[int, int]:
        """By worker, the round of its last message that counts: what a codec has them know."""
        return self._decoder.accepted

    def read(self, updates: Iterable[Update]) -> list[Update]:
        """The round's messages as rows, as they would be read now; changes nothing."""
        return self._decoder.read(update for update in updates if update.round == self.round)

    def write(self, updates: Sequence[Update]) -> list[Update]:
        """Messages that are read as near to the rows of ``updates`` as any: what liars send."""
        return self._decoder.write(updates, seed=self.seed)

    def aggregate(self, rows: Tensor) -> Tensor:
        """What the rule would answer to ``rows`` now; changes nothing (an attacker's oracle)."""
        draw = generator(self.seed, "query", self.round)
        rows = rows.to(self.device)
        if isinstance(self.rule, Aggregator):
            return self.rule(rows, generator=draw)
        return self.rule.step(rows, self._state, senders=(), generator=draw)[0]

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        """The weights in :meth:`aggregate`'s answer to points of which the geometry is known.

        None where the rule must see the rows themselves, as an estimator and a coordinate-wise rule
        must; changes nothing.
        """
        if isinstance(self.rule, Estimator):
            return None
        draw = generator(self.seed, "query", self.round)
        return self.rule.weights_from(geometry, generator=draw)

    def step(
        self,
        updates: Sequence[Update],
        *,
        senders: Iterable[int] | None = None,
        refused: Iterable[Rejection] = (),
    ) -> Record:
        """One round: admit, aggregate, step the model, write the ledger.

        Args:
            updates: what arrived, in order of arrival.
            senders: who was asked for a row; if None, whoever sent an update or a message that was
                refused and keeps its place.
            refused: what the transport already knows to be missing or malformed.

        Raises:
            ConstraintError, SearchLimitError, TooManyRejectedError: with ``on_failure="raise"``, a
                round that cannot be trusted; the ledger has its line all the same.
        """
        begun = time.perf_counter()
        refused = tuple(refused)
        if senders is None:
            known = {r.sender for r in refused if r.keeps_place and r.sender >= 0}
            senders = {u.sender for u in updates} | known
        reader = self._decoder.reader()
        schema = self.schema(senders)
        admitted = admit(updates, schema, device=self.device, refused=refused, reader=reader)
        arrived = _arrived(updates, reader)
        seconds = {"admit": time.perf_counter() - begun}
        try:
            record = self._trusted(admitted, arrived, seconds)
        except (ConstraintError, SearchLimitError, TooManyRejectedError) as error:
            zero = admitted.rows.new_zeros(admitted.rows.shape[1])
            norms = kernels.row_distances(admitted.rows, zero) if admitted.senders else zero[:0]
            bad = (~(norms <= too_far(admitted.rows.dtype))).nonzero().flatten().tolist()
            record = Record(
                round=self.round,
                senders=admitted.senders,
                rejected=admitted.rejections + _unmeasured(admitted, bad),
                skipped=str(error),
                seconds=seconds,
                **arrived,
            )
            self._close(record)
            if self.on_failure == "raise":
                raise
            return record
        self._decoder.keep(reader)
        self._close(record)
        return record

    def _close(self, record: Record) -> None:
        self.round += 1
        if self.ledger is not None:
            self.ledger.append(record)

    def _trusted(
        self, admitted: Admitted, arrived: dict[str, Any], seconds: dict[str, float]
    ) -> Record:
        begun = time.perf_counter()
        rows, n = admitted.rows, len(admitted.senders)
        rule = for_senders(self.rule, admitted.senders)
        check_declared(rule, f=self.f, n=n)
        if n < self.quorum:
            raise ConstraintError(f"Server: quorum is {self.quorum} rows, found n={n}")
        draw = generator(self.seed, "aggregate", self.round)
        if isinstance(rule, Estimator):
            why, state = rule.explain(rows, self._state, senders=admitted.senders, generator=draw)
        else:
            why, state = rule.explain(rows, generator=draw), self._state
        unmeasured = (~why.distances.isfinite()).nonzero().flatten().tolist()
        rejected = sorted({*why.rejected, *unmeasured})
        check_rejected("Server", len(rejected), self.f, n)
        seconds["aggregate"] = time.perf_counter() - begun

        begun = time.perf_counter()
        self._descend(why.output)
        self._state, self._estimate = state, why.output
        seconds["step"] = time.perf_counter() - begun
        wide = why.output.double()  # of which a product takes a tenth of the time of a norm
        return Record(
            round=self.round,
            senders=admitted.senders,
            weights=None if why.weights is None else tuple(why.weights.tolist()),
            distances=finite_or_none(why.distances.tolist()),
            rejected=admitted.rejections + _unmeasured(admitted, rejected),
            estimate_norm=finite_or_none([float(wide.dot(wide)) ** 0.5])[0],
            solver=None if why.solver is None else asdict(why.solver),
            seconds=seconds,
            **arrived,
        )

    def _descend(self, estimate: Tensor) -> None:
        offset = 0
        for weight in self._weights:
            part = estimate[offset : offset + weight.numel()]
            # A copy, for optimizers may work in place on it (SGD's foreach form with nesterov).
            if weight.dtype != part.dtype:
                # A half-precision layer among wider ones: what it cannot hold must not become Inf.
                limit = torch.finfo(weight.dtype).max
                part = part.clamp(-limit, limit)
            weight.grad = part.view_as(weight).to(weight.dtype, copy=True)
            offset += weight.numel()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _flat(self) -> Tensor:
        return torch.cat([w.detach().reshape(-1) for w in self._weights])

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer, estimator state, round and seed, as a tree for ``save_checkpoint``.

        As in torch, the tensors are the live ones: copy them to keep them over a step.

        Generators are derived from (seed, role, round), so seed and round are all there is of them.
        """
        return {
            "round": self.round,
            **self._identity(),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "estimator": dict(self._state),
            **({} if self._estimate is None else {_LAST: self._estimate}),
            _DECODER: self._decoder.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint and the server that continues it must have in common."""
        codec = self._decoder.codec
        return {
            "seed": self.seed,
            "rule": self.rule.name,
            _SPECIFICATION: specification(self.rule),
            "optimizer kind": type(self.optimizer).__name__,
            "codec": None if codec is None else specification(codec),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; nothing is changed where that is not here.

        Raises:
            ValueError: the seed differs, or the checkpoint is of another rule or model, or of the
                same rule with other parameters.
        """
        for name, own in self._identity().items():
            # A checkpoint without a specification is an older one, of any parameters.
            if tree.get(name, own if name == _SPECIFICATION else None) != own:
                raise ValueError(
                    f"Server: {name} must be the checkpoint's {tree.get(name)!r}, found {own!r}"
                )
        for name in ("round", "model", "optimizer", "estimator"):
            if name not in tree:
                raise ValueError(f"Server: a checkpoint must have {name!r}, found {sorted(tree)}")
        number = as_integer("Server", "round", tree["round"])
        check_alike("estimator's state", self._state, tree["estimator"])
        check_alike("model", self.model.state_dict(), tree["model"])
        senders = self._decoder.checked(tree.get(_DECODER, {}))
        # The optimizer first: it looks at its groups before it changes, and the model has passed.
        self.optimizer.load_state_dict(tree["optimizer"])
        self.model.load_state_dict(tree["model"])
        self._state = {
            name: value.to(self._state[name].device) for name, value in tree["estimator"].items()
        }
        self._decoder.states = senders
        # Older checkpoints have none.
        last = tree.get(_LAST)
        self._estimate = None if last is None else last.to(self.device)
        self.round = number


def _unmeasured(admitted: Admitted, places: Iterable[int]) -> tuple[Rejection, ...]:
    """Ledger entries for the rows at ``places``, but for those that were no rows to begin with."""
    malformed = {r.sender for r in admitted.rejections if r.keeps_place}
    return tuple(
        Rejection(admitted.senders[i], "non-finite or too far to measure", True)
        for i in places
        if admitted.senders[i] not in malformed
    )


def _arrived(updates: Iterable[Update], reader: RoundReader) -> dict[str, Any]:
    """What a record says of the messages themselves."""
    return {"bytes": sum(map(size, updates)), "clipped": tuple(sorted(reader.clipped))}
