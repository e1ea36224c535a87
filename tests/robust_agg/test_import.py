"""The library imports, and aggregates, where none of the optional packages is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import robust_agg as ra

OPTIONAL = (
    "ray",
    "numba",
    "llvmlite",
    "triton",
    "sklearn",
    "matplotlib",
    "rich",
    "cyclopts",
    "pooch",
    "scipy",
)

_REPORT = """
import json, sys
print(json.dumps({name: sys.modules[name] is not None for name in OPTIONAL if name in sys.modules}))
"""


def run(program: str, *, blocked: bool) -> Any:
    """The JSON that a fresh interpreter prints last, where the optional packages may be missing."""
    block = "import sys\nfor name in OPTIONAL: sys.modules[name] = None\n" if blocked else ""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:robust_agg", "-c",
         f"OPTIONAL = {OPTIONAL!r}\n{block}{program}"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_EVERY_MODULE = """
import importlib, pkgutil
import robust_agg
for module in pkgutil.walk_packages(robust_agg.__path__, "robust_agg."):
    importlib.import_module(module.name)
"""


def test_importing_loads_no_optional_package() -> None:
    assert run("import robust_agg" + _REPORT, blocked=False) == {}


def test_importing_works_without_the_optional_packages() -> None:
    names = "import robust_agg, json\nprint(json.dumps(sorted(robust_agg.__all__)))"
    assert run(names, blocked=True) == sorted(ra.__all__)


def test_attacks_import_without_the_optional_packages() -> None:
    assert run("import attacks, json\nprint(json.dumps('done'))", blocked=True) == "done"


_AGGREGATE = """
import json
import torch
import robust_agg as ra
rows = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
rules = [
    ra.Mean(), ra.CoordinateWiseMedian(), ra.TrimmedMean(f=2), ra.Krum(f=2), ra.GeometricMedian(),
    ra.CenteredClipping(), ra.chain(ra.NearestNeighborMixing(f=2), ra.TrimmedMean(f=2)),
]
answers = {rule.name: rule(rows).tolist() for rule in rules}
for estimator in (ra.VClip(), ra.CClip(fusion="batch"), ra.VClip(fusion="batch")):
    name = f"{estimator.name} {estimator.fusion}"
    answers[name] = estimator.step(rows, estimator.init(rows[0]))[0].tolist()
print(json.dumps(answers))
"""


def test_rules_work_without_the_optional_packages_and_answer_the_same() -> None:
    without, with_all = run(_AGGREGATE, blocked=True), run(_AGGREGATE, blocked=False)
    assert without.keys() == with_all.keys()
    assert len(without) == 10
    for name, answer in without.items():
        assert torch.allclose(torch.tensor(answer), torch.tensor(with_all[name]), atol=1e-5), name


def test_aggregating_needs_no_ray() -> None:
    report = "\nprint(json.dumps(sorted(n for n in OPTIONAL if n in sys.modules)))"
    loaded = run(_AGGREGATE + "\nimport sys" + report, blocked=False)
    assert set(loaded) <= {"numba", "llvmlite"}


@pytest.mark.parametrize("name", ra.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ra, name) is not None


def test_public_names_are_sorted_once_and_complete() -> None:
    assert len(set(ra.__all__)) == len(ra.__all__)
    public = {
        name
        for name, value in vars(ra).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("robust_agg.")
    }
    assert public <= set(ra.__all__)


def test_the_version_is_the_distribution_s() -> None:
    from importlib.metadata import version

    assert version("robust-agg") == ra.__version__
