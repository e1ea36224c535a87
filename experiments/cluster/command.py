"""The command line of the training scripts, and the processes they find themselves in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.distributed as dist
from cyclopts import App, Parameter
from torch.distributed.rendezvous import rendezvous

from experiments.cluster.setting import Setting
from experiments.config import ConfigError
from experiments.data import DataError
from robust_agg import ConstraintError
from robust_agg.distributed import RankError
from robust_agg.distributed.torch_compat import PrefixStore


def launched(train: Callable[[Setting], Any]) -> None:
    """Run a training as one of the ranks that torchrun has started, by the options it was given.

    Ends the process with 1 and a line on standard error where a rank is lost, 2 where what is asked
    for cannot be.
    """
    app = App(help=(sys.modules[train.__module__].__doc__ or "").partition("\n")[0])

    @app.default
    def run(setting: Annotated[Setting | None, Parameter(name="*")] = None) -> None:
        setting = Setting() if setting is None else setting
        join()
        setting.out.mkdir(parents=True, exist_ok=True)
        try:
            train(setting)
        except (RankError, ConfigError, DataError, ConstraintError) as error:
            print(error, file=sys.stderr, flush=True)
            # What is left of the process group would wait for the rank that is gone.
            os._exit(1 if isinstance(error, RankError) else 2)
        dist.destroy_process_group()

    app()


def join() -> None:
    """Meet the other ranks, as the environment says; over nccl where each has a GPU."""
    own = int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    if own:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://"))
    # torchrun restarts ranks with the store they had, in which they would find the addresses of
    # those that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group("nccl" if own else "gloo", store=store, rank=rank, world_size=size)


def own_device() -> torch.device:
    """Where this rank computes."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
