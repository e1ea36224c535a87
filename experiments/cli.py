"""``robust-agg``: the command line over the configuration dataclasses."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sqlite3
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter

from experiments import catalogue, figure, report, run_folder, runs
from experiments.bench.catalogue import BENCHES, BenchName
from experiments.cluster.catalogue import STUDIES as CLUSTER
from experiments.cluster.catalogue import ClusterName
from experiments.config import ConfigError, RunConfig
from experiments.console import new_console
from experiments.paper.catalogue import STUDIES as FIGURES
from experiments.paper.catalogue import FigureName
from experiments.progress import Progress
from experiments.robustness.catalogue import STUDIES as ROBUSTNESS
from experiments.robustness.catalogue import RobustnessName
from experiments.search.command import attack_search
from experiments.stopping import InterruptedRun, Terminated, interrupted_by_sigterm
from experiments.studies import show
from experiments.studies.study import Preset, Study
from experiments.sweeps.command import sweep
from experiments.sweeps.report import command as sweep_report
from robust_agg import __version__
from workers.transport import HostError

DEBUG = "ROBUST_AGG_DEBUG"
"""Environment variable: set, it shows the traceback of an error."""


def _whole_numbers(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 for an integer, which cyclopts would round."""
    for argument in arguments:
        for token in argument.tokens if argument.hint in (int, int | None) else ():
            if "." in token.value:
                raise ConfigError(f"{argument.name} must be an integer, found {token.value!r}")


def _default(value: object) -> str:
    """A default as one would type it."""
    return shlex.join(value) if isinstance(value, tuple) else str(value)


app = App(
    name="robust-agg",
    help="Byzantine-robust aggregation: which defence survives which attack?",
    version=__version__,
    default_parameter=Parameter(consume_multiple=True, negative=(), show_default=_default),
    result_action="return_value",
    config=_whole_numbers,
)


@app.command
def run(
    config: Annotated[RunConfig | None, Parameter(name="*")] = None, *, out: Path = Path("runs")
) -> int:
    """Train under attack with several defences side by side, and once each without the attack.

    Ends with a table and a figure. Ctrl-C leaves a run that 'robust-agg resume' continues;
    'robust-agg list' shows what there is to choose from.

    Parameters
    ----------
    config
        The run.
    out
        Folder in which the run's own folder is made.
    """
    config = RunConfig() if config is None else config
    made = run_folder.create(config, out)
    try:
        return _execute(made)
    except BaseException:
        run_folder.discard(made)
        raise


@app.command
def resume(folder: Path) -> int:
    """Continue an interrupted run; its result is that of an undisturbed one.

    Parameters
    ----------
    folder
        The run's folder, e.g. runs/20260101-120000-0123abcd.
    """
    return _execute(run_folder.reopen(folder))


@app.command
def paper(
    figure: FigureName,
    *,
    preset: Preset = "default",
    out: Path | None = None,
    device: str = "auto",
) -> int:
    """Reproduce a figure of the paper, and say which of its claims hold.

    Leaves the figure, the numbers and a page in a folder. Called again after Ctrl-C, or a crash, it
    does what is left.

    Parameters
    ----------
    figure
        The figure.
    preset
        smoke takes seconds, default minutes on two cores; full is the paper's own size.
    out
        The figure's folder; runs/paper/FIGURE-PRESET if not given.
    device
        Where models compute: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
    """
    words = ["robust-agg", "paper", figure]
    return _study(FIGURES[figure], words, preset, out, device)


@app.command
def bench(
    what: BenchName,
    *,
    preset: Preset = "default",
    out: Path | None = None,
    device: str = "auto",
) -> int:
    """Measure what things cost on this machine, beside the peers that are installed.

    Leaves tables, figures, the numbers and a page in a folder. Called again after Ctrl-C, or a
    crash, it does what is left.

    Parameters
    ----------
    what
        The benchmark.
    preset
        smoke takes seconds, default minutes on two cores; full is as large as is of use.
    out
        The benchmark's folder; runs/bench/WHAT-PRESET if not given.
    device
        Where tensors are: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
    """
    return _study(BENCHES[what], ["robust-agg", "bench", what], preset, out, device)


