"""The command ``robust-agg attack-search``."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from experiments.config import ConfigError
from experiments.console import new_console
from experiments.search.config import SearchConfig
from experiments.studies import show


def attack_search(
    config: Annotated[SearchConfig | None, Parameter(name="*")] = None, *, out: Path | None = None
) -> int:
    """Search for the attack that hurts a defence most, among families and their parameters.

    Leaves a table, a figure, the numbers and a page with the command that repeats the worst attack.
    Called again after Ctrl-C, or a crash, it goes on.

    Parameters
    ----------
    config
        The search.
    out
        Its folder; runs/attack-search/ and a name of its own if not given.
    """
    try:
        from experiments.search.attack_search import AttackSearch
    except ImportError as error:
        raise ConfigError(
            f"attack-search needs {error.name}, run: pip install 'robust-agg[search]'"
        ) from None
    config = SearchConfig() if config is None else config
    folder = Path("runs", "attack-search", _digest(config)) if out is None else out
    again = shlex.join(_words(config, folder))
    console = new_console()
    try:
        show.run(AttackSearch(config=config), "default", folder, console, again)
    except KeyboardInterrupt:
        console.print(f"interrupted; continue with: {again}", soft_wrap=True)
        return 130
    return 0


def _digest(config: SearchConfig) -> str:
    return hashlib.sha256(json.dumps(asdict(config)).encode()).hexdigest()[:8]


def _words(config: SearchConfig, folder: Path) -> list[str]:
    """The command again, with what is not as by default."""
    words = ["robust-agg", "attack-search"]
    for field in fields(SearchConfig):
        value = getattr(config, field.name)
        if value != field.default:
            given = [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
            words += [f"--{field.name.replace('_', '-')}", *given]
    return [*words, "--out", str(folder)]
