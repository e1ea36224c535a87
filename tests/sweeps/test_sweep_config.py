"""Files of sweeps: TOML and YAML alike, presets laid over them, and every mistake in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.config import ConfigError
from experiments.sweeps.config import Breakdown, Published, PublishedRow, SweepConfig
from experiments.sweeps.reading import read

TOML = """
title = "A sweep"
notes = ["small", "quick"]
target = 0.8

[base]
honest = 10
rounds = 50
lr = 1
weight_decay = 1e-4
partition = "GammaSimilarity(gamma=0.5)"

[grid]
defence = ["Mean", "NearestNeighborMixing + TrimmedMean", "VClip(tau=0.1)"]
attack = ["none", "SignFlip"]
f = [1, 2]
seed = [0, 1, 2]

[tune]
batch_size = [8, 32]

[published]
source = "a paper, table 1"
rows = [
    { where = { attack = "SignFlip", f = 1, lr = 1 }, value = 0.87 },
    { where = { f = 2 }, value = 1 },
]

[smoke]
notes = ["shows that it runs"]
[smoke.base]
rounds = 2
batch_size = 8
[smoke.grid]
seed = [0]

[full.grid]
lr = [0.1, 1]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""

YAML = """
title: A sweep
notes: [small, quick]
target: 0.8
base:
  honest: 10
  rounds: 50
  lr: 1
  weight_decay: 1e-4
  partition: GammaSimilarity(gamma=0.5)
grid:
  defence:
    - Mean
    - NearestNeighborMixing + TrimmedMean
    - VClip(tau=0.1)
  attack: [none, SignFlip]
  f: [1, 2]
  seed: [0, 1, 2]
tune:
  batch_size: [8, 32]
published:
  source: a paper, table 1
  rows:
    - {where: {attack: SignFlip, f: 1, lr: 1}, value: 0.87}
    - {where: {f: 2}, value: 1}
smoke:
  notes: [shows that it runs]
  base: {rounds: 2, batch_size: 8}
  grid: {seed: [0]}
full:
  grid:
    lr: [0.1, 1]
    seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""


def written(folder: Path, text: str, name: str = "sweep.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_is_the_sweep_it_describes(tmp_path: Path) -> None:
    assert read(written(tmp_path, TOML)) == SweepConfig(
        title="A sweep",
        notes=("small", "quick"),
        target=0.8,
        base={
            "honest": 10,
            "rounds": 50,
            "lr": 1.0,
            "weight_decay": 1e-4,
            "partition": "GammaSimilarity(gamma=0.5)",
        },
        grid={
            "defence": ("Mean", "NearestNeighborMixing + TrimmedMean", "VClip(tau=0.1)"),
            "attack": ("none", "SignFlip"),
            "f": (1, 2),
            "seed": (0, 1, 2),
        },
        tune={"batch_size": (8, 32)},
        published=Published(
            source="a paper, table 1",
            rows=(
                PublishedRow(where={"attack": "SignFlip", "f": 1, "lr": 1.0}, value=0.87),
                PublishedRow(where={"f": 2}, value=1),
            ),
        ),
    )


@pytest.mark.parametrize("preset", ["default", "smoke", "full"])
def test_toml_and_yaml_are_alike(preset: Any, tmp_path: Path) -> None:
    both = [
        read(written(tmp_path, TOML), preset),
        read(written(tmp_path, YAML, "sweep.yaml"), preset),
    ]
    assert both[0] == both[1]
    assert repr(both[0]) == repr(both[1])  # 1 and 1.0 are equal, and not the same configuration


def test_a_preset_is_laid_over_the_file(tmp_path: Path) -> None:
    default, smoke, full = (
        read(written(tmp_path, TOML), preset) for preset in ("default", "smoke", "full")
    )
    assert smoke.notes == ("shows that it runs",)
    assert smoke.title == default.title
    # What is given in one section of a preset is in no other section then.
    assert smoke.base == {**default.base, "rounds": 2, "batch_size": 8}
    assert smoke.tune == {}
    assert smoke.grid == {**default.grid, "seed": (0,)}
    assert full.grid == {**default.grid, "lr": (0.1, 1.0), "seed": tuple(range(10))}
    assert full.base == {k: v for k, v in default.base.items() if k != "lr"}
    assert full.tune == default.tune


def test_a_breakdown_is_laid_over_by_its_parts(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '[base]\ndefence = "Mean"\n[breakdown]\naccuracy = 0.5\nmost = 9\n'
        "[smoke.breakdown]\nmost = 2\n",
    )
    assert read(path).breakdown == Breakdown(accuracy=0.5, most=9)
    assert read(path, "smoke").breakdown == Breakdown(accuracy=0.5, most=2)


def test_an_own_attack_is_sought_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from attacks import SignFlip\n\n\nclass Mine(SignFlip):\n    pass\n"
    )
    path = written(
        tmp_path, '[base]\ndefence = "Mean"\n[grid]\nattack = ["none", "mine.py:Mine(scale=2.0)"]\n'
    )
    assert read(path).grid["attack"] == ("none", f"{tmp_path / 'mine.py'}:Mine(scale=2.0)")


MINIMAL = '[base]\ndefence = "Mean"\n'

WRONG = {
    # Keys.
    "titel = 'x'": "unknown key 'titel', did you mean 'title'?",
    "[bse]\nlr = 1": "unknown key 'bse', did you mean 'base'?",
    f"{MINIMAL}learning_rate = 1": "base: unknown key 'learning_rate'",
    f"{MINIMAL}roundz = 1": "base: unknown key 'roundz', did you mean 'rounds'?",
    f"{MINIMAL}aggregator = 'Mean'": "base: unknown key 'aggregator'",
    f"{MINIMAL}[grid]\nsed = [1]": "grid: unknown key 'sed', did you mean 'seed'?",
    f"{MINIMAL}[tune]\nlrs = [1]": "tune: unknown key 'lrs', did you mean 'lr'?",
    f"{MINIMAL}[smoke.grids]\nseed = [1]": "smoke: unknown key 'grids', did you mean 'grid'?",
    f"{MINIMAL}[breakdown]\naccuracy = 0.5\nmax = 3": "breakdown: unknown key 'max'",
    f"{MINIMAL}[breakdown]\naccuracy = 0.5": "breakdown: most must be given",
    f"{MINIMAL}[published]\nsource = 'x'\nrows = [{{where = {{atack = 'x'}}, value = 1}}]": (
        "published.rows.where: unknown key 'atack', did you mean 'attack'?"
    ),
    f"{MINIMAL}[published]\nsource = 'x'\nrows = [{{value = 1}}]": (
        "published.rows: where must be given"
    ),
    # Values.
    f"{MINIMAL}lr = 'x'": "base.lr must be float, found 'x'",
    f"{MINIMAL}lr = true": "base.lr must be float, found True",
    f"{MINIMAL}lr = [1]": "base.lr must be float, found [1]",
    f"{MINIMAL}rounds = 1.5": "base.rounds must be int, found 1.5",
    f"{MINIMAL}dataset = 'cifar'": "base.dataset must be one of 'digits', 'mnist', found 'cifar'",
    f"{MINIMAL}attack = 'SignFlp'": "base.attack: unknown name 'SignFlp', did you mean 'SignFlip'?",
    f"{MINIMAL}partition = 'GammaSimilarity'": "base.partition: GammaSimilarity: gamma must be",
    f"{MINIMAL}model = 'MPL'": "base.model: unknown name 'MPL', did you mean 'MLP'?",
    f"{MINIMAL}codec = 'EF2'": "base.codec: unknown name 'EF2'",
    "[grid]\ndefence = ['Meen']": "grid.defence: unknown name 'Meen', did you mean 'Mean'?",
    f"{MINIMAL}[grid]\nlr = 1": "grid.lr must be a list, found 1",
    f"{MINIMAL}[grid]\nlr = []": "grid.lr must be a list of different values, found []",
    f"{MINIMAL}[grid]\nlr = [1, 1.0]": "grid.lr must be a list of different values",
    f"{MINIMAL}[grid]\nattack = ['Mimic', 'Mimic(warmup=20)']": "grid.attack must be a list of "
    "different values, found 'Mimic' and 'Mimic(warmup=20)', which are the same",
    f"target = 2\n{MINIMAL}": "target must be a number in (0, 1], found 2",
    f"target = 'x'\n{MINIMAL}": "target must be a number in (0, 1], found 'x'",
    f"notes = 'x'\n{MINIMAL}": "notes must be a list, found 'x'",
    f"notes = [1]\n{MINIMAL}": "notes must be a list of texts, found (1,)",
    f"title = 3\n{MINIMAL}": "title must be text, found 3",
    f"{MINIMAL}[breakdown]\naccuracy = 0.5\nmost = 0": "breakdown.most must be an integer >= 1",
    # What does not fit together.
    "[base]\nlr = 1": "defence must be given in base, grid or tune, found none",
    f"{MINIMAL}lr = 1\n[grid]\nlr = [1]": "lr must be given once, in base, grid or tune, found 2",
    f"{MINIMAL}honest = 3\nworkers = 5": "honest is given instead of workers, found both",
    f"{MINIMAL}[tune]\nseed = [1, 2]": "tune must not hold seed",
    f"{MINIMAL}[tune]\nattack = ['SignFlip']": "tune must not hold attack",
    f"{MINIMAL}f = 1\n[breakdown]\naccuracy = 0.5\nmost = 3": (
        "f must not be given beside breakdown"
    ),
    f"{MINIMAL}[tune]\nlr = [1]\n[breakdown]\naccuracy = 0.5\nmost = 3": (
        "tune must be empty beside breakdown, found lr"
    ),
    # Forms.
    "base = 3": "base must be a table, found 3",
    "= 3": "Invalid",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[-30:])
def test_a_mistake_is_one_line_with_the_file(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: ")
    assert WRONG[text] in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sweep.yaml", "- 1", "a table is required, found list"),
        ("sweep.yaml", "base: {lr: 1, lr: 2}", "'lr' must be given once, found 2"),
        ("sweep.yml", "a: [", "expected the node content"),
        ("sweep.yml", "a: !!python/object:os.system {}", "could not determine a constructor"),
        ("sweep.json", "{}", "a file .toml, .yaml or .yml is required, found 'sweep.json'"),
    ],
)
def test_what_is_no_file_of_a_sweep_is_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        read(written(tmp_path, text, name))
    assert "\n" not in str(raised.value)


def test_a_file_or_preset_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a sweep's file is required, found No such file"):
        read(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="preset full needs a table of that name, found none"):
        read(written(tmp_path, MINIMAL), "full")
