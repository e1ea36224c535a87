"""Small trainings under DDP and FSDP2 that the tests have ranks do, beside the dense rule's."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from rank_jobs import Rule
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from robust_agg import Aggregator
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.distributed import Evidence, robust_hook
from robust_agg.distributed.fsdp import RobustFSDP
from robust_agg.ledger import Ledger
from robust_agg.seeding import generator

BUCKET_MB = 0.02  # the model has about 30 KB: several buckets, which DDP arranges anew after a step


def network(*, unused: bool = False) -> nn.Sequential:
    """The same parameters wherever it is called; the last layer may not be used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(11, 60), nn.Tanh(), nn.Linear(60, 61), nn.Tanh(), nn.Linear(61, 5)]
        return nn.Sequential(*layers, *([nn.Linear(5, 3)] if unused else []))


def loss(model: nn.Module, rank: int, step: int, *, layers: int = 5) -> Tensor:
    """Of a rank's own batch; rank 1's gradients are 30 times too long."""
    draw = generator(0, "batch", rank, step)
    inputs, targets = torch.randn(8, 11, generator=draw), torch.randint(5, (8,), generator=draw)
    found = model(inputs) if layers == 5 else model[:layers](inputs)  # type: ignore[index]
    scale = 30.0 if rank == 1 else 1.0
    return scale * nn.functional.cross_entropy(found[:, :5], targets)


def flat(model: nn.Module) -> Tensor:
    """The model's gradient as one vector."""
    parts = []
    for parameter in model.parameters():
        grad = parameter.grad
        assert grad is not None
        parts.append(grad.full_tensor() if hasattr(grad, "full_tensor") else grad)
    return torch.cat([part.reshape(-1) for part in parts])