@app.command
def cluster(
    what: ClusterName,
    *,
    preset: Preset = "default",
    out: Path | None = None,
    device: str = "auto",
) -> int:
    """Train on several ranks of this machine, some of them bad, with and without a robust rule.

    Leaves tables, a figure, the numbers and a page in a folder. Called again after Ctrl-C, or a
    crash, it does what is left.

    Parameters
    ----------
    what
        The study.
    preset
        smoke takes seconds, default minutes on two cores.
    out
        The study's folder; runs/cluster/WHAT-PRESET if not given.
    device
        Where the ranks compute: auto or cpu.
    """
    return _study(CLUSTER[what], ["robust-agg", "cluster", what], preset, out, device)


@app.command
def study(
    what: RobustnessName,
    *,
    preset: Preset = "default",
    out: Path | None = None,
    device: str = "auto",
) -> int:
    """Put what is said of the rules themselves to numbers.

    Leaves tables, a figure, the numbers and a page in a folder. Called again after Ctrl-C, or a
    crash, it does what is left.

    Parameters
    ----------
    what
        The study; kappa looks for the worst inputs of every rule that has a proven constant,
        attacks trains under every attack with every rule.
    preset
        smoke takes seconds, default minutes on two cores.
    out
        The study's folder; runs/study/WHAT-PRESET if not given.
    device
        Where rows are: auto or cpu.
    """
    return _study(ROBUSTNESS[what], ["robust-agg", "study", what], preset, out, device)


def _study(
    kind: type[Study], words: list[str], preset: Preset, out: Path | None, device: str
) -> int:
    """Carry out a study that ``words`` ask for; by default in the folder they name in runs/."""
    folder = Path("runs", words[1], f"{words[2]}-{preset}") if out is None else out
    words = [*words, "--preset", preset, "--out", str(folder)]
    again = shlex.join(words if device == "auto" else [*words, "--device", device])
    console = new_console()
    try:
        with interrupted_by_sigterm():
            show.run(kind.preset(preset).on(device), preset, folder, console, again)
    except KeyboardInterrupt as stopped:
        console.print(f"interrupted; continue with: {again}", soft_wrap=True)
        return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)
    return 0


app.command(sweep)
app.command(sweep_report.report)
app.command(attack_search, name="attack-search")


@app.command(name="list")
def list_() -> int:
    """Show all defences, attacks, partitions and models, with their parameters."""
    console = new_console()
    for shown in catalogue.tables():
        # A terminal folds a line that is too long; a table that is too narrow loses words.
        console.print(shown, width=max(console.width, catalogue.WIDTH), crop=False)
    return 0


def _execute(run: run_folder.Run) -> int:
    console = new_console()
    progress = Progress(console)
    folder, again = run.folder, shlex.join(["robust-agg", "resume", str(run.folder)])
    console.print(f"run folder: {folder}", soft_wrap=True)
    try:
        results = runs.execute(run, progress)
    except InterruptedRun as stopped:
        progress.stop()
        console.print(f"interrupted; continue with: {again}", soft_wrap=True)
        return 128 + stopped.number
    except (HostError, OSError):
        progress.stop()
        if run.has_begun():
            console.print(f"stopped; continue with: {again}", soft_wrap=True)
        raise
    finally:
        progress.stop()
    table = {(cell.defence, cell.attacked): metrics for cell, metrics in results.items()}
    samples = len(getattr(run.data, run.config.split))
    note = run.data.note
    console.print(report.table(run.config, table, samples=samples))
    console.print(f"data: {note}", soft_wrap=True)
    if not (folder / run_folder.FIGURE).exists():
        figure.draw(folder / run_folder.FIGURE, run.config, table)
    if not (folder / run_folder.SUMMARY).exists():
        report.write_summary(folder / run_folder.SUMMARY, run.config, table, note, samples=samples)
    console.print(f"figure: {folder / run_folder.FIGURE}", soft_wrap=True)
    return 0


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: exit code 0; 1 where the reader of the output has gone; 2 for a mistake in what
    was asked, or where it cannot be done; 3 where cells of a sweep have failed; 128 and the
    signal's number after one, 130 for Ctrl-C.

    A mistake is one line on standard error: the parameter, the constraint and what was found. With
    ``ROBUST_AGG_DEBUG`` set, its traceback comes first.
    """
    if sys.stdout is None:  # closed by the shell's >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a table is worth more than its ‖
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        code = 130
    except (CycloptsError, ValueError, HostError, ImportError, OSError, sqlite3.Error) as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        print(f"robust-agg: error: {_one_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: BaseException) -> str:
    """The root of the matter without the frames a parsing library puts around it."""
    while isinstance(error, CycloptsError) and error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).split())
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE // 2]} … {line[-200:]}"


_LONGEST_LINE = 800
