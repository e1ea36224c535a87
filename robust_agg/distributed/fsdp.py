"""Robust gradients for FSDP2: a reduce-scatter by a robust rule, one parameter group at a time.

``fully_shard`` reduces the gradients of a group of parameters as the backward pass makes them, so
that each rank has its slice of the result. Here the rows are exchanged instead. A separable rule
answers at once. Any other needs the whole gradient: the rows of all groups are kept, and what the
reduction has answered is overwritten before the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.distributed.all_reduce import TIMEOUT
from robust_agg.distributed.exchanges import Sharded
from robust_agg.distributed.layout import narrowed
from robust_agg.distributed.parts import Parts
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.sharded_rule import made_on_all
from robust_agg.online.estimator import Estimator


class RobustFSDP:
    """Makes a model that ``fully_shard`` has sharded step by a robust rule.

    Call it when all of the model is sharded, and before the first backward pass, on all ranks
    together. Before each step of the optimizer :meth:`finish` must run: give the optimizer and it
    does, or call it yourself where gradients are looked at earlier, to clip them say.

    A separable rule (see :func:`robust_hook`) takes no memory but the rows of one group. Any other
    keeps the rows of all groups until :meth:`finish`: on each rank as many numbers as the whole,
    unsharded gradient has. It needs gradients in the dtype they are reduced in, on the device: a
    ``MixedPrecisionPolicy`` with a ``param_dtype`` reduces in that, unless its ``reduce_dtype`` is
    the parameters' own. Until :meth:`finish` they are NaN, so that nobody takes them for gradients.

    ``set_requires_gradient_sync(False)`` accumulates gradients, into one row of one step. Rows are
    single ranks', and each holds a slice: there is no ``trust`` and no ``groups``.

    The collectives of ``fully_shard`` itself know neither ``timeout`` nor :class:`RankError`: give
    ``init_process_group`` a timeout too. There is no support for a GradScaler: its rows would be
    scaled, and its check comes before the optimizer's step. Train in bfloat16, which needs none.

    Args:
        model: the module; all its sharded parts share one mesh of one dimension.
        rule: an aggregator, or an estimator whose state this keeps; the same on every rank.
        optimizer: the model's, whose steps then begin with :meth:`finish`.
        f: declared number of bad ranks; see :class:`RobustAllReduce`.
        seed: of random draws, with the number of the step.
        timeout: seconds a collective may take; see :func:`robust_all_reduce`.
        distances: whether ``explanation`` has distances.
        name: see :class:`RobustAllReduce`.

    Raises:
        ConstraintError, ValueError: nothing of the model is sharded, the rule cannot be, or does
            not go with n and f.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Aggregator | Estimator,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        f: int | None = None,
        seed: int = 0,
        timeout: float = TIMEOUT,
        distances: bool = False,
        name: str = "RobustFSDP",
    ) -> None:
        if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
            raise ValueError(
                f"{name}: torch must have FSDPModule.set_custom_reduce_scatter, "
                f"found {torch.__version__}"
            )
        self.ranks = Ranks(_group_of(model, name), who=name, timeout=timeout)
        if self.ranks.size == 1:
            raise ValueError(
                f"{name}: model must be sharded over two ranks or more, found one, on which "
                "fully_shard reduces nothing"
            )

        sharded = made_on_all(rule, Sharded(self.ranks), f=f, seed=seed, distances=distances)
        self._parts = Parts(sharded, _Chunks(self.ranks))
        # By name while they are sharded: within a forward pass the module has others.
        self._parameters = dict(model.named_parameters())
        self._under_way = False
        self._answers: list[tuple[tuple[Tensor, ...], Tensor]] = []
        self._seen: set[tuple[int, ...]] = set()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The base class that it asks for by type alone is private to torch.
                exchange: Any = _Exchange(self, _own_parameters(module))
                module.set_custom_reduce_scatter(exchange)
        if optimizer is not None:
            optimizer.register_step_pre_hook(self._before_step)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.ranks.step

    @property
    def explanation(self) -> Explanation | None:
        """Why the last step came out as it did; see :class:`Parts`."""
        return self._parts.explanation

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Finish, and after a closure again: the backward pass may be within it."""
        self.finish()

        def finishing(closure: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                loss = closure()
                self.finish()
                return loss

            return call

        args = tuple(finishing(a) if callable(a) and a is not optimizer else a for a in args)
        return args, {name: finishing(a) if callable(a) else a for name, a in kwargs.items()}

    def take(self, parameters: tuple[Tensor, ...], vector: Tensor, answer: Tensor) -> None:
        """The rows of one group of parameters: the reduce-scatter itself.

        Args:
            parameters: of the group.
            vector: ``(n k,)``, this rank's row, the ranks' slices one after another.
            answer: ``(k,)``, where this rank's slice of the result goes.
        """
        if not self._under_way:
            self._parts.begin()
            self._answers, self._seen, self._under_way = [], set(), True
        key = tuple(map(id, parameters))
        if key in self._seen:
            raise ValueError(
                f"{self.ranks.who}: finish must run between two backward passes, found a second "
                "one; set_requires_gradient_sync(False) accumulates gradients"
            )
        self._seen.add(key)
        n, k = self.ranks.size, answer.numel()
        rows = self.ranks.exchange(vector, [k] * n).result()
        output = self._parts.add(parameters, rows, [k] * n)
        if output is None:
            self._answers.append((parameters, answer))
            answer.fill_(torch.nan)  # nobody should take it for a gradient yet
        else:
            answer.copy_(narrowed(output, answer.dtype))

    def finish(self) -> None:
        """The backward pass has ended: the gradients are now those of the rule.

        Does nothing where none has taken place since the last call.

        Raises:
            TooManyRejectedError, ValueError: as the rule's, on every rank; the state is as before
                the step, and the gradients are to be thrown away.
            RankError: a rank is gone, or stalls.
        """
        if not self._under_way:
            return
        self._under_way = False
        answers, self._answers = self._answers, []
        for parameters, answer in answers:
            _check_aliases(self.ranks.who, parameters, answer)
        for (_, answer), output in zip(answers, self._parts.finish(), strict=True):
            answer.copy_(narrowed(output, answer.dtype))
        self.ranks.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Step, rule and the estimator's state; see :meth:`RobustHook.state_dict`, which is alike.

        All ranks must call it, for what they hold of the estimate is collected; all get the same.

        Raises:
            ValueError: a parameter is sharded along another dimension than its first, or one has
                no gradient where others of its group have.
        """
        return self._parts.state_dict(self._parameters)

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue where a state was taken, with any number of ranks, under FSDP2 or DDP.

        Raises:
            ValueError: it is of another rule, of the same one with other parameters, or of another
                model.
        """
        self._parts.load_state_dict(tree, self._parameters)


class _Chunks:
    """What ``fully_shard`` deals out: of each parameter of a group n chunks of rows, all of the
    size of the first, the last ones padded; each rank has its chunk of all of them."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def own(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        padded = [
            torch.cat([value.flatten(), value.new_zeros(size * self._ranks.size - value.numel())])
            for value, size in zip(values, self._sizes(parameters), strict=True)
        ]
        return torch.cat([value.view(self._ranks.size, -1)[self._ranks.rank] for value in padded])

    def whole(self, parameters: Sequence[Tensor], own: Tensor) -> Sequence[Tensor]:
        sizes = self._sizes(parameters)
        if len(own) != sum(sizes):
            raise ValueError(
                f"{self._ranks.who}: every parameter of a group must have a gradient for the "
                f"estimate to be saved, found {len(own)} numbers of {sum(sizes)}"
            )
        of_ranks = self._ranks.gather(own, "the collection of an estimate")
        chunks = torch.split(of_ranks, sizes, dim=1)
        pairs = zip(parameters, chunks, strict=True)
        return [
            chunk.reshape(-1)[: parameter.numel()].view(parameter.shape)
            for parameter, chunk in pairs
        ]

    def _sizes(self, parameters: Sequence[Tensor]) -> list[int]:
        """How many numbers of each parameter a rank has."""
        for parameter in parameters:
            if isinstance(parameter, DTensor) and parameter.placements != (Shard(0),):
                raise ValueError(
                    f"{self._ranks.who}: the estimate of a parameter can be saved where it is "
                    f"sharded along its first dimension, found {parameter.placements}"
                )
        n = self._ranks.size
        return [-(-len(p) // n) * (p.numel() // len(p)) for p in parameters]


class _Exchange:
    """The reduce-scatter that ``fully_shard`` calls for one group of parameters."""

    def __init__(self, robust: RobustFSDP, parameters: tuple[Tensor, ...]) -> None:
        self._robust, self._parameters = robust, parameters

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> None:
        if op != dist.ReduceOp.AVG:
            raise ValueError(
                f"RobustFSDP: gradients must be reduced in float32 or bfloat16, by their mean, "
                f"found {input_tensor.dtype} and {op}"
            )
        reduced = tuple(p for p in self._parameters if p.requires_grad)
        self._robust.take(reduced, input_tensor, output_tensor)


def _group_of(model: nn.Module, who: str) -> dist.ProcessGroup:
    """The ranks over which all of the model is sharded."""
    meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
    whole = sum(not isinstance(p, DTensor) for p in model.parameters())
    if len(meshes) != 1 or whole or next(iter(meshes)).ndim != 1:
        raise ValueError(
            f"{who}: all of the model must be sharded by fully_shard over one mesh of one "
            f"dimension, found meshes of {[mesh.ndim for mesh in meshes]} dimensions and {whole} "
            "parameters that are not sharded"
        )
    group: dist.ProcessGroup = meshes.pop().get_group()
    return group


def _own_parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Those that ``fully_shard`` reduces with this module, and not with one within it."""
    inner = {
        id(parameter)
        for other in module.modules()
        if isinstance(other, FSDPModule) and other is not module
        for parameter in other.parameters()
    }
    return tuple(p for p in module.parameters() if id(p) not in inner)


def _check_aliases(who: str, parameters: Sequence[Tensor], answer: Tensor) -> None:
    """Raise unless the gradients are views of what the reduction has answered."""
    memory = answer.untyped_storage().data_ptr()
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor) and grad.to_local().untyped_storage().data_ptr() != memory:
            found = f"a gradient of {grad.dtype} on {grad.device} that was copied"
            way_out = "set_requires_gradient_sync(False) accumulates before the reduction"
            if grad.dtype != answer.dtype:
                found += f" from {answer.dtype}"
                way_out = f"MixedPrecisionPolicy(reduce_dtype={grad.dtype}) keeps it as it is"
            raise ValueError(
                f"{who}: a rule that needs the whole gradient must find it in the dtype it was "
                f"reduced in, on its device and not added to another, found {found}; {way_out}"
            )
