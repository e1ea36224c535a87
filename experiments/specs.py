"""From text to objects: ``"NearestNeighborMixing + TrimmedMean(f=4)"`` and the like.

The only registry of names there is; it is read off the classes the packages export, so a new rule
or attack is on the command line as soon as it is exported.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from torch import Tensor

import attacks
import robust_agg
import robust_agg.codecs
from attacks import Attack, DataAttack, Fault
from experiments import models, partitions
from experiments.annotations import mismatch
from robust_agg import Adaptive, Aggregator, Divergence, Estimator, Mixing, chain
from robust_agg.chain import Chain
from robust_agg.codecs import Codec, Compressor

Table: TypeAlias = Mapping[str, type]

AnyAttack: TypeAlias = Attack | DataAttack | Fault
"""What an attack's specification names."""

_ATTACKS = (Attack, DataAttack, Fault)

_FORM = "Name(parameter=value, …)"
_LONGEST = 1000
# Characters of a specification.
_NAMED = re.compile(r"\s*\w+\s*(\(|$)")
# What begins the specification of an object of the library.
_OWN_FILE = re.compile(r"(.+?\.py):\s*(\w*\s*(?:\(.*)?)", re.DOTALL)
# A path and what is in it; the path may hold ".py:" as long as no name follows it.
_OWN = "robust_agg_own_"
# What the names of modules begin with that were read from a user's file.


class SpecError(ValueError):
    """A text that names no object; one line with what is required and what was found."""


def parse_defence(text: str, *, f: int) -> Aggregator | Estimator:
    """An aggregator, ``mixing + … + aggregator``, or an estimator.

    A parameter f that the text leaves open is the declared ``f``.
    """
    stages = _stages(text, _rules(), {"f": f})
    if len(stages) == 1 and isinstance(stages[0], Estimator):
        return stages[0]
    _expect(stages[-1], Aggregator, text, "an aggregator" if len(stages) > 1 else "a defence")
    for stage in stages[:-1]:
        _expect(stage, Mixing, text, "a mixing before '+'")
    found: Aggregator = stages[0] if len(stages) == 1 else chain(*stages)
    return found


def parse_estimator(text: str) -> Estimator:
    """An online estimator, e.g. ``"VClip(tau=0.1)"``."""
    found: Estimator = _expect(_only(text, _rules()), Estimator, text, "an estimator")
    return found


def parse_codec(text: str) -> Codec:
    """A codec, e.g. ``"EF21(compressor=TopK(share=0.01))"``."""
    found: Codec = _expect(_only(text, _codecs()), Codec, text, "a codec")
    return found


def parse_attack(text: str, *, num_classes: int) -> AnyAttack:
    """An attack or fault of the library, or ``path/to/file.py:Class(…)`` for one of your own.

    A parameter ``num_classes`` that the text leaves open is that of the data.
    """
    table = _exports(attacks, *_ATTACKS)
    file, rest = own_file(text)
    if file is not None:
        module = load_own(file)
        own = {**_exports(module, *_ATTACKS), **_exports(module)}
        if own.keys() <= {kind.__name__ for kind in _ATTACKS}:
            raise SpecError(f"{file} must define an Attack, a DataAttack or a Fault, found none")
        table = {**own, **table, **own}  # first in order, and not hidden by ours
        text = rest
    found = _only(text, table, {"num_classes": num_classes})
    if isinstance(found, Attack | DataAttack | Fault):
        return found
    raise SpecError(f"an Attack, a DataAttack or a Fault is required, found {text!r}")


def own_file(text: str) -> tuple[Path | None, str]:
    """``path/to/file.py:Class(…)`` as the file and the rest; None for an attack of the library."""
    found = _OWN_FILE.fullmatch(text)
    if found is None or _NAMED.match(text):
        return None, text
    return Path(found[1]).expanduser(), found[2]


def catalogue() -> dict[str, list[type]]:
    """Everything a specification can name, by what it is for; what cannot be made is left out."""
    kinds = {
        "aggregators": {
            k: v for k, v in _exports(robust_agg, Aggregator).items() if v is not Chain
        },
        "mixings, before an aggregator": _exports(robust_agg, Mixing),
        "estimators": _exports(robust_agg, Estimator),
        "divergences of OnlineMedian": _exports(robust_agg, Divergence),
        "values of tau": _exports(robust_agg, Adaptive),
        "codecs": _exports(robust_agg.codecs, Codec),
        "compressors of codecs": _exports(robust_agg.codecs, Compressor),
        "attacks": _exports(attacks, Attack, DataAttack),
        "faults, in the place of an attack": _exports(attacks, Fault),
        "partitions": _exports(partitions),
        "models": _exports(models),
    }
    return {
        kind: [
            cls
            for cls in table.values()
            if not inspect.isabstract(cls) and _needed_tensor(cls) is None
        ]
        for kind, table in kinds.items()
    }


def own_modules(attack: AnyAttack) -> list[ModuleType]:
    """The module of an attack that :func:`parse_attack` has read from a user's file."""
    module = sys.modules.get(type(attack).__module__)
    return [module] if module is not None and module.__name__.startswith(_OWN) else []


def parse_partition(text: str) -> partitions.Partition:
    """How the data is divided, e.g. ``"Dirichlet(alpha=0.5)"``."""
    found: partitions.Partition = _only(text, _exports(partitions))
    return found


