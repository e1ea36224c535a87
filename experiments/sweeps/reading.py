"""From a file to a sweep: TOML or YAML, presets laid over it; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from experiments import specs
from experiments.config import ConfigError
from experiments.studies.study import Preset
from experiments.sweeps.config import (
    NAMES,
    Breakdown,
    Published,
    PublishedRow,
    SweepConfig,
    as_value,
)

YAML = "pip install 'robust-agg[experiments]'"

_VALUES = ("base", "grid", "tune")
_SECTIONS = tuple(field.name for field in dataclasses.fields(SweepConfig))
_PRESETS = ("smoke", "full")


def read(path: Path, preset: Preset = "default") -> SweepConfig:
    """The sweep that a file describes, as the preset has it.

    ``default`` is the file as it is; the tables ``[smoke]`` and ``[full]`` have the file's own
    sections, which are laid over it: a name in one of their sections is in no other section then.
    The file of an own attack is sought beside the sweep's.

    Raises:
        ConfigError: there is no such file, it is neither TOML nor YAML, has an unknown key, or is
            no sweep; one line, with the file's name.
    """
    try:
        return sweep_of(_laid_over(_parsed(path), preset), path.parent)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def sweep_of(content: Mapping[str, Any], folder: Path) -> SweepConfig:
    """The sweep of a file's content, without presets; own attacks are in ``folder``."""
    _check_keys("", content, _SECTIONS)
    given = dict(content)
    for section in _VALUES:
        given[section] = {
            name: _values(name, value, section, folder)
            for name, value in _table(section, given.get(section, {}), NAMES).items()
        }
    given["notes"] = _listed("notes", given.get("notes", []))
    given["breakdown"] = _breakdown(given.get("breakdown"))
    given["published"] = _published(given.get("published"))
    return SweepConfig(**given)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"a sweep's file is required, found {error.strerror}") from None
    if path.suffix in (".yaml", ".yml"):
        content = _yaml(text)
    elif path.suffix == ".toml":
        content = tomllib.loads(text)
    else:
        raise ConfigError(f"a file .toml, .yaml or .yml is required, found {path.name!r}")
    if not isinstance(content, dict):
        raise ConfigError(f"a table is required, found {type(content).__name__}")
    return content


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"YAML needs PyYAML, found none: {YAML}") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """Refuses a key that is given twice, of which YAML would keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise ConfigError(f"{key!r} must be given once, found {keys.count(key)}")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _laid_over(content: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """The file's sections with those of the preset over them."""
    _check_keys("", content, (*_SECTIONS, *_PRESETS))
    for name in content.keys() & {*_PRESETS}:
        table = _table(name, content[name], _SECTIONS)
        for section in _VALUES:
            _table(f"{name}.{section}", table.get(section, {}), NAMES)
    found = {name: value for name, value in content.items() if name not in _PRESETS}
    if preset == "default":
        return found
    if preset not in content:
        raise ConfigError(f"preset {preset} needs a table of that name, found none")
    over = content[preset]
    given = {name for section in _VALUES for name in over.get(section, {})}
    for section in _VALUES:
        kept = {n: v for n, v in _table(section, found.get(section, {})).items() if n not in given}
        found[section] = {**kept, **over.get(section, {})}
    for name, value in over.items():
        if name == "breakdown":
            found[name] = {**_table(name, found.get(name, {})), **_table(f"{preset}.{name}", value)}
        elif name not in _VALUES:
            found[name] = value
    return found


def _values(name: str, value: Any, section: str, folder: Path) -> Any:
    """A value, or in a list section a tuple of values, in the form the sweep has them."""
    if section == "base":
        return _located(name, as_value(name, value), folder)
    values = _listed(f"{section}.{name}", value)
    return tuple(_located(name, as_value(name, each), folder) for each in values)


def _located(name: str, value: Any, folder: Path) -> Any:
    if name == "attack" and isinstance(value, str):
        file, rest = specs.own_file(value)
        if file is not None:
            return f"{folder / file}:{rest}"
    return value


def _breakdown(content: Any) -> Breakdown | None:
    if content is None:
        return None
    return Breakdown(**_whole("breakdown", content, ("accuracy", "most")))


def _published(content: Any) -> Published | None:
    if content is None:
        return None
    given = _whole("published", content, ("source", "rows"))
    rows = [
        _whole("published.rows", row, ("where", "value"))
        for row in _listed("published.rows", given["rows"])
    ]
    return Published(
        source=given["source"],
        rows=tuple(
            PublishedRow(
                where={
                    name: as_value(name, value)
                    for name, value in _table("published.rows.where", row["where"], NAMES).items()
                },
                value=row["value"],
            )
            for row in rows
        ),
    )


def _whole(section: str, content: Any, keys: Collection[str]) -> dict[str, Any]:
    """A table that has exactly these keys."""
    table = _table(section, content, keys)
    missing = [key for key in keys if key not in table]
    if missing:
        raise ConfigError(f"{section}: {', '.join(missing)} must be given, found {[*table]}")
    return table


def _table(section: str, content: Any, keys: Collection[str] | None = None) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{section} must be a table, found {content!r}")
    if keys is not None:
        _check_keys(section, content, keys)
    return content


def _listed(name: str, content: Any) -> tuple[Any, ...]:
    if not isinstance(content, list | tuple):
        raise ConfigError(f"{name} must be a list, found {content!r}")
    return tuple(content)


def _check_keys(section: str, content: Mapping[Any, Any], keys: Collection[str]) -> None:
    for key in content:
        if key not in keys:
            where = f"{section}: " if section else ""
            near = specs.nearest(str(key), dict.fromkeys(keys, str))
            raise ConfigError(f"{where}unknown key {key!r}{near}")
