"""The rules of other libraries, called as their documentation says, as far as they are installed.

None of them is needed, and none is imported but here. A peer that cannot be imported is a row of
the table that says why.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from experiments.bench import plain
from experiments.bench.rules import Form

Catalogue: TypeAlias = Mapping[str, Callable[[Tensor, int], Form]]
"""What a peer has: from the rows and f to the rule, by the name of the plain form."""


class MissingPeerError(ImportError):
    """A peer that cannot be imported, and why."""


def part(package: str, name: str) -> Any:
    """``package.name`` without running the package's ``__init__``.

    ByzFL's imports all of its parts, one of which needs torchvision; its rules and its training
    loop do not.
    """
    if package not in sys.modules:
        found = importlib.util.find_spec(package)
        if found is None:
            raise MissingPeerError(f"{package} is not installed")
        # A package of that path, on which no code has run.
        sys.modules[package] = importlib.util.module_from_spec(found)
    return _module(f"{package}.{name}")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name == package:
            raise MissingPeerError(f"{package} is not installed") from None
        raise MissingPeerError(f"{package} needs {error.name}, which is not installed") from None
    except Exception as error:
        raise MissingPeerError(f"{name} cannot be imported: {error}") from None


def _byzfl() -> Catalogue:
    # The part that needs nothing; the pre-aggregators are in it.
    rules: Any = part("byzfl", "aggregators")
    mixings: Any = _module("byzfl.aggregators.preaggregators")
    trimmed = rules.TrMean
    return {
        "Mean": lambda rows, f: rules.Average(),
        "CoordinateWiseMedian": lambda rows, f: rules.Median(),
        "TrimmedMean": lambda rows, f: trimmed(f=f),
        "MeanAroundMedian": lambda rows, f: rules.Meamed(f=f),
        "GeometricMedian": lambda rows, f: rules.GeometricMedian(),
        "Krum": lambda rows, f: rules.Krum(f=f),
        "MultiKrum": lambda rows, f: rules.MultiKrum(f=f),
        "CenteredClipping": lambda rows, f: (
            lambda rows: rules.CenteredClipping(
                L=plain.CLIPPING_STEPS, tau=plain.clipping_radius(rows)
            )(rows)
        ),
        # A list, as in its training loop: it scales rows of a matrix where they are.
        "AdaptiveClip + Mean": lambda rows, f: (
            lambda rows: rules.Average()(mixings.ARC(f=f)(list(rows)))
        ),
        "NNM + TrimmedMean": lambda rows, f: lambda rows: trimmed(f=f)(mixings.NNM(f=f)(rows)),
    }


def _byzpy() -> Catalogue:
    coordinatewise: Any = _module("byzpy.aggregators.coordinate_wise")
    geometric: Any = _module("byzpy.aggregators.geometric_wise")
    norms: Any = _module("byzpy.aggregators.norm_wise")
    mixings: Any = _module("byzpy.pre_aggregators")

    def rule(made: Any) -> Form:
        return lambda rows: made.aggregate(list(rows))

    def after(mixing: Any, made: Any) -> Form:
        return lambda rows: made.aggregate(mixing.pre_aggregate(list(rows)))

    trimmed = coordinatewise.CoordinateWiseTrimmedMean
    return {
        "CoordinateWiseMedian": lambda rows, f: rule(coordinatewise.CoordinateWiseMedian()),
        "TrimmedMean": lambda rows, f: rule(trimmed(f=f)),
        "MeanAroundMedian": lambda rows, f: rule(coordinatewise.MeanOfMedians(f=f)),
        "GeometricMedian": lambda rows, f: rule(geometric.GeometricMedian()),
        "Krum": lambda rows, f: rule(geometric.Krum(f=f)),
        "MultiKrum": lambda rows, f: rule(geometric.MultiKrum(f=f, q=len(rows) - f)),
        "CenteredClipping": lambda rows, f: rule(
            norms.CenteredClipping(c_tau=plain.clipping_radius(rows), M=plain.CLIPPING_STEPS)
        ),
        "NNM + TrimmedMean": lambda rows, f: after(
            mixings.NearestNeighborMixing(f=f), trimmed(f=f)
        ),
    }


def _geom_median(**options: float) -> Catalogue:
    module: Any = _module("geom_median.torch")

    def call(rows: Tensor) -> Tensor:
        found: Tensor = module.compute_geometric_median(list(rows), **options).median
        return found

    return {"GeometricMedian": lambda rows, f: call}


def _torchjd() -> Catalogue:
    rules: Any = _module("torchjd.aggregation")
    return {
        "Mean": lambda rows, f: rules.Mean(),
        "TrimmedMean": lambda rows, f: rules.TrimmedMean(trim_number=f),
        "Krum": lambda rows, f: rules.Krum(n_byzantine=f),
        "MultiKrum": lambda rows, f: rules.Krum(n_byzantine=f, n_selected=len(rows) - f),
    }


def _torch() -> Catalogue:
    def made(form: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Form]:
        return lambda rows, f: lambda rows: form(rows, f)

    return {name: made(form) for name, form in plain.TORCH.items()}


def _numpy() -> Catalogue:
    def made(form: Callable[[plain.Floats, int], plain.Floats]) -> Callable[[Tensor, int], Form]:
        return lambda rows, f: lambda rows: torch.from_numpy(np.asarray(form(rows.numpy(), f)))

    return {name: made(form) for name, form in plain.NUMPY.items()}


PEERS: Mapping[str, Callable[[], Catalogue]] = {
    "ByzFL": _byzfl,
    "ByzPy": _byzpy,
    "geom-median": _geom_median,
    "geom-median, ftol 1e-6": partial(_geom_median, ftol=1e-6),
    "TorchJD": _torchjd,
    "plain torch": _torch,
    "plain numpy": _numpy,
}
"""What loads each; raises :class:`MissingPeerError`."""
