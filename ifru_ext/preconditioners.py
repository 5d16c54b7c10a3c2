"""Preconditioners of a curvature: what `cg`, `minres` and `steihaug` take as `M`.

For one solve take `row_jacobi`, or an operator's `ridge_inverse`: with one number per row they cost
an iteration nothing. What the others are worth on MovieLens-like data: benchmarks/NOTES.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ifru_ext.errors import InputError, as_integer
from ifru_ext.operators import CurvatureOperator
from ifru_ext.solvers import product_of

__all__ = [
    "BlockJacobiPreconditioner",
    "JacobiPreconditioner",
    "NystromPreconditioner",
    "row_jacobi",
]

# Numbers that are worked on in float64 at a time: 64 MiB of them.
_CHUNK = 1 << 23


def row_jacobi(operator: CurvatureOperator) -> Tensor:
    """[N]: one over the mean of each row's diagonal; fused into the updates of `cg`.

    Where degrees differ more than the ridge follows them. A row's features are seldom more unlike
    than chance, so it saves as many iterations as `JacobiPreconditioner`. Rows of zeros keep their
    scale.

    Args:
        operator: Of all rows or of some.
    """
    return _inverse(operator.diagonal().mean(1))


class JacobiPreconditioner:
    """The inverse of the operator's diagonal; equation (7). Memory: N d.

    Rows of zeros keep their scale. On LightGCN the diagonal is an approximation; there
    `ridge_inverse` does as well where the ridge grows with the degree.

    Args:
        operator: Of all rows or of some.
    """

    capturable = True

    def __init__(self, operator: CurvatureOperator) -> None:
        self._inverse = _inverse(operator.diagonal())

    def __call__(self, r: Tensor) -> Tensor:
        """M r; [N, d]."""
        return self._inverse * r


class BlockJacobiPreconditioner:
    """The inverses of the operator's diagonal blocks, one of d by d per row. Memory: N d^2.

    For matrix factorisation it is the inverse of what is left of the operator when users and items
    do not interact. They are inverted in float64, by Cholesky; rows of zeros keep their scale.

    Args:
        operator: Of all rows or of some.

    Raises:
        InputError: A row has curvature, but neither ridge nor damping: its block may be singular.
    """

    capturable = True

    def __init__(self, operator: CurvatureOperator) -> None:
        blocks = operator.diagonal_blocks()
        dim = blocks.shape[1]
        trace = blocks.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64)
        bare = (operator.ridge == 0) & (trace > 0)
        if bool(bare.any()):
            raise InputError(
                "operator: expected a ridge or a damping in every row with interactions, "
                f"got {int(bare.sum())} rows with neither"
            )
        eps = torch.finfo(blocks.dtype).eps
        identity = torch.eye(dim, dtype=torch.float64, device=blocks.device)
        # Rounding may take this much from a block's eigenvalues, and from its inverse's: with it
        # given back both are positive definite for certain.
        floor = torch.where(trace > 0, 4 * eps * trace, 1.0)[:, None, None]
        chunk = max(1, _CHUNK // dim**2)
        for part, lift in zip(blocks.split(chunk), floor.split(chunk), strict=True):
            factor = torch.linalg.cholesky(part.double() + lift * identity)
            inverse = torch.cholesky_inverse(factor)
            length = torch.linalg.matrix_norm(inverse)[:, None, None]
            part.copy_(inverse + eps * length * identity)
        self._inverse = blocks

    def __call__(self, r: Tensor) -> Tensor:
        """M r; [N, d]."""
        # A row from the left: several times faster on a CPU, and the blocks are symmetric.
        return torch.bmm(r[:, None], self._inverse)[:, 0]


class NystromPreconditioner:
    """Randomised Nystrom preconditioner: inverts the leading part of the curvature.

    From C's products with `rank` random vectors; Frangella, Tropp and Udell, Randomized Nystrom
    Preconditioning, SIAM J. Matrix Anal. Appl. 44 (2023), section 5. The operator is C + D with D
    its ridge, which need not be one number: the method is applied to D^-1/2 C D^-1/2 + I. It pays
    where few eigenvalues stand out, and for several right-hand sides. Memory: rank N d, three
    times that while it is made.

    Args:
        operator: With C positive semidefinite, as Gauss-Newton is: a Hessian's negative eigenvalues
            are taken for zeros.
        rank: Of the approximation, and products that it costs.
        seed: Of the random vectors.

    Raises:
        InputError: The rank is less than 1 or more than the number of unknowns.
    """

    capturable = True

    def __init__(self, operator: CurvatureOperator, rank: int = 20, *, seed: int = 0) -> None:
        rank = as_integer("rank", rank, 1)
        n, ridge = operator.shape[0], operator.ridge
        if rank > n:
            raise InputError(f"rank: expected at most {n}, the number of unknowns, got {rank}")
        self._scale = torch.where(ridge > 0, ridge.rsqrt(), 1.0)[:, None]
        g = torch.Generator().manual_seed(seed)
        shape = rank, ridge.shape[0], n // ridge.shape[0]
        with torch.inference_mode():
            omega = self._scale * torch.randn(shape, generator=g, dtype=ridge.dtype).to(ridge)
            sketch = torch.empty_like(omega)
            product_of(operator)(omega, sketch)
            sketch.addcmul_(ridge[:, None], omega, value=-1)  # C omega
            core = _gram(omega.view(rank, n), sketch.view(rank, n))
            sketch.mul_(self._scale)
            eigenvalues, vectors = _nystrom(core, sketch.view(rank, n))
        smallest = eigenvalues[-1] if len(eigenvalues) == rank else 0.0
        weight = 1 - (smallest + 1) / (eigenvalues + 1)
        # The vectors are orthonormal up to rounding: none of them may be counted more than whole.
        weight *= 1 - rank * torch.finfo(ridge.dtype).eps
        self._vectors, self._weight = vectors.clone(), weight.to(ridge)

    def __call__(self, r: Tensor) -> Tensor:
        """M r; [N, d]."""
        scaled = (self._scale * r).view(-1)
        along = self._weight * (self._vectors.T @ scaled)
        return self._scale * (scaled - self._vectors @ along).view(r.shape)


def _inverse(diagonal: Tensor) -> Tensor:
    return torch.where(diagonal > 0, diagonal.reciprocal(), 1.0)


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """[rank, rank] float64: X Y^T of [rank, n] each, accumulated in float64."""
    rank = x.shape[0]
    gram = torch.zeros(rank, rank, dtype=torch.float64, device=x.device)
    chunk = max(1, _CHUNK // rank)
    for a, b in zip(x.split(chunk, 1), y.split(chunk, 1), strict=True):
        gram += a.double() @ b.double().T
    return gram


def _nystrom(core: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r] float64, descending, and eigenvectors [n, r] of Y^T core^+ Y.

    Args:
        core: [rank, rank] float64, Omega X Omega^T with X positive semidefinite.
        sketch: [rank, n], Y = Omega X.
    """
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    # Below this the products' rounding is all there is.
    eps = torch.finfo(sketch.dtype).eps
    kept = values > sketch.shape[0] * eps * values.abs().max()
    half = vectors[:, kept] * values[kept].rsqrt()
    q, triangle = torch.linalg.qr(sketch.T @ half.to(sketch))
    u, singular, _ = torch.linalg.svd(triangle.double())
    return singular.square(), q @ u.to(q)
