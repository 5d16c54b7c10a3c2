"""The same engine for a model that is spread over processes, on torch.distributed.

`ifru_ext.distributed.checkpoint`, which takes a second to import, has the files of such a model.
"""

from ifru_ext.distributed.data import ShardedInteractions
from ifru_ext.distributed.group import Group, ProcessLostError
from ifru_ext.distributed.layout import Halo, Layout
from ifru_ext.distributed.linearization import ShardedLinearization, linearize
from ifru_ext.distributed.model import ShardedModel
from ifru_ext.distributed.together import leading, take_part, unlearn_together
from ifru_ext.distributed.unlearning import ShardedResult, unlearn_sharded

__all__ = [
    "Group",
    "Halo",
    "Layout",
    "ProcessLostError",
    "ShardedInteractions",
    "ShardedLinearization",
    "ShardedModel",
    "ShardedResult",
    "leading",
    "linearize",
    "take_part",
    "unlearn_sharded",
    "unlearn_together",
]
