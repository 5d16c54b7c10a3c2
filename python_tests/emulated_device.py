"""A CUDA device that is not there: tensors that say `cuda:0` and lie in the CPU's memory.

The package takes for them the ways that it takes for a GPU's: which index, which ops, what is moved
where. Their ops are the CUDA launchers and kernels on the emulated GPU (see emulation.py), and what
a GPU would refuse is refused: tensors of two devices in one operation, NumPy arrays of its memory.
What would make the host wait for the GPU can be forbidden.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from emulation import NAMESPACE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["DeviceTensor", "EmulatedDevice"]

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")

# The device of an operand that these take is their own matter.
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# The host needs what these compute, a value or the size of a result.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.bincount.default,
}


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `memory` is where its values are."""

    memory: torch.Tensor

    @staticmethod
    def __new__(cls, memory):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=DEVICE,
        )
        tensor.memory = memory
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def memory_of(x):
    return x.memory if isinstance(x, DeviceTensor) else x


def run(func, args, kwargs):
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in operands if isinstance(x, DeviceTensor)]
    target = kwargs.get("device")
    on_device = bool(ours) if target is None else torch.device(target).type == "cuda"
    if ours:
        check_devices(func, operands)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if ours and func.namespace == "ifru_ext":
        func = getattr(getattr(getattr(torch.ops, NAMESPACE), func._opname), func._overloadname)
    result = func(*tree_map(memory_of, args), **tree_map(memory_of, kwargs))
    known = {id(x.memory): x for x in ours}

    def placed(x):
        if id(x) in known:  # written in place
            return known[id(x)]
        if not isinstance(x, torch.Tensor) or not on_device:
            return x
        return DeviceTensor(x)

    return tree_map(placed, result)


def check_devices(func, operands):
    """What a GPU refuses: tensors of the host, but for scalars, indices and what is copied."""
    own = func.namespace in ("ifru_ext", NAMESPACE)
    hosts = [x for x in operands if not isinstance(x, DeviceTensor) and (own or x.dim() > 0)]
    if func in MOVES or not hosts:
        return
    if own and len(hosts) == 1 and func._schema.arguments[operands_place(func)].name == "alpha":
        return
    if func in INDEXED and all(not x.is_floating_point() for x in hosts):
        return
    raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu")