def parse_model(text: str) -> models.Model:
    """A model, e.g. ``"MLP(hidden=(100,))"``."""
    found: models.Model = _only(text, _exports(models))
    return found


def _rules() -> dict[str, type]:
    return _exports(robust_agg, Aggregator, Estimator, Mixing, Divergence, Adaptive)


def _codecs() -> dict[str, type]:
    return _exports(robust_agg.codecs, Codec, Compressor)


def _exports(module: ModuleType, *kinds: type) -> dict[str, type]:
    """The classes of a module that a specification can name: of ``kinds``, or any dataclass."""
    names = getattr(module, "__all__", None) or vars(module)
    found = {name: getattr(module, name, None) for name in names}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, type)
        and (issubclass(value, kinds) if kinds else dataclasses.is_dataclass(value))
    }


def _only(text: str, table: Table, defaults: Mapping[str, Any] | None = None) -> Any:
    (found, *more) = _stages(text, table, defaults or {})
    if more:
        raise SpecError(f"{text!r}: one of {_known(table)} is required, found {1 + len(more)}")
    return found


def _expect(found: Any, kind: type, text: str, what: str) -> Any:
    if not isinstance(found, kind):
        raise SpecError(f"{text!r}: {what} is required, found {type(found).__name__}")
    return found


def _stages(text: str, table: Table, defaults: Mapping[str, Any]) -> list[Any]:
    """The objects that ``text`` joins by '+'."""
    if len(text) > _LONGEST:
        raise SpecError(f"at most {_LONGEST} characters are allowed, found {len(text)}")
    try:
        return [_build(node, text, table, defaults) for node in _terms(text)]
    except (RecursionError, MemoryError):
        raise SpecError(f"{text!r}: fewer levels of nesting are required") from None


def _terms(text: str) -> list[ast.expr]:
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        found = getattr(error, "msg", error)
        raise SpecError(f"{text!r}: {_FORM} is required, found: {found}") from None
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.insert(0, node.right)
        node = node.left
    return [node, *terms]


def _build(node: ast.expr, text: str, table: Table, defaults: Mapping[str, Any]) -> Any:
    """The object of one term; values are literals or further terms, never code."""
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise SpecError(f"{text!r}: {_FORM} is required")
    name = call.func.id
    if name not in table:
        where = "" if text == name else f"{text!r}: "
        raise SpecError(f"{where}unknown name {name!r}{nearest(name, table)}")
    cls = table[name]
    tensor = _needed_tensor(cls)
    if tensor is not None:
        raise SpecError(f"{name}: {tensor} is a tensor, which no text can give, found {text!r}")
    arguments = [_value(argument, text, table, defaults) for argument in call.args]
    named: dict[str, Any] = {}
    parameters = _parameters(cls)
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in named:
            raise SpecError(f"{text!r}: every parameter must be given by name, once")
        if parameters is not None and keyword.arg not in parameters:
            close = nearest(keyword.arg, parameters)
            raise SpecError(f"{text!r}: {name} has no parameter {keyword.arg!r}{close}")
        named[keyword.arg] = _value(keyword.value, text, table, defaults)
    for parameter, value in defaults.items():
        if parameters and parameters.get(parameter) and not arguments:
            named.setdefault(parameter, value)
    missing = [each for each, needed in (parameters or {}).items() if needed and each not in named]
    if missing and not arguments:
        raise SpecError(f"{name}: {', '.join(missing)} must be given, found {text!r}")
    wrong = mismatch(cls, named) if parameters else None
    if wrong is not None:
        raise SpecError(f"{name}: {wrong}")
    try:
        return cls(*arguments, **named)
    except ValueError:
        raise  # the class's own words: it names the parameter and the constraint
    except Exception as error:
        raise SpecError(f"{text!r}: {type(error).__name__}: {error}") from error


def _value(node: ast.expr, text: str, table: Table, defaults: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Call | ast.Name):
        return _build(node, text, table, defaults)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise SpecError(
            f"{text!r}: every value must be a literal, found {ast.unparse(node)!r}"
        ) from None


def _parameters(cls: type) -> dict[str, bool] | None:
    """The parameters of a dataclass and whether each must be given; None for other classes."""
    if not dataclasses.is_dataclass(cls):
        return None
    return {
        field.name: field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(cls)
        if field.init
    }


def _needed_tensor(cls: type) -> str | None:
    """The parameter that must be given and is a tensor; None where there is none."""
    if not dataclasses.is_dataclass(cls):
        return None
    needed = _parameters(cls) or {}
    tensors = [f.name for f in dataclasses.fields(cls) if f.type in (Tensor, "Tensor")]
    return next((name for name in tensors if needed.get(name)), None)


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """What to say of a name that is none of the known ones: the nearest, or all of them."""
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f", did you mean {lower[close[0]]!r}?" if close else f", known are {_known(known)}"


def _known(table: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in table.items() if not inspect.isabstract(value))


def load_own(path: Path) -> ModuleType:
    """The module in a user's file, run once a process however often it is named or copied."""
    try:
        content = path.read_bytes()
    except OSError as error:
        found = error.strerror
        raise SpecError(f"a file is required before ':', found {found} at {path}") from None
    # A name of our own: that of the file may be the name of a module that is in use.
    name = _OWN + hashlib.sha256(content).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SpecError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
