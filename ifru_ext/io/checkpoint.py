"""The state of a long solve on the disk, of the size of the rows that are solved for."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ifru_ext.files import write_atomic
from ifru_ext.minimize import NewtonState
from ifru_ext.newton import NewtonStep, TrustRegion

__all__ = ["FileCheckpoint"]


class FileCheckpoint:
    """Keeps the last state of one solve in a file; see `ifru_ext.minimize.Checkpoint`.

    A file that is damaged, or of another solve, counts as none: it can only save time.

    Args:
        path: The file; its folder exists.
        key: Of the solve: all that its result depends on.
        interval: Seconds between two writes at least; a shorter solve never writes.

    Attributes:
        resumed: The number of the step that was gone on from, 0 for none.
    """

    def __init__(self, path: Path, key: str, interval: float = 10.0) -> None:
        self._path, self._key, self._interval = path, key, interval
        self._last = time.monotonic()
        self.resumed = 0

    def load(self) -> NewtonState | None:
        """What an earlier run kept; None where there is nothing of use."""
        try:
            with safe_open(self._path, framework="pt") as file:
                values = json.loads((file.metadata() or {})["ifru_ext"])
                x = file.get_tensor("x")
            if values["key"] != self._key or not bool(torch.isfinite(x).all()):
                return None
            region = values.pop("region")
            if region is not None:
                steps = tuple(NewtonStep(**step) for step in region.pop("steps"))
                region = TrustRegion(**region, steps=steps)
            history = tuple(values["history"])
            state = NewtonState(x, history, values["num_steps"], values["num_matvecs"], region)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError):
            return None
        self.resumed = len(state.history) - 1
        return state

    def save(self, state: NewtonState) -> None:
        """Writes it, unless it has written just now.

        Raises:
            OSError: The disk is full or cannot be written to.
        """
        if time.monotonic() - self._last < self._interval:
            return
        values = {
            "key": self._key,
            "history": state.history,
            "num_steps": state.num_steps,
            "num_matvecs": state.num_matvecs,
            "region": None if state.region is None else asdict(state.region),
        }
        write_atomic(
            self._path, save({"x": state.x.contiguous()}, {"ifru_ext": json.dumps(values)})
        )
        self._last = time.monotonic()

    def remove(self) -> None:
        """Removes the file: it holds what was to be forgotten, in part."""
        self._path.unlink(missing_ok=True)
