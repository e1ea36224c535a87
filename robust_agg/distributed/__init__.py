"""The rules as collectives of torch.distributed: whole gradients, at the bytes of an all-reduce.

``RobustFSDP`` is in ``robust_agg.distributed.fsdp``: importing what it needs takes a second.
"""

from robust_agg.distributed.all_reduce import RobustAllReduce, robust_all_reduce
from robust_agg.distributed.ddp import RobustHook, robust_hook
from robust_agg.distributed.errors import DisagreementError, EquivocationError, RankError
from robust_agg.distributed.evidence import Evidence, Suspect
from robust_agg.distributed.exchanges import Trust

__all__ = [
    "DisagreementError",
    "EquivocationError",
    "Evidence",
    "RankError",
    "RobustAllReduce",
    "RobustHook",
    "Suspect",
    "Trust",
    "robust_all_reduce",
    "robust_hook",
]
