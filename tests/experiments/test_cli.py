"""The command line as a person at a terminal meets it: processes, signals, mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_samples import (
    OWN_ATTACK,
    STATEFUL,
    environment,
    options,
    outcome,
    rounds_done,
    start,
    tiny,
)

import attacks
import robust_agg
from experiments.cli import DEBUG, main
from experiments.config import RunConfig
from experiments.run_folder import DONE, SUMMARY, reopen
from experiments.simulation import CHECKPOINT
from robust_agg import __version__

LONG: dict[str, Any] = {**STATEFUL, "rounds": 120, "evaluate_every": 40, "checkpoint_every": 20}


def only_folder(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert call("run", *options(tiny(**LONG)), "--out", str(out)) == 0
    return only_folder(out)


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with files of a user's attacks that are wrong in all ways."""
    monkeypatch.chdir(tmp_path)
    attack = "from attacks import Attack\n\nclass Mine(Attack):\n"
    call_ = "    def __call__(self, view, state, generator):\n        return {}, state\n"
    for name, text in {
        "good": OWN_ATTACK,
        "raises": "1 / 0\n",
        "exits": "raise SystemExit(0)\n",
        "syntax": "def x(:\n",
        "no_class": "x = 1\n",
        "no_attack": "class Mine:\n    pass\n",
        "wrong_all": "__all__ = ['Nothing']\n",
        "abstract": attack + "    pass\n",
        "constructor": attack + "    def __init__(self):\n        raise KeyError('it')\n" + call_,
        "rows": attack + call_.format("'no rows'"),
        "quits": attack + "    def __call__(self, *_):\n        raise SystemExit(0)\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "file").touch()
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that is refused with exit code 2."""
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("robust-agg: error: ")
    assert len(captured.err) < 1000
    return captured.err.removeprefix("robust-agg: error: ").rstrip()


WRONG: list[tuple[str, str, str]] = [
    # Types and ranges of the options.
    *(
        (f"{name} x", name.replace("-", "."), "int")
        for name in ("workers", "byzantine", "f", "hosts")
    ),
    *(
        (f"{name} 1.5", name, "must be an integer, found '1.5'")
        for name in ("rounds", "sample", "seed")
    ),
    *(
        (f"{name} 0", name.replace("-", "_"), "found 0")
        for name in ("workers", "rounds", "batch-size")
    ),
    *(
        (f"{name} -1", name.replace("-", "_"), "found -1")
        for name in ("byzantine", "f", "num-gpus")
    ),
    *((f"{name} 0", name.replace("-", "_"), "found 0") for name in ("quorum", "checkpoint-every")),
    *((f"{name} x", name, "float") for name in ("lr", "deadline", "num-gpus")),
    *(
        (f"{name} nan", name.replace("-", "_"), "nan")
        for name in ("lr", "local-lr", "weight-decay", "num-gpus")
    ),
    *((f"{name} inf", name.replace("-", "_"), "inf") for name in ("lr", "deadline", "num-gpus")),
    ("lr -0.1", "lr must be a positive number", "-0.1"),
    ("deadline 1e300", "deadline must be in", "1e[+]300"),
    ("threads 100000", "threads must be in .1, 256.", "100000"),
    ("workers 1" + "0" * 30, "workers must be in .1, 1000000.", "0000"),
    ("seed " + "9" * 5000, "seed", "int"),
    # Options that do not fit each other.
    ("byzantine 7", "byzantine must be >= 0 and below workers=7", "found 7"),
    ("f 4", "f must be >= 0 with 2f . 1 <= 7 rows a round", "found 4"),
    ("hosts 8", "hosts must be at most the number of workers, 7", "found 8"),
    ("sample 8", "sample must be at most the number of workers, 7", "found 8"),
    ("quorum 8", "quorum must be at most the number of rows, 7", "found 8"),
    ("f 3|aggregator Krum", "aggregator: Krum: n >= 2f . 3", "n=7, f=3"),
    ("estimator none", "at least one defence is required", "none"),
    ("workers 2000|byzantine 0", "workers <= samples", "workers=2000, samples=1297"),
    (
        "codec EF21(compressor=TopK(share=0.1))|attack Crash(round=1)",
        "attack must not be a fault where rows travel by a codec",
        "found Crash.round=1. and codec=EF21",
    ),
    (
        "codec Clip21(tau=1.0)|identities round",
        "identities must be 'last' or 'run' where rows travel by a codec",
        "found 'round' and codec=Clip21",
    ),
    # Choices.
    ("dataset cifar", "dataset", '"digits", "mnist"'),
    ("transport tcp", "transport", '"ray", "inline", "ranks"'),
    ("device nonsense", "device must be auto, cpu, cuda or cuda:N", "'nonsense'"),
    ("device meta", "device must be auto, cpu, cuda or cuda:N", "'meta'"),
    ("device cuda:999", "device must exist, found 'cuda:999'", "CUDA devices"),
    # Names.
    ("attack SignFlp", "attack", "unknown name 'SignFlp', did you mean 'SignFlip'"),
    ("attack Mean", "attack", "unknown name 'Mean', known are ROP, ALittleIsEnough, "),
    ("aggregator Meen", "aggregator", "did you mean 'Mean'"),
    ("aggregator Update(sender=1)", "aggregator", "unknown name 'Update'"),
    ("estimator VClip(ta=1)", "estimator", "no parameter 'ta', did you mean 'tau'"),
    ("estimator Mean", "estimator: an online estimator is required", "found 'Mean'"),
    ("local-estimator Mean", "local_estimator: 'Mean': an estimator is required", "found Mean"),
    ("partition Dirichlt", "partition", "did you mean 'Dirichlet'"),
    ("partition GammaSimilarity", "partition: GammaSimilarity: gamma must be given", "Gamma"),
    ("aggregator Clip + Mean", "aggregator: Clip: threshold must be given", "Clip . Mean"),
    ("model Transformer", "model", "known are LogisticRegression, MLP, SmallCNN"),
    # Values within.
    (
        "attack GaussianNoise(scale=-1)",
        "attack: GaussianNoise: scale must be finite and >= 0",
        "-1",
    ),
    ("attack GaussianNoise(scale='a')", "attack: GaussianNoise: scale must be float", "'a'"),
    ("attack LabelFlip(mapping=3)", "attack: LabelFlip: mapping must be Mapping", "found 3"),
    ("estimator VClip(tau=-0.1)", "estimator: VClip: tau must be a positive finite", "-0.1"),
    ("estimator VClip(tau=1e999)", "estimator: VClip: tau must be a positive finite", "inf"),
    (f"estimator VClip(tau={10**400})", "estimator: VClip: tau must be float", "found 1000"),
    ("estimator VClip(fusion='x')", "VClip: fusion must be one of 'sequential', ", "found 'x'"),
    ("model MLP(hidden=(1.5,))", "model: MLP: hidden must be tuple", "found .1.5,."),
    (f"model MLP(hidden=({10**18},))", "model: MLP.* cannot be built", "overflow"),
    # Forms.
    ("attack ", "attack", "''"),
    ("attack SignFlip(", "attack", "never closed"),
    (
        "aggregator Mean + Mean",
        "aggregator: 'Mean . Mean': a mixing before '.' is required",
        "Mean",
    ),
    ("aggregator Mean()()", "aggregator", "Name.parameter=value, .* is required"),
    ("aggregator MultiKrum(m=m)", "aggregator", "unknown name 'm'"),
    ("aggregator " + "(" * 900 + "1", "aggregator", "required"),
    ("aggregator MultiKrum(m=" + "-" * 900 + "1)", "aggregator", "fewer levels of nesting|must be"),
    (
        "aggregator " + " + ".join(["Mean"] * 999),
        "aggregator: at most 1000 characters",
        "found 6990",
    ),
    # The user's own file.
    ("attack nothing.py:Mine", "attack: a file is required", "nothing.py"),
    ("attack raises.py:Mine", "attack: raises.py cannot be loaded", "ZeroDivisionError"),
    ("attack exits.py:Mine", "attack: exits.py cannot be loaded", "SystemExit"),
    ("attack syntax.py:Mine", "attack: syntax.py cannot be loaded", "SyntaxError"),
    ("attack no_class.py:Mine", "attack: no_class.py must define an Attack", "found none"),
    ("attack no_attack.py:Mine", "attack: no_attack.py must define an Attack", "found none"),
    ("attack wrong_all.py:Mine", "attack: wrong_all.py must define an Attack", "found none"),
    ("attack abstract.py:Mine", "attack: 'Mine'", "abstract class Mine"),
    ("attack constructor.py:Mine", "attack: 'Mine'", "KeyError: 'it'"),
    ("attack good.py:Drit", "attack", "unknown name 'Drit', did you mean 'Drift'"),
    ("attack good.py:", "attack", "''"),
    # Where the run is to be.
    ("out file", "out: a folder that can be written is required", "file"),
    ("out file/runs", "out: a folder that can be written is required", "file/runs"),
]


@pytest.mark.parametrize(("given", "parameter", "found"), WRONG, ids=lambda text: text[:30])
def test_a_mistake_is_one_line_and_leaves_nothing(
    given: str, parameter: str, found: str, own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = dict(option.split(" ", 1) for option in given.split("|"))
    arguments = {name: [value] for name, value in _arguments(tiny()).items()} | {"out": ["runs"]}
    arguments |= {name: [value] for name, value in changed.items()}
    flat = [word for name, values in arguments.items() for word in (f"--{name}", *values)]
    line = refusal(capsys, "run", *flat)
    assert re.search(parameter, line), line
    assert re.search(found, line), line
    left = list((own_files / "runs").iterdir()) if (own_files / "runs").is_dir() else []
    assert left == []


def _arguments(config: RunConfig) -> dict[str, str]:
    words = options(config)
    return {
        name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["run", "--bogus", "1"], "Unknown option: .*bogus"),
        (["run", "--rounds"], "rounds"),
        (["run", "digits"], "digits"),
        (["train"], "train"),
        (["resume"], "folder"),
        (
            ["resume", "nowhere"],
            "nowhere/config.json: a configuration .* is required, found No such",
        ),
        (["resume", "file"], "file/config.json: a configuration .* is required, found Not a dir"),
        (["resume", "."], "config.json: a configuration .* is required"),
    ],
    ids=str,
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], found: str, own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(own_files.rglob("*"))
    assert re.search(found, refusal(capsys, *arguments))
    assert sorted(own_files.rglob("*")) == before


def test_no_code_of_a_specification_is_executed(
    own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"__import__('pathlib').Path('{own_files / 'executed'}').touch()"
    for text in (code, f"SignFlip(scale={code})", f"SignFlip({code})", f"(lambda: {code})()"):
        refusal(capsys, "run", "--attack", text)
        refusal(capsys, "run", "--aggregator", f"Mean + {text}")
    assert not (own_files / "executed").exists()


def test_missing_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", *options(tiny(dataset="mnist")), "--out", str(tmp_path / "runs")]
    monkeypatch.setenv("ROBUST_AGG_DATA", str(tmp_path / "nowhere"))
    assert "ROBUST_AGG_DATA must be an existing folder" in refusal(capsys, *given)
    # No cache, and no network behind a proxy that is not there.
    monkeypatch.delenv("ROBUST_AGG_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert call(*given) == 2
    downloading, line = capsys.readouterr().err.splitlines()
    assert downloading.startswith("Downloading data from")
    assert line.startswith("robust-agg: error: mnist: train-images-idx3-ubyte.gz is in no folder")
    assert "set ROBUST_AGG_DATA" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rows", "rows (2, 650) of torch.float32 on cpu are required, found str"),
        ("quits", "quits.py:5: SystemExit: 0"),
    ],
)
def test_an_attack_that_fails_in_a_round_is_one_line_and_leaves_no_complete_run(
    name: str, found: str, own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, "run", *options(tiny(attack=f"{name}.py:Mine")), "--out", "runs")
    assert "Mine failed at " in line
    assert found in line
    folder = only_folder(own_files / "runs")
    assert not (folder / SUMMARY).exists()
    assert not (folder / "figure.png").exists()


def test_without_ray_the_ray_transport_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None is how Python itself marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refusal(capsys, "run", *options(tiny(transport="ray")), "--out", str(tmp_path))
    assert line == "the ray transport needs Ray: pip install 'robust-agg[ray]'"
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a [b] $c.py").write_text(OWN_ATTACK)
    config = RunConfig(
        workers=9,
        byzantine=3,
        f=2,
        attack=f"{tmp_path / 'a [b] $c.py'}:Drift(step=0.25)",
        aggregator=("Bucketing(s=2) + Mean", "MultiKrum(f=2, m=2)"),
        estimator=("CClip(tau=0.5, fusion='batch')", "VClip"),
        local_estimator="none",
        dataset="digits",
        partition="LabelShards(shards_per_worker=2)",
        model="MLP(hidden=(5,))",
        rounds=3,
        batch_size=4,
        lr=0.5,
        weight_decay=0.001,
        local_steps=2,
        local_lr=0.25,
        sample=8,
        transport="inline",
        hosts=3,
        threads=2,
        num_gpus=0.0,
        deadline=30.0,
        quorum=5,
        server="driver",
        device="cpu",
        evaluate_every=2,
        checkpoint_every=1,
        seed=-7,
    )
    assert call("run", *options(config), "--out", str(tmp_path / "runs [x]")) == 0
    folder = only_folder(tmp_path / "runs [x]")
    found = reopen(folder).config
    assert found.attack == f"{folder / 'a [b] $c.py'}:Drift(step=0.25)"
    assert dataclasses.replace(found, attack=config.attack) == config
    assert found.digest == config.digest
    printed = capsys.readouterr().out
    assert f"run folder: {folder}\n" in printed
    for text in (*config.defences, config.attack_label):
        # The table folds what is wider than itself, a long path for one.
        assert "".join(text.split()) in "".join(printed.split())
    assert set(json.loads((folder / SUMMARY).read_text())["defences"]) == {*config.defences}
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("transport", ["inline", "ranks"])
def test_a_hung_host_does_not_keep_the_command_from_ending(transport: str, tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(
        "import time\nfrom attacks import DataAttack\n\n"
        "class Hang(DataAttack):\n"
        "    def __call__(self, inputs, targets, generator):\n"
        "        time.sleep(3600)\n"
    )
    attack = f"{tmp_path / 'hang.py'}:Hang"
    changes = {"byzantine": 1, "f": 1, "rounds": 3, "deadline": 2.0, "transport": transport}
    config = tiny(attack=attack, **changes)
    process = start("run", *options(config), "--out", str(tmp_path / "runs"))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert (only_folder(tmp_path / "runs") / SUMMARY).exists()
    assert "missing" in out


def test_a_traceback_is_shown_to_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DEBUG, "1")
    assert call("run", "--attack", "SignFlp") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("robust-agg: error: attack: unknown name 'SignFlp'")


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    program = (
        "import sys; sys.modules['rich.console'] = None; "
        "from experiments.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "robust-agg: error: the command line needs rich.console: "
        "pip install 'robust-agg[experiments]'\n"
    )


def test_list_shows_every_name_with_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    shown = capsys.readouterr().out
    for text in (
        *(
            "GeometricMedian(tolerance=1e-13",
            "Krum(f, ",
            "SignGuard(lower=0.1",
            "SignMajority()",
            "Bucketing(s)",
            "VClip(tau=None",
        ),
        *("LabelFlip(num_classes, mapping=None)", "Dirichlet(alpha", "SmallCNN(channels=(16, 32))"),
    ):
        assert text in shown
    # No word is cut where the first column, or the last, is long.
    words = set(shown.split())
    for summary in ("CAF", "CenteredClipping", "NearestNeighborMixing", "OptimalALIE"):
        doc = (getattr(robust_agg, summary, None) or getattr(attacks, summary)).__doc__ or ""
        assert set(doc.partition("\n\n")[0].replace("``", "").split()) <= words
    assert "Chain" not in shown
    assert "FLTrust" not in shown  # it needs a tensor
    assert ":math:" not in shown


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert call("run", "--help") == 0
    printed = capsys.readouterr().out
    for name in (
        *("workers", "byzantine", "attack", "aggregator", "estimator", "transport"),
        *("rounds", "seed", "device", "out"),
    ):
        assert f"--{name} " in printed


def test_a_run_stopped_by_ctrl_c_and_then_killed_ends_as_if_undisturbed(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, attacked = (cell.folder for cell in reopen(undisturbed).trainings)
    code, shown = at_a_terminal(
        ["run", *options(tiny(**LONG)), "--out", str(tmp_path)],
        press=lambda: any(rounds_done(folder, honest) > 25 for folder in tmp_path.iterdir()),
    )
    assert code == 130, shown
    folder = only_folder(tmp_path)
    assert f"interrupted; continue with: robust-agg resume {folder}\n" in shown
    assert "Traceback" not in shown
    assert re.search(r"all trainings +[━╸╺ ]+ +\d+/240", shown), "the bar of all trainings"
    assert re.search(r"no attack +[━╸╺ ]+ +\d+/120", shown), "the bar of one training"
    assert "round 40/" not in shown
    assert (folder / honest / CHECKPOINT).exists()
    assert not (folder / honest / DONE).exists()

    # Killed between two checkpoints.
    process = start("resume", str(folder))
    while rounds_done(folder, attacked) < 33:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    _, err = process.communicate()
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    assert (folder / honest / DONE).exists()
    assert not (folder / attacked / DONE).exists()
    assert not (folder / SUMMARY).exists()

    # Told to end, as cluster schedulers do.
    before = rounds_done(folder, attacked)
    process = start("resume", str(folder))
    while rounds_done(folder, attacked) < before + 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.terminate()
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "stopping in order; once more: at once\n"
    assert out.endswith(f"interrupted; continue with: robust-agg resume {folder}\n")
    assert (folder / attacked / CHECKPOINT).exists()

    assert call("resume", str(folder)) == 0
    assert outcome(folder) == outcome(undisturbed)
    # Not a terminal: plain lines, and the table at the end.
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert re.search(
        r"^VClip.*, under attack: round 120/120, accuracy \d+\.\d%$", out, re.MULTILINE
    )
    assert re.search(r"│ VClip\(fusion='sequential'\) +│ +\d+\.\d% │ +\d+\.\d% │", out)


def test_processes_of_a_run_on_ranks_end_with_it(undisturbed: Path, tmp_path: Path) -> None:
    """Where it is interrupted, killed or done; and its trainings are those of threads."""
    cells = [cell.folder for cell in reopen(undisturbed).trainings]
    code, shown = at_a_terminal(
        ["run", *options(tiny(**{**LONG, "transport": "ranks"})), "--out", str(tmp_path)],
        press=lambda: any(rounds_done(folder, cells[0]) > 25 for folder in tmp_path.iterdir()),
    )
    folder = only_folder(tmp_path)
    assert code == 130, shown
    assert shown.endswith(f"interrupted; continue with: robust-agg resume {folder}\n")
    assert "Traceback" not in shown
    assert (folder / cells[0] / CHECKPOINT).exists()

    process = start("resume", str(folder))
    while rounds_done(folder, cells[1]) < 33:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    errors = [os.readlink(f"/proc/{child}/fd/2") for child in children]
    assert errors.count(os.readlink(f"/proc/{process.pid}/fd/2")) >= 2
    process.kill()
    # Its standard error, which they hold too, ends with the last of them.
    assert process.communicate(timeout=60)[1] == ""

    process = start("resume", str(folder))
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    for cell in cells:
        assert outcome(folder / cell) == outcome(undisturbed / cell)


def at_a_terminal(arguments: list[str], *, press: Callable[[], bool]) -> tuple[int, str]:
    """Exit code and shown text of a command at a terminal where Ctrl-C is pressed, once."""
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "experiments", *arguments]
        os.execve(sys.executable, command, {**environment(), "TERM": "xterm"})
    shown = b""
    pressed = False
    while True:
        if select.select([terminal], [], [], 0.002)[0]:
            try:
                read = os.read(terminal, 1 << 16)
            except OSError:  # how Linux says that the other side of a terminal is closed
                break
            if not read:
                break
            shown += read
        if not pressed and press():
            os.write(terminal, b"\x03")
            pressed = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "")


def test_a_finished_run_can_be_shown_again(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcome(undisturbed)
    assert call("resume", str(undisturbed)) == 0
    assert "Byzantine weight" in capsys.readouterr().out
    assert outcome(undisturbed) == before


def test_a_reader_that_goes_is_no_error(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert call("resume", str(undisturbed)) == 1
    assert capsys.readouterr().err == ""
