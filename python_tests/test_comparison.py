"""The solvers for comparison: against their own definitions, and behind conjugate gradients."""

from __future__ import annotations

import pytest
import torch
from dense import POSITIVE, spectrum

from ifru_ext import SolveReason, cg
from ifru_ext.comparison import adam, lissa


def test_lissa_sums_the_neumann_series():
    A, b = spectrum(POSITIVE["spread"])
    scale = 1100.0
    result = lissa(A, b, scale=scale, maxiter=7)
    step = torch.eye(40, dtype=torch.float64) - A.matrix / scale
    terms = [torch.linalg.matrix_power(step, k) @ b / scale for k in range(7)]
    torch.testing.assert_close(result.x, torch.stack(terms).sum(0))
    assert result.reason is SolveReason.MAXITER
    assert result.num_iters == result.num_matvecs == A.products == 7
    true = float((b - A.matrix @ result.x).norm())
    assert result.residual_norm == pytest.approx(true)


def test_lissa_converges_above_the_largest_eigenvalue_only():
    A, b = spectrum([1.0, 2.0, 4.0] * 5)
    result = lissa(A, b, scale=4.5, rtol=1e-8)
    assert result.converged
    torch.testing.assert_close(result.x, torch.linalg.solve(A.matrix, b), rtol=1e-6, atol=1e-8)
    assert result.num_iters > 10 * cg(A, b, rtol=1e-8).num_iters
    assert lissa(A, b, scale=1.9, maxiter=100_000).reason is SolveReason.NONFINITE


def test_adam_is_the_rule_on_the_quadratic():
    A, b = spectrum(POSITIVE["spread"])
    result = adam(A, b, lr=0.01, maxiter=12)
    # Kingma and Ba, algorithm 1.
    x, m, v = (torch.zeros_like(b) for _ in range(3))
    for t in range(1, 13):
        g = A.matrix @ x - b
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        x = x - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(result.x, x)
    assert not result.x.requires_grad
    assert len(result.history) == 13
    assert adam(A, b, lr=0.01, maxiter=12).history == result.history


def test_adam_stays_behind_cg():
    A, b = spectrum(POSITIVE["spread"])
    products = cg(A, b, rtol=1e-6).num_matvecs
    result = adam(A, b, lr=0.01, rtol=1e-6, maxiter=10 * products)
    assert not result.converged
    assert result.residual_norm > 1e-3 * result.rhs_norm


@pytest.mark.parametrize(
    "solve", [lambda *a, **o: adam(*a, lr=0.1, **o), lambda *a, **o: lissa(*a, scale=9.0, **o)]
)
def test_callbacks_zeros_and_bad_values(solve):
    A, b = spectrum([1.0, 2.0, 4.0] * 5)
    seen = []
    result = solve(A, b, rtol=1e-9, callback=lambda k, r: seen.append(r) or k == 3)
    assert result.reason is SolveReason.CANCELLED
    assert result.history[1:] == tuple(seen)
    assert solve(A, torch.zeros_like(b)).num_matvecs == 0
    assert solve(A, b / 0).reason is SolveReason.NONFINITE
    with pytest.raises(ValueError, match="b: expected a matrix of 15 elements"):
        solve(A, b[:2])
    with pytest.raises(ValueError, match="rtol: expected a finite number >= 0"):
        solve(A, b, rtol=-1.0)
    with pytest.raises(ValueError, match="lr: expected a positive number, got 0"):
        adam(A, b, lr=0.0)
    with pytest.raises(ValueError, match="scale: expected a positive number, got 0"):
        lissa(A, b, scale=0.0)
