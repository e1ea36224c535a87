"""The server's round: what the model becomes, what the ledger says, what must not matter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from server_training import Rule, constant, held, honest, loss, perceptron, picture, serve, sgd
from torch import Tensor, nn

import robust_agg as ra
from robust_agg import Ledger, Rejection, Server, Update
from robust_agg.seeding import generator

RULES: dict[str, Callable[[], Rule]] = {
    "mean": ra.Mean,
    "trimmed mean": lambda: ra.TrimmedMean(f=2),
    "median": ra.CoordinateWiseMedian,
    "krum": lambda: ra.Krum(f=1),
    "geometric median": ra.GeometricMedian,
    "centered clipping": ra.CenteredClipping,
    "bucketing": lambda: ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()),
    "nnm": lambda: ra.chain(ra.NearestNeighborMixing(f=2), ra.TrimmedMean(f=2)),
    "vclip": ra.VClip,
    "vclip fixed": lambda: ra.VClip(tau=0.3),
    "vclip sequential": lambda: ra.VClip(fusion="sequential"),
    "cclip batch": lambda: ra.CClip(fusion="batch"),
    "signed increment": lambda: ra.SignedIncrement(tau=0.1),
    "clipped clustering": ra.ClippedClustering,
    "sign guard": ra.SignGuard,
}
DEFENCES = [name for name in RULES if name != "mean"]
RANDOM = {"bucketing", "vclip sequential", "sign guard"}
every_rule = pytest.mark.parametrize("rule", RULES)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# --- what a step does -----------------------------------------------------------------------------


@every_dtype
def test_a_step_of_sgd_on_the_mean_is_what_a_hand_computes(dtype: torch.dtype) -> None:
    # Small multiples of powers of two: every number below is exact in every dtype.
    model = perceptron(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.arange(p.numel(), dtype=torch.float64).view(p.shape) / 4 - 1)
    before = flat(model)
    server = serve(ra.Mean(), model=model)
    dim = before.numel()
    rows = [torch.arange(dim).remainder(5) * s + t for s, t in [(1, 0), (-2, 4), (3, 8), (2, -4)]]
    record = server.step([Update(i, 0, row.to(dtype)) for i, row in enumerate(rows)])
    mean = torch.arange(dim).remainder(5) + 2
    assert torch.equal(flat(model), before - (mean / 4).to(dtype))
    assert flat(model).dtype == dtype
    assert server.estimate is not None
    assert torch.equal(server.estimate, mean.to(dtype))
    assert record.weights == (0.25,) * 4
    assert record.estimate_norm == pytest.approx(float(mean.double().norm()), rel=1e-12)
    expected = [float((row - mean).double().norm()) for row in rows]
    assert record.distances == pytest.approx(expected, rel=1e-6)
    assert (record.round, server.round) == (0, 1)
    assert all(p.grad is None for p in model.parameters())


def test_every_parameter_moves_by_its_own_part_of_the_row() -> None:
    model = perceptron()
    before = [p.detach().clone() for p in model.parameters()]
    server = serve(ra.Mean(), model=model, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    row = torch.arange(float(server.parameters().numel()))
    server.step([Update(0, 0, row)])
    start = 0
    for old, new in zip(before, model.parameters(), strict=True):
        part = row[start : start + old.numel()].view(old.shape)
        assert torch.equal(new, old - part)
        start += old.numel()
    assert start == len(row)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
    ids=["sgd", "nesterov foreach", "adam", "adamw foreach", "adagrad"],
)
def test_the_optimizer_steps_by_the_rule_s_answer(optimizer: Any) -> None:
    server = serve(ra.TrimmedMean(f=1), f=1, optimizer=optimizer)
    twin = perceptron()
    by_hand = optimizer(twin.parameters())
    for _ in range(4):
        updates = honest(server)
        estimate = ra.TrimmedMean(f=1)(torch.stack([u.row for u in updates]))
        record = server.step(updates)
        # The optimizer may work in place on the gradients; the estimate is not its scratch pad.
        assert server.estimate is not None
        assert torch.equal(server.estimate, estimate)
        assert record.estimate_norm == pytest.approx(float(estimate.double().norm()), rel=1e-12)
        start = 0
        for p in twin.parameters():
            p.grad = estimate[start : start + p.numel()].clone().view(p.shape)
            start += p.numel()
        by_hand.step()
        assert torch.equal(flat(server.model), flat(twin))


@every_rule
def test_the_server_adds_nothing_to_the_rule(rule: str) -> None:
    server = serve(RULES[rule](), f=1, seed=11)
    bare = RULES[rule]()
    state = bare.init(server.parameters()) if isinstance(bare, ra.Estimator) else None
    for number in range(3):
        updates = honest(server)
        rows = torch.stack([u.row for u in updates])
        draw = generator(11, "aggregate", number)
        if isinstance(bare, ra.Estimator):
            assert state is not None
            expected, state = bare.step(rows, state, senders=range(5), generator=draw)
        else:
            expected = bare(rows, generator=draw)
        server.step(updates)
        assert server.estimate is not None
        assert torch.equal(server.estimate, expected)


def test_an_estimator_s_state_is_carried_from_round_to_round() -> None:
    server = serve(ra.Momentum(beta=0.5))
    total = torch.zeros(server.parameters().numel())
    for values in ([1.0, 3.0], [-2.0, 0.0], [8.0, 8.0]):
        server.step(constant(server, dict(enumerate(values))))
        total = total / 2 + sum(values) / 4
        assert server.estimate is not None
        assert torch.equal(server.estimate, total)
    assert float(total[0]) == 4.0


@every_rule
@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]], ids=str)
def test_the_order_of_arrival_does_not_matter(rule: str, order: list[int]) -> None:
    servers = [serve(RULES[rule](), f=1, seed=3) for _ in range(2)]
    for _ in range(3):
        sorted_, shuffled = servers
        updates = honest(sorted_)
        records = (sorted_.step(updates), shuffled.step([updates[i] for i in order]))
        assert records[0].weights == records[1].weights
        assert records[0].distances == records[1].distances
    assert held(servers[0]) == held(servers[1])


@every_rule
def test_the_same_seed_gives_the_same_run_and_another_one_another_where_it_draws(rule: str) -> None:
    pictures: list[Any] = []
    for seed in (3, 3, 4):
        server = serve(RULES[rule](), f=1, seed=seed)
        torch.manual_seed(len(pictures))  # which must not matter
        for _ in range(3):
            server.step(honest(server))
        pictures.append(picture(flat(server.model)))
    assert pictures[0] == pictures[1]
    assert (pictures[0] != pictures[2]) == (rule in RANDOM)


@every_rule
def test_a_server_draws_nothing_from_the_global_generator(rule: str) -> None:
    server = serve(RULES[rule](), f=1)
    updates = honest(server)
    before = torch.get_rng_state()
    server.aggregate(torch.stack([u.row for u in updates]))
    server.step(updates)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rule", DEFENCES)
def test_training_goes_on_with_a_liar_among_five(rule: str) -> None:
    # Data without noise: every honest gradient vanishes at the solution, for every rule to find.
    server = serve(RULES[rule](), f=1, model=nn.Linear(3, 1))
    before = loss(server.model)
    for _ in range(30):
        record = server.step([*honest(server, range(4)), *constant(server, {4: 1e6})])
        assert record.skipped is None
    assert loss(server.model) < before / 10


def test_training_with_a_liar_ends_without_a_defence() -> None:
    server = serve(ra.Mean(), f=1)
    before = loss(server.model)
    server.step([*honest(server, range(4)), *constant(server, {4: 1e6})])
    assert loss(server.model) > 100 * before


# --- asking without changing ----------------------------------------------------------------------


@every_rule
def test_aggregate_changes_nothing(rule: str, tmp_path: Path) -> None:
    server = serve(RULES[rule](), f=1, ledger=Ledger(tmp_path / "ledger"))
    server.step(honest(server))
    rows = torch.stack([u.row for u in honest(server)])
    rows_before, before = rows.clone(), held(server)
    ledger = (tmp_path / "ledger").read_bytes()
    first = server.aggregate(rows)
    second = server.aggregate(rows)
    assert first.shape == rows[0].shape
    assert torch.equal(first, second)
    first.fill_(torch.nan)
    with pytest.raises(ValueError, match="rows"):
        server.aggregate(rows[0])
    assert held(server) == before
    assert server.round == 1
    assert (tmp_path / "ledger").read_bytes() == ledger
    assert torch.equal(rows, rows_before)


@every_rule
def test_aggregate_answers_what_the_step_would(rule: str) -> None:
    server = serve(RULES[rule](), f=1)
    server.step(honest(server))
    updates = honest(server)
    answer = server.aggregate(torch.stack([u.row for u in updates]))
    server.step(updates)
    assert server.estimate is not None
    # A rule that draws does not show an attacker this round's draw.
    assert torch.equal(answer, server.estimate) == (rule not in RANDOM)


def test_a_queried_server_trains_as_one_that_is_not() -> None:
    queried, quiet = (serve(ra.VClip(fusion="sequential"), f=1) for _ in range(2))
    for _ in range(3):
        updates = honest(queried)
        for scale in (1.0, -5.0):
            queried.aggregate(torch.stack([u.row * scale for u in updates]))
        queried.step(updates)
        quiet.step(updates)
    assert held(queried) == held(quiet)


def test_parameters_and_updates_are_not_shared_with_the_model() -> None:
    model = nn.Linear(3, 1, bias=False)  # one parameter: a view of it would be the whole vector
    server = serve(ra.Mean(), model=model)
    sent = server.parameters()
    assert not sent.requires_grad
    before = flat(model)
    sent.fill_(7)
    assert torch.equal(flat(model), before)
    row = torch.ones(3)
    server.step([Update(0, 0, row)])
    row.fill_(9)
    assert server.estimate is not None
    assert server.estimate.tolist() == [1, 1, 1]


def test_updates_are_not_changed_and_may_be_part_of_a_graph() -> None:
    server = serve(ra.GeometricMedian(), optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    updates = [Update(u.sender, u.round, u.row.requires_grad_()) for u in honest(server)]
    before = [u.row.detach().clone() for u in updates]
    server.step(updates)
    assert all(torch.equal(u.row, b) for u, b in zip(updates, before, strict=True))
    assert all(u.row.grad is None for u in updates)
    assert all(p.grad_fn is None for p in server.model.parameters())


def test_there_is_no_estimate_before_the_first_round_that_counts() -> None:
    server = serve(ra.Mean(), f=1)
    found = [server.estimate]
    server.step([])
    found.append(server.estimate)
    server.step(constant(server, dict.fromkeys(range(3), 2.0)))
    found.append(server.estimate)
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert bool((found[2] == 2).all())


# --- models ---------------------------------------------------------------------------------------


def test_frozen_parameters_are_no_coordinates_and_never_move() -> None:
    model = perceptron()
    frozen = [model[0].bias, model[3].weight]
    for p in frozen:
        p.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    server = serve(
        ra.VClip(tau=1e9),
        model=model,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.5),
    )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    dim = sum(before[name].numel() for name in trained)
    assert server.parameters().shape == (dim,)
    assert server.schema([0]).dim == dim
    server.step([Update(0, 0, torch.arange(1.0, dim + 1))])
    start = 0
    for name, p in model.named_parameters():
        if name not in trained:
            assert torch.equal(p, before[name])
            continue
        part = torch.arange(1.0, dim + 1)[start : start + p.numel()].view(p.shape)
        assert torch.allclose(p, before[name] * 0.5 - part)
        start += p.numel()


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float32])
def test_a_model_of_two_dtypes_takes_the_rows_that_its_parameters_ask_for(
    first: torch.dtype,
) -> None:
    second = torch.float32 if first is torch.bfloat16 else torch.bfloat16
    model = nn.Sequential(nn.Linear(2, 2).to(first), nn.Linear(2, 1).to(second))
    server = serve(ra.Mean(), model=model, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    sent = server.parameters()
    assert sent.dtype == torch.float32
    assert server.schema([0]).dtype == sent.dtype
    record = server.step([Update(0, 0, torch.full_like(sent, 0.5))])
    assert record.skipped is None
    assert record.rejected == ()
    assert torch.allclose(server.parameters(), sent - 0.5, atol=1e-2)
    assert [p.dtype for p in model.parameters()] == [first, first, second, second]


@every_dtype
@every_rule
def test_every_rule_trains_a_model_of_every_dtype(rule: str, dtype: torch.dtype) -> None:
    server = serve(RULES[rule](), f=1, model=perceptron(dtype))
    before = server.parameters()
    for _ in range(2):
        record = server.step([*honest(server, range(4)), *constant(server, {4: math.nan})])
        assert record.skipped is None
    assert server.estimate is not None
    assert server.estimate.dtype == dtype
    assert server.parameters().dtype == dtype
    assert server.parameters().isfinite().all()
    assert not torch.equal(server.parameters(), before)


def test_the_schema_is_the_round_s() -> None:
    server = serve(ra.Mean(), model=perceptron(torch.float64))
    server.step(honest(server))
    schema = server.schema(iter([4, 1]))
    assert (schema.round, schema.dim, schema.dtype) == (1, 22, torch.float64)
    assert schema.senders == {1, 4}


def test_what_a_server_cannot_be_made_of() -> None:
    net = perceptron()
    fine: dict[str, Any] = {"f": 0, "device": "cpu"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"f": -1}, "Server: f must be an integer >= 0, found -1"),
        ({"f": 1.0}, r"Server: f must be an integer >= 0, found 1\.0"),
        ({"quorum": 0}, "Server: quorum must be an integer >= 1, found 0"),
        ({"on_failure": "ignore"}, "on_failure must be 'skip' or 'raise', found 'ignore'"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            Server(net, sgd(net.parameters()), ra.Mean(), **{**fine, **options})
    optimizer = sgd(net.parameters())
    with pytest.raises(ValueError, match="trainable parameters, found none"):
        Server(net.requires_grad_(False), optimizer, ra.Mean(), **fine)


# --- what the ledger says -------------------------------------------------------------------------


def only_line(path: Path) -> Any:
    (line,) = path.read_text(encoding="utf-8").splitlines()
    return json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))


@every_rule
def test_a_line_of_the_ledger_has_one_entry_per_sender(rule: str, tmp_path: Path) -> None:
    server = serve(
        RULES[rule](),
        f=1 if rule in ("krum", "bucketing") else 2,
        ledger=Ledger(tmp_path / "ledger"),
    )
    updates = [*honest(server, [8, 1, 3, 5]), *constant(server, {2: math.inf})]
    record = server.step(updates, senders=[1, 2, 3, 5, 8, 9])
    line = only_line(tmp_path / "ledger")
    assert line == json.loads(record.line())
    assert line["senders"] == [1, 2, 3, 5, 8]
    assert len(line["distances"]) == 5
    assert [d is None for d in line["distances"]] == [False, True, False, False, False]
    no_weights = {"trimmed mean", "median", "nnm"}
    no_weights |= {"vclip sequential", "cclip batch", "signed increment"}
    assert (line["weights"] is None) == (rule in no_weights)
    if line["weights"] is not None:
        assert len(line["weights"]) == 5
        assert line["weights"][1] == 0
        assert any(line["weights"])
    assert [(r["sender"], r["keeps_place"]) for r in line["rejected"]] == [(9, False), (2, True)]
    assert line["skipped"] is None
    assert line["estimate_norm"] > 0
    assert set(line["seconds"]) == {"admit", "aggregate", "step"}
    assert (line["solver"] is None) == (rule not in ("geometric median", "bucketing"))


def test_norms_beyond_every_number_do_not_break_the_ledger(tmp_path: Path) -> None:
    # Squares of 1e200 overflow: the median is finite, its norm is not a number of JSON.
    server = serve(
        ra.CoordinateWiseMedian(),
        f=1,
        model=perceptron(torch.float64),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-200),
        ledger=Ledger(tmp_path / "ledger"),
    )
    record = server.step(constant(server, dict.fromkeys(range(3), 1e200)))
    assert record.skipped is None
    assert record.estimate_norm is None
    assert only_line(tmp_path / "ledger")["estimate_norm"] is None


def test_rounds_are_numbered_in_the_ledger_skipped_ones_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    server = serve(ra.Mean(), f=1, ledger=ledger)
    for present in ([0, 1, 2], [0], [], [0, 1, 2]):
        server.step(honest(server, present))
    lines = list(ledger)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert [line["skipped"] is None for line in lines] == [True, False, False, True]


# --- messages that do not count -------------------------------------------------------------------


@every_rule
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_row_beyond_measure_has_weight_0_and_is_listed(rule: str, value: float) -> None:
    server = serve(RULES[rule](), f=1)
    for _ in range(2):
        record = server.step([*constant(server, {2: value}), *honest(server, [0, 1, 3, 4])])
        assert record.skipped is None
        assert record.senders == (0, 1, 2, 3, 4)
        assert server.estimate is not None
        assert server.estimate.isfinite().all()
        assert flat(server.model).isfinite().all()
        assert float(server.estimate.abs().max()) < 100
        if math.isfinite(value):
            continue  # coordinate-wise rules measure 3e38 like any other number
        assert record.distances[2] is None
        assert record.weights is None or record.weights[2] == 0
        assert record.rejected == (Rejection(2, "non-finite or too far to measure", True),)


def test_the_mean_is_that_of_the_finite_rows() -> None:
    server = serve(ra.Mean(), f=1)
    values = constant(server, {0: 1.0, 1: 2.0, 2: 6.0})
    record = server.step([*values, *constant(server, {3: math.nan})])
    assert server.estimate is not None
    assert bool((server.estimate == 3).all())
    assert record.weights == (1 / 3, 1 / 3, 1 / 3, 0.0)


@every_rule
def test_a_malformed_message_keeps_its_place_with_weight_0(rule: str) -> None:
    server = serve(RULES[rule](), f=1)
    record = server.step([*honest(server, [0, 1, 3, 4]), Update(2, 0, torch.ones(3))])
    assert record.skipped is None
    assert record.senders == (0, 1, 2, 3, 4)
    assert record.weights is None or record.weights[2] == 0
    assert record.distances[2] is None
    # Once, with the reason that admission gave.
    assert record.rejected == (Rejection(2, "the row must have 22 elements, found 3", True),)
    nan = serve(RULES[rule](), f=1)
    nan.step([*honest(nan, [0, 1, 3, 4]), *constant(nan, {2: math.nan})])
    assert held(server) == held(nan)


def test_what_the_transport_refused_keeps_its_place() -> None:
    server = serve(ra.Mean(), f=1)
    refused = [Rejection(2, "oversize", keeps_place=True), Rejection(3, "timeout")]
    record = server.step(
        constant(server, {0: 1.0, 1: 3.0}), senders=range(5), refused=iter(refused)
    )
    assert record.skipped is None
    assert record.senders == (0, 1, 2)
    assert record.weights == (0.5, 0.5, 0.0)
    assert record.rejected == (*refused, Rejection(4, "missing: no message arrived"))


def test_a_refused_sender_is_one_of_those_asked_where_nobody_says_who_was() -> None:
    server = serve(ra.Mean(), f=1)
    refused = [Rejection(2, "oversize", keeps_place=True), Rejection(-1, "noise", keeps_place=True)]
    record = server.step(constant(server, {0: 1.0, 1: 3.0}), refused=iter(refused))
    assert record.senders == (0, 1, 2)
    assert record.skipped is None


def test_a_sender_whose_second_message_is_non_finite_is_listed_for_both() -> None:
    server = serve(ra.Mean(), f=1)
    bad = Update(2, 0, torch.ones(3))
    record = server.step([bad, *constant(server, {0: 1.0, 1: 3.0, 2: math.nan})])
    assert record.senders == (0, 1, 2)
    assert [r.sender for r in record.rejected] == [2, 2]
    assert [r.keeps_place for r in record.rejected] == [False, True]


def test_stale_and_unknown_messages_do_not_move_the_model() -> None:
    plain, disturbed = (serve(ra.Mean()) for _ in range(2))
    for _ in range(2):
        updates = honest(plain)
        noise = [
            Update(1, disturbed.round - 1, updates[0].row * 1e6),
            Update(77, disturbed.round, updates[0].row * 1e6),
        ]
        plain.step(updates)
        record = disturbed.step(
            [noise[0], *updates, noise[1], *constant(disturbed, {0: 1e6})], senders=range(5)
        )
        assert [r.reason.split(":")[0] for r in record.rejected] == [
            "stale",
            "unknown sender 77",
            "duplicate",
        ]
    assert held(plain) == held(disturbed)


# --- ids of other libraries -----------------------------------------------------------------------

IDS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "numpy": np.int64,
    "numpy, unsigned": np.uint8,
    "torch": torch.tensor,
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("asked", ["said", "not said"])
def test_integers_of_other_libraries_are_ids_like_any(
    kind: str, asked: str, tmp_path: Path
) -> None:
    identity = IDS[kind]

    def run(identity: Callable[[int], Any], path: Path) -> tuple[Any, Any]:
        server = serve(ra.VClip(), f=1, seed=identity(3), ledger=Ledger(path))
        rows = [update.row for update in honest(server, range(4))]
        rows[3] = rows[3][:5]
        updates = [Update(identity(i), identity(0), row) for i, row in enumerate(rows)]
        updates.append(Update(identity(0), identity(0), rows[0]))
        updates.append(Update(identity(2), identity(7), rows[0]))
        senders = [identity(i) for i in range(6)] if asked == "said" else None
        refused = [ra.Rejection(identity(4), "malformed", keeps_place=True)]
        server.step(updates, senders=senders, refused=refused)
        line = only_line(path)
        del line["seconds"]
        return line, picture(server.state_dict())

    assert run(identity, tmp_path / "found") == run(int, tmp_path / "expected")


@pytest.mark.parametrize("sender", ["a", None, 1.0, True, torch.tensor(1.0)], ids=repr)
def test_what_is_no_id_is_named(sender: Any) -> None:
    server = serve(ra.Mean())
    with pytest.raises(ValueError, match=r"^Server: every sender must be an integer, found"):
        server.step([], senders=[0, sender])
    with pytest.raises(ValueError, match=r"^Update: sender must be an integer, found"):
        Update(sender, 0, torch.ones(3))
    with pytest.raises(ValueError, match=r"^Update: round must be an integer, found"):
        Update(0, sender, torch.ones(3))
    with pytest.raises(ValueError, match=r"^Rejection: sender must be an integer, found"):
        ra.Rejection(sender, "late")
    assert server.round == 0
