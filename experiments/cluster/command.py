"""The command line of the training scripts, and the processes they find themselves in."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import torch
import torch.distributed as dist
from cyclopts import App, Parameter

from experiments.cluster.setting import Setting
from robust_agg.distributed import RankError
from robust_agg.distributed.torch_compat import Store
from workers.rank_meeting import LauncherError, as_told, corner
from workers.rank_wire import in_a_line
from workers.transport import HostError

START = 120.0
"""Seconds for the slowest rank to come."""
_LATER = 2.0
# Seconds by which torch's own timeout is longer: a rule that waits can say which rank is missed.
_OF_GLOO = re.compile(r"\bgloo\b.*\.cc:\d+\]")


def launched(train: Callable[[Setting], Any]) -> None:
    """Run a training as one of the ranks that torchrun has started, by the options it was given.

    Ends the process with 1 and a line on standard error where a rank is lost, 2 and a line where
    what is asked for cannot be.
    """
    app = App(help=(sys.modules[train.__module__].__doc__ or "").partition("\n")[0])

    @app.default
    def run(setting: Annotated[Setting | None, Parameter(name="*")] = None) -> None:
        setting = Setting() if setting is None else setting
        try:
            told = as_told(timeout=START)
            join(told.store, told.rank, told.size, timeout=setting.timeout)
            setting.out.mkdir(parents=True, exist_ok=True)
            train(setting)
        except Exception as error:
            code = 1
            if isinstance(error, ValueError | OSError | LauncherError):
                print(error, file=sys.stderr)
                code = 2
            elif is_loss(error):
                print(in_words(error), file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stderr.flush()
            # What is left of the process group would wait for the rank that is gone.
            os._exit(code)
        dist.destroy_process_group()

    called(app)


def called(app: App) -> None:
    """Run an application by the command line; what cannot be ends it with 2 and a line."""
    try:
        app(sys.argv[1:])
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def join(store: Store, rank: int, size: int, *, timeout: float) -> None:
    """Be a rank of the default process group; over nccl where each has a GPU.

    Args:
        store: where the ranks meet; used for nothing else.
        rank: of this process.
        size: how many there are.
        timeout: seconds that a collective of torch's own may take, and a little longer.

    Raises:
        HostError: a rank does not come.
    """
    own = int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= torch.cuda.device_count()
    if own:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "nccl" if own else "gloo",
        # Ranks that are started again may find the store they had, with addresses of the dead.
        store=corner(store, rank, size, timeout=START),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout + _LATER),
    )


def is_loss(error: BaseException) -> bool:
    """Whether this says that a rank is lost: in our words, in torch's, or in gloo's."""
    if isinstance(error, RankError | HostError | dist.DistError):
        return True
    # Gloo's are plain ones, which name the file in which they were raised.
    return isinstance(error, RuntimeError) and _OF_GLOO.search(str(error)) is not None


def in_words(loss: BaseException) -> str:
    """What :func:`is_loss`, in a line."""
    if isinstance(loss, RankError | HostError):
        return str(loss)
    return f"a rank is lost: {in_a_line(loss)}"


def own_device() -> torch.device:
    """Where this rank computes."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