class Dense:
    """The same training in one process: all ranks' gradients, and the rule on their rows."""

    def __init__(self, rule: Rule, ranks: int, groups: int | None = None) -> None:
        self.rule, self.ranks, self.model = rule, ranks, network()
        self.groups = groups or ranks
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.state: Any = None
        self.bad: dict[int, float] = {}
        # What the loss of some ranks is multiplied with.

    def step(self, number: int, *, batches: int = 1) -> Tensor:
        """One step, its gradients accumulated over some batches; the gradient it steps by."""
        rows = []
        for rank in range(self.ranks):
            self.optimizer.zero_grad()
            for batch in range(batches):
                (self.bad.get(rank, 1.0) * loss(self.model, rank, number + 100 * batch)).backward()
            rows.append(flat(self.model))
        stacked = torch.stack(rows).view(self.groups, self.ranks // self.groups, -1).mean(dim=1)
        draw = generator(0, "robust all-reduce", number)
        if isinstance(self.rule, Aggregator):
            found = self.rule(stacked, generator=draw)
        else:
            state = self.state or self.rule.init(stacked[0])
            found, self.state = self.rule.step(stacked, state, generator=draw)
        nn.utils.vector_to_parameters(found, [p.grad for p in self.model.parameters()])  # type: ignore[misc]
        self.optimizer.step()
        return found


def ddp_steps(
    rule: Rule, steps: int, options: dict[str, Any], ddp: dict[str, Any] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The gradient of each step under DDP, and that of the dense training."""
    model = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB, **(ddp or {}))
    model.register_comm_hook(*robust_hook(rule, **options))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dense = Dense(rule, dist.get_world_size(), options.get("groups"))
    found = []
    for number in range(steps):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        found.append((flat(model), dense.step(number)))
        optimizer.step()
    return found


class _Halves(nn.Module):
    """A network whose first layer is of float64: DDP puts it into a bucket of its own."""

    def __init__(self) -> None:
        super().__init__()
        first, *others = network()
        self.first, self.others = first.double(), nn.Sequential(*others)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.others(self.first(inputs.double()).float())
        return found


def of_two_dtypes(rule: Rule, ddp: dict[str, Any] | None = None) -> list[tuple[Tensor, Tensor]]:
    """As ``ddp_steps``, two of them, of a model whose first layer is of float64."""
    model = nn.parallel.DistributedDataParallel(_Halves(), bucket_cap_mb=BUCKET_MB, **(ddp or {}))
    model.register_comm_hook(*robust_hook(rule))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dense = Dense(rule, dist.get_world_size())
    found = []
    for number in range(2):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        found.append((flat(model).float(), dense.step(number)))
        optimizer.step()
    return found


def with_bad_row(rule: Rule, fill: float, kind: str) -> tuple[Tensor, Tensor]:
    """The second gradient where rank 0 has nothing but ``fill`` in it, and the dense rule's."""
    robust = None
    if kind == "ddp":
        model: nn.Module = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
        model.register_comm_hook(*robust_hook(rule))  # type: ignore[operator]  # of DDP
    else:
        model = sharded_network()
        robust = RobustFSDP(model, rule)
    dense = Dense(rule, dist.get_world_size())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    dense.optimizer = torch.optim.SGD(dense.model.parameters(), lr=0.0)
    for number in range(2):
        optimizer.zero_grad()
        value = loss(model, dist.get_rank(), number)
        if number == 1:
            dense.bad = {0: fill}
            value = value if dist.get_rank() else _Filled.apply(value, fill)
        value.backward()
        if robust is not None:
            robust.finish()
        expected = dense.step(number)
    return flat(model), expected


class _Filled(torch.autograd.Function):
    """What has a gradient of ``fill`` in each of its numbers, times what they had."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, fill: float) -> Tensor:
        ctx.fill = fill
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.fill, None


def accumulated(rule: Rule) -> tuple[Tensor, Tensor]:
    """Two batches, the first without synchronisation."""
    model = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
    model.register_comm_hook(*robust_hook(rule))
    with model.no_sync():
        loss(model, dist.get_rank(), 0).backward()
    loss(model, dist.get_rank(), 100).backward()
    return flat(model), Dense(rule, dist.get_world_size()).step(0, batches=2)


def unused(rule: Rule) -> list[bool]:
    """Whether each parameter has a gradient where the last layer is not used."""
    model = nn.parallel.DistributedDataParallel(
        _Head(network(unused=True)), bucket_cap_mb=BUCKET_MB, find_unused_parameters=True
    )
    model.register_comm_hook(*robust_hook(rule))
    for step in range(2):
        loss(model, dist.get_rank(), step).backward()
    return [p.grad is not None and bool(p.grad.any()) for p in model.parameters()]


class _Head(nn.Module):
    """A network of which the last layer is never called."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layers[:5](inputs)
        return found


def scaled(rule: Rule, bad: int, options: dict[str, Any]) -> dict[str, Any]:
    """A step under a GradScaler, one in which ``bad`` ranks have NaN, and a good one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
    hook = robust_hook(rule, scaler=scaler, **options)
    model.register_comm_hook(*hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dense = Dense(rule, dist.get_world_size())
    found: dict[str, Any] = {"steps": [], "scales": []}
    for number in range(3):
        optimizer.zero_grad()
        value = loss(model, dist.get_rank(), number)
        if number == 1 and dist.get_rank() < bad:
            value = value * torch.nan
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        if number != 1:
            # The failed step counts: its number is not used again.
            found["steps"].append((flat(model), dense.step(number)))
        scaler.step(optimizer)
        scaler.update()
        found["scales"].append(scaler.get_scale())
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        found.setdefault("moved", []).append(moved)
    return found


def saved(rule: Rule, path: str) -> list[tuple[Tensor, Tensor]]:
    """Steps of a training that goes on with another hook and other buckets after the second."""
    dense = Dense(rule, dist.get_world_size())
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    found = []
    for part, cap in enumerate((BUCKET_MB, 10.0)):
        model = nn.parallel.DistributedDataParallel(module, bucket_cap_mb=cap)
        state, hook = robust_hook(rule, name=f"hook {part}")
        model.register_comm_hook(state, hook)
        if part == 1:
            state.load_state_dict(load_checkpoint(path), model)
        for number in (2 * part, 2 * part + 1):
            optimizer.zero_grad()
            loss(model, dist.get_rank(), number).backward()
            found.append((flat(model), dense.step(number)))
            optimizer.step()
        tree = state.state_dict(model)
        if part == 0 and dist.get_rank() == 0:
            save_checkpoint(path, tree)
        dist.barrier()
    return found


def raising(rule: Rule, options: dict[str, Any], bad: int) -> Exception | None:
    """What a backward pass raises on each rank where some have NaN."""
    model = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
    model.register_comm_hook(*robust_hook(rule, **options))
    value = loss(model, dist.get_rank(), 0)
    try:
        (value * torch.nan if dist.get_rank() < bad else value).backward()
    except Exception as error:
        return error
    return None


def different_rules(rules: list[Rule], kind: str) -> Exception | None:
    """What is raised where each rank has a rule of its own, before a pass that is a collective."""
    rule = rules[dist.get_rank()]
    try:
        if kind == "ddp":
            hook = robust_hook(rule)
        else:
            model = sharded_network()
            RobustFSDP(model, rule)
    except Exception as error:
        return error
    if kind == "ddp":
        nn.parallel.DistributedDataParallel(network()).register_comm_hook(*hook)
    else:
        model(torch.zeros(1, 11))
    return None


def struck_in_backward(rule: Rule, victim: int, sign: int, timeout: float) -> None:
    """The second backward pass, in which a rank is struck when its first bucket is ready."""
    model = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
    model.register_comm_hook(*robust_hook(rule, timeout=timeout))
    for step in range(2):
        value = loss(model, dist.get_rank(), step)
        if step == 1 and dist.get_rank() == victim:
            handle = model.module[-1].weight  # type: ignore[index,union-attr]
            handle.register_hook(lambda grad: os.kill(os.getpid(), signal.Signals(sign)))  # type: ignore[operator]
        value.backward()


def fsdp_steps(rule: Rule, steps: int, options: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """The gradient of each step under FSDP2, and that of the dense training."""
    model = sharded_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    robust = RobustFSDP(model, rule, optimizer, **options)
    dense = Dense(rule, dist.get_world_size())
    found = []
    for number in range(steps):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        robust.finish()
        found.append((flat(model), dense.step(number)))
        optimizer.step()
    assert robust.step == steps
    return found


def fsdp_saving(rule: Rule, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state after two steps under FSDP2, which is kept, and as it is when just loaded."""
    model = sharded_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    robust = RobustFSDP(model, rule, optimizer, name="first")
    for number in range(2):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        optimizer.step()
    tree = robust.state_dict()
    if dist.get_rank() == 0:
        save_checkpoint(path, tree)
    dist.barrier()
    other = RobustFSDP(sharded_network(), rule, name="second")
    other.load_state_dict(load_checkpoint(path))
    return tree, other.state_dict()


def fsdp_continued(rule: Rule, path: str, before: int) -> list[tuple[Tensor, Tensor]]:
    """Two more steps under FSDP2, where ``before`` ranks have made the first two."""
    dense = Dense(rule, before)
    for number in range(2):
        dense.step(number)
    dense.ranks = dense.groups = dist.get_world_size()
    model = network()
    model.load_state_dict(dense.model.state_dict())
    sharded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    robust = RobustFSDP(model, rule, optimizer)
    robust.load_state_dict(load_checkpoint(path))
    found = []
    for number in (2, 3):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        robust.finish()
        found.append((flat(model), dense.step(number)))
        optimizer.step()
    return found


def fsdp_by_closure(rule: Rule) -> list[tuple[Tensor, Tensor]]:
    """The gradients by which steps are made whose backward pass is in a closure."""
    model = sharded_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RobustFSDP(model, rule, optimizer)
    dense = Dense(rule, dist.get_world_size())
    found = []
    for number in range(3):

        def closure(number: int = number) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, dist.get_rank(), number)
            value.backward()
            return value

        optimizer.step(closure)
        found.append((flat(model), dense.step(number)))
    return found


def fsdp_frozen(rule: Rule) -> list[str]:
    """The parameters of which a state knows an estimate where each layer's bias is frozen."""
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    sharded(model)
    robust = RobustFSDP(model, rule)
    loss(model, dist.get_rank(), 0).backward()
    robust.finish()
    return sorted(robust.state_dict()["estimate"])


def in_another_order(rule: Rule, path: str) -> list[tuple[Tensor, Tensor]]:
    """States of channels_last parameters and of others, and the gradients that go on with them."""
    states, gradients = [], []
    for order in (torch.channels_last, torch.contiguous_format):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(4))
            module(torch.zeros(1, 3, 5, 5))
        module = module.to(memory_format=order)
        for part in range(2):
            model = nn.parallel.DistributedDataParallel(module)
            state, hook = robust_hook(rule, name=f"{order} {part}")
            model.register_comm_hook(state, hook)
            if part == 1:
                state.load_state_dict(load_checkpoint(path), model)
            model.zero_grad()
            draw = generator(0, "images", dist.get_rank(), part)
            model(torch.randn(2, 3, 5, 5, generator=draw)).square().sum().backward()
            if part == 0:
                states.append(state.state_dict(model))
                if dist.get_rank() == 0:
                    save_checkpoint(path, states[-1])
                dist.barrier()
            else:
                gradients.append(flat(module))
            dist.barrier()
    kept = [torch.cat([v.reshape(-1) for v in s["estimate"].values()]) for s in states]
    return [(kept[0], kept[1]), (gradients[0], gradients[1])]


