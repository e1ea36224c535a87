"""Robust gradients for FSDP2: a reduce-scatter by a robust rule, one parameter group at a time.

``fully_shard`` reduces the gradients of a group of parameters as the backward pass makes them, so
that each rank has its slice of the result. Here the rows are exchanged instead. A separable rule
answers at once. Any other needs the whole gradient: the rows of all groups are kept, and what the
reduction has answered is overwritten before the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.distributed.all_reduce import TIMEOUT
from robust_agg.distributed.exchanges import Sharded
from robust_agg.distributed.header import REFUSAL, digest, rule_in_words
from robust_agg.distributed.layout import narrowed
from robust_agg.distributed.parts import Parts
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.sharded_rule import made_on_all
from robust_agg.online.estimator import Estimator


class RobustFSDP:
    """Makes a model that ``fully_shard`` has sharded step by a robust rule.

    Call it when all of the model is sharded, and before the first backward pass. Before each step
    of the optimizer :meth:`finish` must run: give the optimizer and it does, or call it yourself
    where gradients are looked at earlier, to clip them say.

    A separable rule (see :func:`robust_hook`) takes no memory but the rows of one group. Any other
    keeps the rows of all groups until :meth:`finish`: on each rank as many numbers as the whole,
    unsharded gradient has. It needs gradients in the dtype they are reduced in, on the device;
    until :meth:`finish` they are NaN, so that nobody takes them for gradients.

    There is no support for a GradScaler: its rows would be scaled, and its check comes before the
    optimizer's step. Train in bfloat16, which needs none. An estimator's state is not saved: after
    a restart it begins anew.

    Args:
        model: the module; all its sharded parts share one mesh of one dimension.
        rule: an aggregator, or an estimator whose state this keeps; the same on every rank.
        optimizer: the model's, whose steps then begin with :meth:`finish`.
        f: declared number of bad ranks; see :class:`RobustAllReduce`.
        seed: of random draws, with the number of the step.
        timeout: seconds a collective may take.
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

        sharded = made_on_all(
            rule,
            Sharded(self.ranks),
            f=f,
            seed=seed,
            distances=distances,
            refusal=[REFUSAL, REFUSAL],
        )
        self._parts = Parts(sharded, fixed=True)
        self._specification = digest(sharded.asked)
        self._agreed = self._under_way = False
        self._answers: list[tuple[tuple[Tensor, ...], Tensor]] = []
        self._seen: set[tuple[int, ...]] = set()
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The base class that it asks for by type alone is private to torch.
                exchange: Any = _Exchange(self, _own_parameters(module))
                module.set_custom_reduce_scatter(exchange)
        if optimizer is not None:
            optimizer.register_step_pre_hook(lambda *_: self.finish())

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.ranks.step

    @property
    def explanation(self) -> Explanation | None:
        """Why the last step came out as it did; see :class:`Parts`."""
        return self._parts.explanation

    def take(self, parameters: tuple[Tensor, ...], vector: Tensor, answer: Tensor) -> None:
        """The rows of one group of parameters: the reduce-scatter itself.

        Args:
            parameters: of the group.
            vector: ``(n k,)``, this rank's row, the ranks' slices one after another.
            answer: ``(k,)``, where this rank's slice of the result goes.
        """
        if not self._under_way:
            if not self._agreed:
                self.ranks.agree([self._specification, self.step], rule_in_words)
                self._agreed = True
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
            DisagreementError: the ranks have different rules; raised by the backward pass.
            TooManyRejectedError, ValueError: as the rule's, on every rank; the state is as before
                the step, and the gradients are to be thrown away.
            RankError: a rank is gone, or stalls.
        """
        if not self._under_way:
            return
        self._under_way = False
        answers, self._answers = self._answers, []
        for (parameters, answer), output in zip(answers, self._parts.finish(), strict=True):
            _check_aliases(self.ranks.who, parameters, answer)
            answer.copy_(narrowed(output, answer.dtype))
        self.ranks.step += 1


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
        self._robust.take(self._parameters, input_tensor, output_tensor)


def _group_of(model: nn.Module, who: str) -> dist.ProcessGroup:
    """The ranks over which all of the model is sharded."""
    meshes = {p.device_mesh for p in model.parameters() if isinstance(p, DTensor)}
    whole = sum(not isinstance(p, DTensor) for p in model.parameters())
    if len(meshes) != 1 or whole or next(iter(meshes)).ndim != 1:
        raise ValueError(
            f"{who}: all of the model must be sharded by fully_shard over one mesh of one "
            f"dimension, found {len(meshes)} meshes and {whole} parameters that are not sharded"
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
            raise ValueError(
                f"{who}: a rule that needs the whole gradient must find it in the dtype it was "
                f"reduced in, on its device and not added to another, found a gradient of "
                f"{grad.dtype} on {grad.device} that was copied; set_requires_gradient_sync(False) "
                "accumulates before the reduction"
            )
