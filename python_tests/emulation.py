"""The emulated GPU of csrc/testing/simt, seen from Python: `pytest --emulated LIBRARY`.

The library holds the ops of csrc/ops/*_cuda.cu, launchers and kernels, with the schemas of ifru_ext
in a namespace of its own; they take the CPU's tensors. `use_for_all` gives them to the package
in the place of the CPU's. `Device` is a CUDA device that is not there: its tensors say `cuda:0` and
lie in the CPU's memory, so the package goes the ways that it goes for a GPU.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ifru_ext import device, functional, ops

__all__ = ["CPU_ONLY", "NAMESPACE", "Device", "in_use", "kernels", "load", "use_for_all"]

NAMESPACE = "ifru_ext_emulated"

# The ops that the CUDA library leaves out, and why.
CPU_ONLY = {"propagate_stream": "a pass for the caches of a core; a GPU gathers by `propagate`"}


def overloads(name):
    """Overload -> its name in the dispatcher, without the namespace."""
    names = getattr(torch.ops.ifru_ext, name).overloads()
    return {o: name if o == "default" else f"{name}.{o}" for o in names}


def kernels(namespace, key):
    """The ops of which every overload has a kernel for a dispatch key."""
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name
        for name in ops.__all__
        if all(registered(f"{namespace}::{full}", key) for full in overloads(name).values())
    }


def load(library):
    """Loads the library; its ops have the fakes of the ops of ifru_ext."""
    torch.ops.load_library(library)
    for name in ops.__all__:
        for overload, full in overloads(name).items():
            fake = getattr(getattr(torch.ops.ifru_ext, name), overload)
            torch.library.register_fake(f"{NAMESPACE}::{full}", fake)


def use_for_all(patch):
    """Gives the package the emulated ops for all tensors."""
    patch.setattr(ops, "_ops", getattr(torch.ops, NAMESPACE))


def in_use():
    """Whether it has them."""
    return ops._ops.name == NAMESPACE


# --- the device -----------------------------------------------------------------------------------

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")

# These take operands of any device: what copies, and ids of what is read or written.
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
# What these compute, a value or a size, the host waits for.
WAITS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
}


class DeviceTensor(torch.Tensor):
    """A tensor of the device; its values are in `memory`."""

    @staticmethod
    def __new__(cls, memory):
        layout = {"strides": memory.stride(), "storage_offset": memory.storage_offset()}
        make = torch.Tensor._make_wrapper_subclass
        tensor = make(cls, memory.shape, dtype=memory.dtype, device=CUDA, **layout)
        tensor.memory = memory
        return tensor

    def __repr__(self):
        return f"DeviceTensor({self.memory})"

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


class Device(TorchDispatchMode):
    """While this is entered, the package and torch find a CUDA device.

    Args:
        patch: For what torch and the package know of devices.
    """

    def __init__(self, patch):
        super().__init__()
        self._waiting_is_allowed = True
        self.recording = None
        # Entered in one thread, it is not in others.
        enter_too = partial(ThreadPoolExecutor, initializer=self.__enter__)
        patch.setattr(functional, "ThreadPoolExecutor", enter_too)
        patch.setattr(device, "native", dataclasses.replace(device.native, cuda_loaded=True))
        for name, stand_in in {
            "_lazy_init": lambda: None,
            "device_count": lambda: 1,
            "device": lambda index: nullcontext(),
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda stream: nullcontext(),
            "synchronize": lambda device=None: None,
            "CUDAGraph": lambda: Graph(self),
            "graph": lambda graph: graph.recorded(),
        }.items():
            patch.setattr(torch.cuda, name, stand_in)

    def __enter__(self):
        # torch.tensor moves what it made without telling a mode, unless it is asked to.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op._can_decompose():  # in inference mode they come whole: `to` is none of those below
            with self:
                return op.decompose(*args, **kwargs)
        if not self._waiting_is_allowed and waits(op, args, kwargs):
            raise AssertionError(f"the host waits for the device in {op}")
        return run(op, args, kwargs, self.recording)

    @contextmanager
    def no_waiting(self):
        """Within, nothing may make the host wait for the device."""
        self._waiting_is_allowed = False
        try:
            yield
        finally:
            self._waiting_is_allowed = True


class Stream:
    """All that is done on the device is over when the call returns."""

    def wait_stream(self, other):
        pass


class Graph:
    """A recording of ops on the memory they were recorded with; nothing it records happens."""

    def __init__(self, device):
        self._device = device
        self._calls = []
        self._before = {}

    @contextmanager
    def recorded(self):
        with self._device.no_waiting():
            self._device.recording = self
            try:
                yield
            finally:
                self._device.recording = None
        for storage, content in self._before.values():
            storage.copy_(content)

    def run(self, op, args, kwargs):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        result = op(*args, **kwargs)
        self._calls.append((op, args, kwargs, result))
        return result

    def replay(self):
        for op, args, kwargs, results in self._calls:
            again = op(*args, **kwargs)
            for x, y in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(x, torch.Tensor) and x.data_ptr() != y.data_ptr():
                    x.copy_(y)


def run(op, args, kwargs, recording=None):
    """An op on the memory of its operands; its results are on the device where theirs would be."""
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = {id(x.memory): x for x in operands if isinstance(x, DeviceTensor)}
    target = kwargs.get("device")
    on_device = bool(ours) if target is None else target.type == "cuda"
    if target is not None:
        kwargs = {**kwargs, "device": CPU}
    if ours:
        check_devices(op, args, operands)
        if op.namespace == "ifru_ext":
            op = getattr(getattr(getattr(torch.ops, NAMESPACE), op._opname), op._overloadname)
    args, kwargs = tree_map(lambda x: getattr(x, "memory", x), (args, kwargs))

    def placed(x):
        if not isinstance(x, torch.Tensor) or not on_device:
            return x
        if id(x) in ours:  # written in place
            return ours[id(x)]
        with torch.inference_mode(x.is_inference()):  # of a view, what its base is
            return DeviceTensor(x)

    result = op(*args, **kwargs) if recording is None else recording.run(op, args, kwargs)
    return tree_map(placed, result)


def check_devices(op, args, operands):
    """Refuses what CUDA refuses: operands of the host, but for scalars, copies and ids."""
    if op.namespace in ("ifru_ext", NAMESPACE):
        named = zip((a.name for a in op._schema.arguments), args, strict=False)
        expected = {"alpha"} if op._opname == "propagate" else set()  # which the host reads
        hosts = {n for n, x in named if type(x) is torch.Tensor}
        wrong = hosts != expected
    else:
        hosts = [x for x in operands if type(x) is torch.Tensor and x.dim() > 0]
        ids = op in INDEXED and not any(x.is_floating_point() for x in hosts)
        wrong = bool(hosts) and op not in COPIES and not ids
    if wrong:
        raise RuntimeError(f"{op}: expected all tensors to be on the same device, found two")


def waits(op, args, kwargs):
    """Whether CUDA makes the host wait in this op."""
    operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [isinstance(x, DeviceTensor) for x in operands]
    if not any(ours):
        return False
    if op in COPIES:
        return not all(ours) or kwargs.get("device", CUDA).type == "cpu"
    if op in INDEXED:
        return any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
    if op is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return op in WAITS
