"""The gradients of many workers as rows, vectorised with ``torch.func`` where the model allows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from workers.recorded import Function, Recorded

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(model(inputs), targets)``, a scalar: the mean over the batch, usually."""

_log = logging.getLogger(__name__)
_DROPOUT = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
# Layers draw from torch's global generators, which one worker at a time may seed in a process.
_global_generators = threading.Lock()
_imports = threading.Lock()


class Gradients:
    """Rows of gradients of one model at given weights.

    A row holds the gradients of the trainable parameters in the order of ``model.parameters()``,
    flattened: ``parameters_to_vector`` of the gradients. The model is in training mode and is never
    changed: each gradient starts from the model's own buffers (running statistics, say) and what
    it does to them is thrown away.

    Vectorised and looped rows agree to rounding. A model with running statistics or dropout is
    looped over, dropout drawing from a seed of the worker's own; so is one that ``torch.vmap``
    turns out not to support, which is found out once, at the first call.

    Args:
        model: the module; it must not be used elsewhere at the same time.
        loss: see :data:`Loss`.
        vectorize: True or False to insist; None to decide from the model.
        pure: whether model and loss do nothing but the same operations on tensors at every call.
            Vectorised, these are then repeated without the Python around them, to the same rows:
            see :class:`~workers.recorded.Recorded`.

    Raises:
        ValueError: the model has no trainable parameters; or ``vectorize`` is True and the model
            must be looped over.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        vectorize: bool | None = None,
        pure: bool = False,
    ) -> None:
        self._model = model.train()
        self._loss = loss
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ValueError("Gradients: model must have trainable parameters, found none")
        self._shapes = {name: p.shape for name, p in trained.items()}
        self._dtypes = {name: p.dtype for name, p in trained.items()}
        self._lengths = [p.numel() for p in trained.values()]
        self._buffers = dict(model.named_buffers())
        self.dim = sum(self._lengths)
        obstacle = _obstacle(model)
        if vectorize and obstacle is not None:
            raise ValueError(
                f"Gradients: vectorize must not be True for a model with {obstacle}, found True"
            )
        self.vectorize = vectorize if obstacle is None else False
        if self.vectorize is not False:
            _load_vmap()
        # Of one vector of weights, which torch.func wraps in less time than a tensor a layer.
        each = grad(self._loss_at)
        self._of_shared: Function = vmap(each, in_dims=(None, 0, 0))
        self._of_own: Function = vmap(each)
        if pure:
            self._of_shared, self._of_own = Recorded(self._of_shared), Recorded(self._of_own)

    def __call__(
        self, weights: Tensor, inputs: Tensor, targets: Tensor, seeds: Iterable[int]
    ) -> Tensor:
        """The gradients of k workers, ``(k, d)`` of the dtype of the weights.

        Args:
            weights: ``(d,)``, shared by the workers, or ``(k, d)``, one row each.
            inputs: ``(k, batch, ...)``.
            targets: ``(k, batch, ...)``.
            seeds: one per worker, asked for only where workers are looped over.
        """
        weights = weights.detach()
        if self.vectorize is not None:
            method = self._vectorized if self.vectorize else self._looped
            return method(weights, inputs, targets, seeds)
        try:
            rows = self._vectorized(weights, inputs, targets, seeds)
            self.vectorize = True
        except Exception as error:
            # Whatever vmap cannot do the loop can, or it says better what is wrong.
            rows = self._looped(weights, inputs, targets, seeds)
            self.vectorize = False
            _log.info("looping over the workers, vmap does not support the model: %s", error)
        return rows

    def _vectorized(
        self, weights: Tensor, inputs: Tensor, targets: Tensor, seeds: Iterable[int]
    ) -> Tensor:
        of_all = self._of_shared if weights.dim() == 1 else self._of_own
        rows: Tensor = of_all(weights, inputs, targets)
        return rows.contiguous()  # gradients that are 0 may all be the same memory

    def _loss_at(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(
            functional_call(self._model, self._unflatten(weights), (inputs,)), targets
        )

    def _looped(
        self, weights: Tensor, inputs: Tensor, targets: Tensor, seeds: Iterable[int]
    ) -> Tensor:
        rows = weights.new_empty(len(inputs), self.dim)
        for i, seed in zip(range(len(inputs)), seeds, strict=True):
            parameters = {
                name: view.detach().requires_grad_()
                for name, view in self._unflatten(
                    weights if weights.dim() == 1 else weights[i]
                ).items()
            }
            buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
            devices = [rows.device] if rows.device.type == "cuda" else []
            with _global_generators, torch.random.fork_rng(devices), torch.enable_grad():
                torch.manual_seed(seed)
                outputs = functional_call(self._model, {**parameters, **buffers}, (inputs[i],))
                gradients = torch.autograd.grad(
                    self._loss(outputs, targets[i]),
                    list(parameters.values()),
                    materialize_grads=True,
                )
            parts = torch.split(rows[i], self._lengths)
            for part, gradient in zip(parts, gradients, strict=True):
                part.copy_(gradient.reshape(-1))
        return rows

    def _unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """The parameters ``(d,)`` by name, as views where the dtype is the model's."""
        parts = torch.split(weights, self._lengths)
        return {
            name: part.reshape(shape).to(self._dtypes[name])
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }


def _load_vmap() -> None:
    """Let torch import what its first ``vmap`` needs.

    Hundreds of modules: two threads whose first calls import them at the same time may find some of
    them half imported, fail, and look as if the model could not be vectorised.
    """
    with _imports:
        vmap(grad(torch.sum))(torch.zeros(1, 1))


def _obstacle(model: nn.Module) -> str | None:
    """The first layer that makes a worker's gradient depend on more than weights and batch."""
    for module in model.modules():
        running = getattr(module, "track_running_stats", False)
        if running or (isinstance(module, _DROPOUT) and module.p > 0):
            return type(module).__name__
    return None
