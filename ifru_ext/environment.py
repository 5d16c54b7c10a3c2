"""What a result was computed with: for reports, benchmarks and `ifru info`."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np
import torch

from ifru_ext._native import native

__all__ = ["environment"]


def environment(dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Versions, threads, instruction set and processor, as JSON values.

    Args:
        dtype: Of the computation, where there is one.
    """
    values: dict[str, Any] = {
        "ifru_ext": native.build["version"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "isa": native.isa,
        "machine": platform.machine(),
        "cuda_kernels": native.cuda_loaded,
    }
    if dtype is not None:
        values["dtype"] = str(dtype).removeprefix("torch.")
    return values
