"""The ops on the emulated GPU of csrc/testing/simt, in the place of the CPU's kernels.

`pytest --emulated LIBRARY`, which `make test-emulated` runs. The launchers of csrc/ops/*_cuda.cu
and their kernels take the CPU's tensors, in a namespace of their own with the same schemas.
"""

from __future__ import annotations

import torch

from ifru_ext import ops

__all__ = ["CPU_ONLY", "NAMESPACE", "kernels", "load", "switch_on"]

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


def switch_on(patch):
    """Gives the package the emulated ops, until the patch is undone."""
    patch.setattr(ops, "_ops", getattr(torch.ops, NAMESPACE))
