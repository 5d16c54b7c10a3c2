"""The table of the CUDA kernels in gpu.md: what ptxas made of them, and what they have to move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ifru_ext import costs

__all__ = ["kernels_text"]

# Shape D of `ifru bench`.
N_USERS, N_NODES, N_INTERACTIONS, DIM = 1_000_000, 1_300_000, 5_000_000, 64


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


def _sizes(n: int, e: int, d: int, feature: int = 4) -> costs.Sizes:
    return costs.Sizes(N_USERS, n - N_USERS, e, d, feature=feature, gathers=True)


def _with_ridge(
    count: Callable[[costs.Sizes], costs.Traffic], feature: int = 4
) -> Callable[[int, int, int], int]:
    """As `ifru_ext.costs` counts it, and a ridge (4) that each node reads besides."""
    return lambda n, e, d: count(_sizes(n, e, d, feature)).n_bytes + 4 * n


def _rows(entry: Callable[[int], int], row: Callable[[int], int]) -> Callable[[int, int, int], int]:
    """A sum over rows: every interaction at both its ends, and each node's row."""
    return lambda n, e, d: 2 * e * entry(d) + n * row(d)


# An entry reads its neighbour (4), its values (4 each) and the neighbour's rows; a node its pointer
# (8), its own rows and its ridge (4), and writes one.
KERNELS = (
    Kernel(
        "`propagate`, a layer",
        "sum_rows<Propagation<float, int>, Layout<4, 16",
        _rows(lambda d: 4 * d + 4, lambda d: 8 * d + 12),  # without what comes before the first
    ),
    Kernel(
        "`pointwise_gradient`",
        "sum_rows<Gradient<float, int>, Layout<4, 16",
        _with_ridge(costs.gradient),
    ),
    Kernel(
        "`pointwise_hvp`",
        "sum_rows<Product<float, float, int>, Layout<4, 16",
        _with_ridge(costs.product),
    ),
    Kernel(
        "`pointwise_hvp`, bfloat16",
        "sum_rows<Product<BFloat16, float, int>, Layout<8, 8",
        _with_ridge(costs.product, feature=2),
    ),
    Kernel(
        "`pointwise_ggn`",
        "sum_rows<Product<float, float, int>, Layout<4, 16",
        _with_ridge(partial(costs.product, exact=False)),
    ),
    Kernel(
        "`pointwise_derivatives`",
        "score_derivatives<float, int, 2, Layout<4, 16",
        lambda n, e, d: costs.derivatives(_sizes(n, e, d)).n_bytes,
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
            f"| {1e3 * n_bytes / costs.H100.copy:.2f} |"
        )
    return "\n".join(lines)
