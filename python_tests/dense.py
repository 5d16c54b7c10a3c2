"""Dense symmetric matrices as operators, with the spectra of the solvers' tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["INDEFINITE", "POSITIVE", "Dense", "spectrum", "vector_shape"]


@dataclass
class Dense:
    """A dense symmetric matrix as an operator on [n, 1]."""

    matrix: torch.Tensor
    products: int = 0

    @property
    def shape(self):
        return tuple(self.matrix.shape)

    @property
    def dtype(self):
        return self.matrix.dtype

    @property
    def device(self):
        return self.matrix.device

    def matvec(self, v):
        self.products += 1
        return self.matrix @ v


def spectrum(values, dtype=torch.float64, seed=0):
    """A dense operator with these eigenvalues, and a right-hand side."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    matrix = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    b = torch.randn(n, 1, generator=g, dtype=torch.float64)
    return Dense(matrix.to(dtype)), b.to(dtype)


def vector_shape(A):
    n_rows = len(A.ridge_inverse)
    return n_rows, A.shape[0] // n_rows


POSITIVE = {
    "identity": [1.0] * 20,
    "spread": torch.logspace(0, 3, 40).tolist(),
    "clusters": [1.0] * 15 + [50.0] * 15 + [900.0],
    "one": [4.0],
}

INDEFINITE = {
    "positive": POSITIVE["spread"],
    "symmetric": [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0],
    "saddle": [-0.5, -0.1, *POSITIVE["spread"]],
    "negative": [-1.0, -2.0, -70.0],
}