def unfrozen_later(rule: Rule, path: str) -> list[Tensor]:
    """The estimate before and after a layer more is trained, in steps with gradients of zero."""
    module = network()
    module[4].requires_grad_(False)
    found = []
    for part in range(2):
        model = nn.parallel.DistributedDataParallel(module)
        state, hook = robust_hook(rule, name=f"hook {part}")
        model.register_comm_hook(state, hook)
        if part == 1:
            state.load_state_dict(load_checkpoint(path), model)
        scale = 1.0 if part == 0 else 0.0
        model.zero_grad()
        (scale * loss(model, dist.get_rank(), 0)).backward()
        tree = state.state_dict(model)
        if part == 0 and dist.get_rank() == 0:
            save_checkpoint(path, tree)
        dist.barrier()
        found.append(tree["estimate"]["0.weight"])
        module[4].requires_grad_(True)
    return found


def fsdp_refusing(rule: Rule, path: str) -> Exception | None:
    """What loading a state raises that is another rule's."""
    try:
        RobustFSDP(sharded_network(), rule).load_state_dict(load_checkpoint(path))
    except ValueError as error:
        return error
    return None


def sharded_network(**options: Any) -> nn.Sequential:
    """The network, sharded."""
    return sharded(network(), **options)


def sharded(model: nn.Sequential, **options: Any) -> nn.Sequential:
    """Its layers sharded by themselves but for the last, which goes with the whole."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def fsdp_raising(rule: Rule, bad: int) -> Exception | None:
    """What finishing raises on each rank where some have NaN."""
    model = sharded_network()
    robust = RobustFSDP(model, rule)
    value = loss(model, dist.get_rank(), 0)
    (value * torch.nan if dist.get_rank() < bad else value).backward()
    try:
        robust.finish()
    except Exception as error:
        return error
    return None


def fsdp_partly(rule: Rule) -> list[bool]:
    """Whether all of the gradient is finite in steps of which one leaves the first layer out."""
    model = sharded_network()
    robust = RobustFSDP(model, rule)
    found = []
    for number, without in enumerate((False, True, False)):
        model.zero_grad()
        value = loss(model, dist.get_rank(), number)
        if without:
            # The first layer's parameters do not take part in this backward pass.
            for parameter in model[0].parameters():
                parameter.requires_grad_(False)
            value = loss(model, dist.get_rank(), number)
        value.backward()
        robust.finish()
        for parameter in model[0].parameters():
            parameter.requires_grad_(True)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append(all(bool(g.to_local().isfinite().all()) for g in grads))  # type: ignore[attr-defined]
    return found


def stepping_finishes(rule: Rule) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters after two steps of an optimizer that finishes by itself, and the dense ones."""
    model = sharded_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RobustFSDP(model, rule, optimizer)
    dense = Dense(rule, dist.get_world_size())
    for number in range(2):
        optimizer.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        optimizer.step()
        dense.step(number)
    own = [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]
    return own, [p.detach() for p in dense.model.parameters()]


