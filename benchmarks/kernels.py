"""The table of the CUDA kernels in gpu.md: what ptxas made of them, and what they have to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["kernels_text"]

# Shape D of `ifru bench`, and an H100's memory (SXM, HBM3: 3.35 TB/s by its data sheet).
N_USERS, N_NODES, N_INTERACTIONS, DIM = 1_000_000, 1_300_000, 5_000_000, 64
BYTES_PER_SECOND = 3.0e12


@dataclass(frozen=True)
class Kernel:
    """A kernel as it runs for d = 64 with int32 ids.

    Attributes:
        op: What a user calls.
        name: How budget.json begins it.
        n_bytes: Of n nodes, e interactions and d features.
    """

    op: str
    name: str
    n_bytes: Callable[[int, int, int], int]


def _rows(entry: Callable[[int], int], row: Callable[[int], int]) -> Callable[[int, int, int], int]:
    """A sum over rows: every interaction at both its ends, and each node's row."""
    return lambda n, e, d: 2 * e * entry(d) + n * row(d)


# An entry reads its neighbour (4), its values (4 each) and the neighbour's rows; a node its pointer
# (8), its own rows and its ridge (4), and writes one.
KERNELS = (
    Kernel(
        "`propagate`, a layer",
        "sum_rows<Propagation<float, int>, Layout<4, 16",
        _rows(lambda d: 4 * d + 4, lambda d: 8 * d + 12),
    ),
    Kernel(
        "`pointwise_gradient`",
        "sum_rows<Gradient<float, int>, Layout<4, 16",
        _rows(lambda d: 4 * d + 8, lambda d: 8 * d + 12),
    ),
    Kernel(
        "`pointwise_hvp`",
        "sum_rows<Product<float, float, int>, Layout<4, 16",
        _rows(lambda d: 8 * d + 12, lambda d: 12 * d + 12),
    ),
    Kernel(
        "`pointwise_hvp`, bfloat16",
        "sum_rows<Product<BFloat16, float, int>, Layout<8, 8",
        _rows(lambda d: 4 * d + 12, lambda d: 8 * d + 12),
    ),
    Kernel(
        "`pointwise_ggn`",
        "sum_rows<Product<float, float, int>, Layout<4, 16",
        _rows(lambda d: 8 * d + 8, lambda d: 12 * d + 12),
    ),
    Kernel(
        "`pointwise_derivatives`",
        "score_derivatives<float, int, 2, Layout<4, 16",
        lambda n, e, d: e * (8 * d + 24),
    ),
    # A triple per interaction: its user's row, then those of its two items.
    Kernel(
        "`pairwise_hvp`, users",
        "sum_rows<PairwiseUsers<float, int>, Layout<4, 16",
        lambda n, e, d: e * (16 * d + 20) + N_USERS * (12 * d + 12),
    ),
    Kernel(
        "`pairwise_hvp`, items",
        "sum_rows<PairwiseItems<float, int>, Layout<4, 16",
        lambda n, e, d: 2 * e * (8 * d + 20) + (n - N_USERS) * (8 * d + 12),
    ),
    Kernel(
        "`ggn_diagonal`",
        "sum_rows<Diagonal<float, int>, Layout<4, 16",
        _rows(lambda d: 4 * d + 8, lambda d: 4 * d + 12),
    ),
    Kernel("`dot`", "dot_chunks<float, 4", lambda n, e, d: 8 * n * d),
    Kernel("`cg_update`", "cg_update_chunks<float, 4", lambda n, e, d: 24 * n * d),
    Kernel("`cg_direction`", "cg_direction_chunks<float, 4", lambda n, e, d: 12 * n * d),
)


def kernels_text(budget: dict[str, Any]) -> str:
    """Markdown of the table, from csrc/kernels/cuda/budget.json."""
    head = "| op | kernel | registers | spills | 128-bit loads | occupancy "
    head += "| bytes per interaction | floor, ms |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for kernel in KERNELS:
        names = [name for name in budget if name.startswith(kernel.name)]
        if len(names) != 1:
            raise SystemExit(f"budget.json: expected one {kernel.name}, got {names}")
        usage = budget[names[0]]
        n_bytes = kernel.n_bytes(N_NODES, N_INTERACTIONS, DIM)
        lines.append(
            f"| {kernel.op} | `{names[0]}` | {usage['registers']} | 0 | {usage['loads128']} "
            f"| {usage['occupancy']:.0%} | {n_bytes / N_INTERACTIONS:,.0f} "
            f"| {1e3 * n_bytes / BYTES_PER_SECOND:.2f} |"
        )
    return "\n".join(lines)
