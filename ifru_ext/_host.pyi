from typing import Any

import numpy as np
import numpy.typing as npt

def bipartite_adjacency(
    user: npt.NDArray[np.int64],
    item: npt.NDArray[np.int64],
    n_users: int,
    n_items: int,
    n_threads: int = 1,
    out: tuple[npt.NDArray[Any] | None, ...] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]: ...
def expand_hop(
    rowptr: npt.NDArray[np.int64],
    neighbor: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
def slice_rows(
    rowptr: npt.NDArray[np.int64],
    neighbor: npt.NDArray[Any],
    edge: npt.NDArray[Any],
    rows: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]: ...
def fits_int32(n_nodes: int, n_interactions: int) -> bool: ...
def balanced_cuts(
    rowptr: npt.NDArray[np.int64], first: int, last: int, n_cuts: int
) -> npt.NDArray[np.int64]: ...
def stream_order(
    rowptr: npt.NDArray[np.int64],
    neighbor: npt.NDArray[Any],
    edge: npt.NDArray[Any],
    first_row: int,
    n_rows: int,
    cuts: npt.NDArray[np.int64],
    n_blocks: int,
    n_threads: int = 1,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]: ...
def triples(
    user: npt.NDArray[np.int64],
    positive: npt.NDArray[np.int64],
    negative: npt.NDArray[np.int64],
    n_users: int,
    n_items: int,
    n_threads: int = 1,
) -> tuple[
    npt.NDArray[np.int64],
    npt.NDArray[Any],
    npt.NDArray[Any],
    npt.NDArray[Any],
    npt.NDArray[Any],
]: ...
def build_info() -> dict[str, str | None]: ...
def isa() -> str: ...
def supported_isas() -> str: ...