def badly_sharded(case: str, rule: Rule) -> Exception | None:
    """What is raised where FSDP2's gradients are such as cannot be made robust."""
    try:
        match case:
            case "nothing sharded":
                RobustFSDP(network(), rule)
            case "half precision":
                model = sharded_network(mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float16))
                RobustFSDP(model, rule)
                loss(model, dist.get_rank(), 0).backward()
            case "copied":
                model = sharded_network(mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16))
                robust = RobustFSDP(model, rule)
                loss(model, dist.get_rank(), 0).backward()
                robust.finish()
            case "computed in bfloat16":
                model = sharded_network(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
                robust = RobustFSDP(model, rule)
                loss(model, dist.get_rank(), 0).backward()
                robust.finish()
            case "added":
                model = sharded_network()
                robust = RobustFSDP(model, rule)
                for number in range(2):
                    loss(model, dist.get_rank(), number).backward()
                    robust.finish()
            case "twice":
                model = sharded_network()
                RobustFSDP(model, rule)
                for number in range(2):
                    loss(model, dist.get_rank(), number).backward()
            case "alone":
                RobustFSDP(sharded_network(), rule)
    except Exception as error:
        return error
    return None


def suspected(rule: Rule, path: str, reducer: str) -> dict[str, Any]:
    """Three steps looked at by Evidence, under DDP or FSDP2."""
    if reducer == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(network(), bucket_cap_mb=BUCKET_MB)
        hook = robust_hook(rule, distances=True)
        wrapped.register_comm_hook(*hook)
        model: nn.Module = wrapped
        evidence = Evidence(hook[0], ledger=Ledger(path))
    else:
        model = sharded_network()
        robust = RobustFSDP(model, rule, distances=True)
        evidence = Evidence(robust, ledger=Ledger(path))
    flags = []
    for number in range(3):
        model.zero_grad()
        loss(model, dist.get_rank(), number).backward()
        if reducer != "ddp":
            robust.finish()
        flags.append(sorted(evidence.update()))
    return {"flags": flags, "suspects": [str(s) for s in evidence.suspects], "pid": os.getpid()}
