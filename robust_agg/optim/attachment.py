"""The attachment of an online estimate to a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from types import MethodType
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_agg.online.block import BlockL2
from robust_agg.online.estimator import OnlineMedian
from robust_agg.optim import passes
from robust_agg.optim.checks import Scope, check_attachment, check_gradient
from robust_agg.optim.loans import Loans
from robust_agg.optim.state import check, kind_of, pack, unpack, zeros
from robust_agg.optim.vector import REJECTED, Member, Vector
from robust_agg.types import State

KEY = "online_estimate"
"""Where the state is in the optimizer's ``state_dict()``."""
MARK = "_robust_agg_online_estimate"
"""The attribute of an optimizer that has an attachment."""


class _Span(NamedTuple):
    """A vector, and its parameters with their places in it."""

    vector: Vector
    members: list[tuple[nn.Parameter, int]]


class OnlineEstimate:
    """An optimizer that steps by the online estimate m of its gradients (eq. 17).

    ``m_{t+1} = m_t + C(g_t - m_t)``, ``w_{t+1} = w_t - η m_{t+1}``, m_0 = 0, where C is the step of
    an estimator: clipping by norm for ``VClip`` (eq. 12), by coordinate for ``CClip`` (eq. 15), a
    factor for ``Momentum`` (eqs. 7 and 11), and so on::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        estimate = OnlineEstimate(optimizer, VClip(tau=0.1))
        ...                     # train as ever: optimizer.step() steps by the estimate

    Within ``optimizer.step()`` every ``.grad`` is m, which any optimizer, with weight decay and
    schedules, then takes for the gradient; afterwards it is the gradient again, as it was, so that
    ``zero_grad`` and accumulation do what they do without. m is the ``estimator.step`` of all
    gradients flattened into one row, in the order of the parameter groups. A parameter whose
    ``.grad`` is None keeps its m.

    A gradient that is not finite (or, except for ‖·‖₁, longer than can be measured, 1.8e19 in
    float32) leaves m as it is and is counted in :attr:`rejected`. The optimizer then steps by that
    m: it is the best estimate there is, and to skip the step one would have to wait for the device.
    Nothing here waits for it, and state stays at its place in memory, so that steps can be captured
    in CUDA graphs, from the second on.

    The state travels in ``optimizer.state_dict()``, under the key ``"online_estimate"`` that
    optimizers without an attachment ignore; where a state without it is loaded, the estimate begins
    anew. So attach first, then load; a copy of the optimizer (``deepcopy``, ``pickle``) has no
    attachment. ``torch.distributed.checkpoint`` drops such keys, and steps an optimizer that has no
    state yet once: with it, save and load :meth:`state_dict` beside.

    - Under a ``GradScaler`` gradients are unscaled before they are looked at. Where the scaler
      skips a step, the estimate is not asked (for fused optimizers: rejects).
    - With a closure, which may be called once a step, gradients are replaced after it. LBFGS, which
      compares gradients within a step, is refused.
    - In data parallel training gradients are averaged before the step: m is the same on all ranks.
    - Attach to the optimizer itself, before a framework wraps it. Hooks on its step find m in
      ``.grad``, and what they write there is for that step alone.
    - The device must know float64, which Apple's MPS does not.

    Attributes:
        optimizer: as given; its groups may grow.
        estimator: an ``OnlineMedian``, such as ``VClip(tau=0.1)``, of a divergence of the library
            or a ``Radial`` one. A single row is fused alike in all ways. With ``BlockL2`` the sizes
            are those of the blocks of the vector, ``[p.numel() for p in model.parameters()]`` for
            one a parameter. An adaptive τ follows the history of distances.
        vector: ``"model"`` or ``"group"``.
        bias_correction: let the estimate after t accepted gradients be ``m_t/(1 - β^t)``, their
            mean with weights that sum to 1. For ½‖·‖₂² (``Momentum``) alone.

    Raises:
        ValueError: the estimator cannot follow gradients this way; or, in a step, a gradient is
            sparse, sharded or not of a real floating dtype, or ``BlockL2``'s sizes do not fit.
        TypeError: ``optimizer`` is no torch optimizer, or a wrapper of one.
        RuntimeError: in a step: the closure was called twice, or m was changed from outside.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        estimator: OnlineMedian,
        *,
        vector: Scope = "model",
        bias_correction: bool = False,
    ) -> None:
        check_attachment(optimizer, estimator, vector, bias_correction)
        other = getattr(optimizer, MARK, None)
        if other is not None:
            raise ValueError(
                "OnlineEstimate: optimizer must have no online estimate yet, found one by "
                f"{other.estimator.name}; detach it first"
            )
        self.optimizer = optimizer
        self.estimator = estimator
        self.vector = vector
        self.bias_correction = bias_correction
        self._estimates: dict[nn.Parameter, Tensor] = {}
        self._vectors: list[Vector] = []
        self._loans = Loans(optimizer)
        self._kind = kind_of(estimator, vector, bias_correction)
        self._spans()  # before there is a hook
        try:
            self._handles = [
                optimizer.register_state_dict_post_hook(self._add_to),
                optimizer.register_load_state_dict_pre_hook(self._take_from),
                optimizer.register_load_state_dict_post_hook(self._take_over),
            ]
        except AttributeError as error:
            raise TypeError(
                "OnlineEstimate: optimizer must be a torch optimizer itself, "
                f"found a wrapper, {type(optimizer).__name__}"
            ) from error
        self._attached = True
        self._loaded: State = {}
        setattr(optimizer, MARK, self)
        # A step that fails, and one that calls its parent's, are beyond what torch's hooks can see.
        optimizer.step = MethodType(  # type: ignore[method-assign]  # as torch's schedulers do
            self._around(optimizer.step), optimizer
        )

    @property
    def rejected(self) -> Tensor:
        """``()`` int64 on the device: gradients that were rejected, over all vectors."""
        counts = [vector.state[REJECTED] for vector in self._vectors if vector.state]
        if not counts:
            return torch.zeros((), dtype=torch.int64, device="cpu")
        return torch.stack([count.to(counts[0].device) for count in counts]).sum()

    def of(self, parameter: nn.Parameter) -> Tensor:
        """m of a parameter, in at least float32: a copy; 0 before the first gradient.

        Raises:
            ValueError: the optimizer does not have the parameter.
        """
        if not any(parameter is own for own in self._parameters()):
            raise ValueError(
                "OnlineEstimate: of takes a parameter of the optimizer, "
                f"found {type(parameter).__name__} that is none"
            )
        m = self._estimates.get(parameter)
        return zeros(parameter) if m is None else m.clone()

    def detach(self) -> None:
        """Let the optimizer step by its gradients again."""
        if self._attached:
            delattr(self.optimizer, MARK)
        self._attached = False
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> State:
        """``estimate.i`` of the i-th parameter in the groups, and the counters of each vector.

        As in torch's own these are the tensors themselves: copy what has to outlive a step.
        """
        return pack(self._parameters(), self._estimates, self._vectors, self._kind)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state, which is copied; training is then the same to the bit.

        Raises:
            ValueError: it is of other parameters, or of another kind of estimate.
        """
        spans = self._spans()
        check(state, self._parameters(), self._vectors, self._kind)
        homes = [
            (vector, places[0][0].device if places else torch.device("cpu"))
            for vector, places in spans
        ]
        with torch.no_grad():
            unpack(state, self._parameters(), self._estimates, homes, self._zeros)

    def __reduce__(self) -> NoReturn:
        """Refuse: a copy of the optimizer has torch's own step, and would not ask the copy."""
        raise TypeError(
            "OnlineEstimate: it must not be copied or pickled: attach a new one to the copy of the "
            "optimizer, and load state_dict() there"
        )

    # --- around torch's methods -------------------------------------------------------------------

    def _around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            return self._step(inner, *args, **kwargs) if self._attached else inner(*args, **kwargs)

        # Schedulers know by a mark that they have been here.
        step.__dict__.update(getattr(inner, "__dict__", {}))
        return step

    def _step(self, inner: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        closure = args[0] if args else kwargs.get("closure")
        try:
            if closure is None:
                self._hand_out()
            elif args:
                args = (self._watched(closure), *args[1:])
            else:
                kwargs["closure"] = self._watched(closure)
            return inner(*args, **kwargs)
        finally:
            self._loans.end(self._estimates)

    def _watched(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, after which gradients are there: only then can they be replaced."""
        calls = 0

        def watched() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise RuntimeError(
                    "OnlineEstimate: the closure must be called once a step, found a second call: "
                    f"{type(self.optimizer).__name__} compares gradients within a step"
                )
            result = closure()
            self._hand_out()
            return result

        return watched

    def _add_to(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        state[KEY] = dict(self.state_dict())

    def _take_from(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        loaded = state.get(KEY, {})
        self._spans()
        check(loaded, self._parameters(), self._vectors, self._kind)
        self._loaded = loaded

    def _take_over(self, optimizer: Optimizer) -> None:
        # Not before the optimizer itself has accepted what it is to load.
        loaded, self._loaded = self._loaded, {}
        self.load_state_dict(loaded)

    # --- one step ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _hand_out(self) -> None:
        """Step the estimates, and let every ``.grad`` be one."""
        spans = self._spans()
        for parameter in self._parameters():
            check_gradient(parameter.grad)
        scale = getattr(self.optimizer, "grad_scale", None)
        found_inf = getattr(self.optimizer, "found_inf", None)
        allowed = None if found_inf is None else (found_inf == 0).reshape(())
        for vector, places in spans:
            present = [(p, start) for p, start in places if p.grad is not None and p.numel()]
            parameters = [parameter for parameter, _ in present]
            gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
            if not gradients:
                continue
            if scale is not None:
                passes.divide(gradients, scale)
            estimates = [self._estimate(parameter) for parameter in parameters]
            rows = [passes.laid_out_as(m, g) for m, g in zip(estimates, gradients, strict=True)]
            starts = [start for _, start in present]
            vector.step([Member(*m) for m in zip(rows, estimates, starts, strict=True)], allowed)
            self._loans.begin(parameters, estimates)
        if scale is not None:
            # A fused optimizer would divide the estimate by it once more.
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]  # set by GradScaler

    def _estimate(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self._estimates:
            self._estimates[parameter] = self._zeros(parameter)
        return self._estimates[parameter]

    def _zeros(self, parameter: nn.Parameter) -> Tensor:
        # Blocks may cut a parameter in the order of its coordinates.
        return zeros(parameter, flat=isinstance(self.estimator.divergence, BlockL2))

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _spans(self) -> list[_Span]:
        groups = [list(group["params"]) for group in self.optimizer.param_groups]
        if self.vector == "model":
            groups = [self._parameters()]
        while len(self._vectors) < len(groups):
            self._vectors.append(Vector(self.estimator, bias_correction=self.bias_correction))
        spans = []
        for vector, parameters in zip(self._vectors, groups, strict=False):
            starts = [0, *accumulate(parameter.numel() for parameter in parameters)]
            divergence = self.estimator.divergence
            if isinstance(divergence, BlockL2) and sum(divergence.sizes) != starts[-1]:
                raise ValueError(
                    f"OnlineEstimate: BlockL2's sizes must sum to the d={starts[-1]} coordinates "
                    f"of the {self.vector}, found {sum(divergence.sizes)}"
                )
            members = list(zip(parameters, starts[:-1], strict=True))
            spans.append(_Span(vector, members))
        return spans
