"""Where the tensors are."""

from __future__ import annotations

import torch

from ifru_ext._native import native
from ifru_ext.errors import InputError

__all__ = ["as_device"]


def as_device(name: str, device: torch.device | str) -> torch.device:
    """Checks a device that tensors are to be moved to.

    Args:
        name: What an error calls it.
        device: "cpu", or "cuda" with or without a number.

    Raises:
        InputError: It is another one, torch does not see it, or the CUDA kernels are not loaded.
    """
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError):
        checked = None
    if checked is None or checked.type not in ("cpu", "cuda"):
        raise InputError(f"{name}: expected 'cpu' or 'cuda', got {device!r}")
    if checked.type == "cuda":
        seen = torch.cuda.device_count()
        if not native.cuda_loaded:
            raise InputError(f"{name}: expected 'cpu', got '{checked}': {native.cuda_reason}")
        if seen == 0:
            raise InputError(f"{name}: expected 'cpu', got '{checked}': torch sees no CUDA device")
        if checked.index is not None and checked.index >= seen:
            raise InputError(f"{name}: expected a CUDA device below {seen}, got '{checked}'")
    return checked
