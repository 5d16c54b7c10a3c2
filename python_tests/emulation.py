"""The ops on the emulated GPU of csrc/testing/simt, in the place of the CPU's kernels.

`pytest --emulated LIBRARY`, which `make test-emulated` runs: the launchers of csrc/ops/*_cuda.cu and
their kernels take the CPU's tensors, in a namespace of their own with the same schemas.
"""

from __future__ import annotations

import pytest
import torch

from ifru_ext import ops

__all__ = ["CPU_ONLY", "NAMESPACE", "kernels", "load", "switch_on"]

NAMESPACE = "ifru_ext_emulated"

# The ops that the CUDA library leaves out, and why.
CPU_ONLY = {"propagate_stream": "the form for a core's caches: a GPU gathers from both sides"}


def overloads():
    """(name, overload) of every op."""
    return [
        (name, overload)
        for name in ops.__all__
        for overload in getattr(torch.ops.ifru_ext, name).overloads()
    ]


def kernels(namespace, key):
    """The ops of ifru_ext of which a namespace has every overload's kernel for a dispatch key."""
    missing = {
        name
        for name, overload in overloads()
        if not torch._C._dispatch_has_kernel_for_dispatch_key(
            f"{namespace}::{name}" + ("" if overload == "default" else f".{overload}"), key
        )
    }
    return set(ops.__all__) - missing


def load(library):
    """Loads the library; the fakes of its ops are those of the ops of ifru_ext."""
    torch.ops.load_library(library)
    for name, overload in overloads():
        suffix = "" if overload == "default" else f".{overload}"
        torch.library.register_fake(
            f"{NAMESPACE}::{name}{suffix}", getattr(getattr(torch.ops.ifru_ext, name), overload)
        )


def switch_on():
    """From now on CPU tensors are what tensors on a GPU are to the package; undo() ends it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ops, "_ops", getattr(torch.ops, NAMESPACE))
    return patch
