"""Functions of operators against dense eigenvalues and eigenvectors."""

from __future__ import annotations

import pytest
import torch
from dense import INDEFINITE, POSITIVE, Dense, spectrum, vector_shape
from problems import make_problem

from ifru_ext import (
    GaussNewtonOperator,
    HessianOperator,
    SolveReason,
    cg,
    lanczos_apply,
    spectral_filter,
)

SPECTRA = {
    **POSITIVE,
    **INDEFINITE,
    "semidefinite": [0.0] * 10 + [1e-9, 1e-3] + torch.logspace(-2, 2, 20).tolist(),
    "zero": [0.0] * 6,
}


def dense_filter(matrix, b, time):
    """dx/dt = b - A x from 0 at a time, by the exponential of [[-A, b], [0, 0]]."""
    n = len(b)
    augmented = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    augmented[:n, :n], augmented[:n, n:] = -matrix.double(), b.double()
    return torch.linalg.matrix_exp(time * augmented)[:n, n:]


@pytest.mark.parametrize("time", [1e-3, 0.3, 1.5])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_the_filter_is_the_gradient_flow(dtype, rtol, values, time):
    if min(values) * time < -50:
        time = -50 / min(values)  # e^50 is enough of a growth
    A, b = spectrum(values, dtype)
    result = spectral_filter(A, b, time, 60)
    expected = dense_filter(A.matrix, b, time)
    assert float((result.x.double() - expected).norm()) <= rtol * float(expected.norm())
    assert result.num_matvecs == A.products <= len(values)
    assert result.x.dtype == dtype


@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)
def test_ritz_values_are_the_eigenvalues_in_the_end(values):
    A, b = spectrum(values)
    result = lanczos_apply(A, b, torch.sin, 100)
    assert result.converged
    expected = torch.linalg.eigvalsh(A.matrix)
    distinct = torch.tensor(sorted(set(values)), dtype=torch.float64)
    assert result.num_iters <= len(distinct) + 1
    scale = float(expected.abs().max())
    far = (result.ritz_values[:, None] - expected).abs().min(1).values
    assert float(far.max()) <= 1e-8 * scale


def test_steps_are_exact_for_polynomials_of_a_lower_degree():
    A, b = spectrum(INDEFINITE["saddle"])
    result = lanczos_apply(A, b, lambda c: 1 + 2 * c - c**3, 4)
    expected = b + 2 * A.matrix @ b - torch.linalg.matrix_power(A.matrix, 3) @ b
    torch.testing.assert_close(result.x, expected, rtol=1e-10, atol=0)
    assert result.reason is SolveReason.MAXITER
    assert not result.converged


def test_the_inverse_is_cg():
    A, b = spectrum(POSITIVE["spread"])
    for num_steps in (3, 10):
        expected = cg(A, b, rtol=0, maxiter=num_steps)
        torch.testing.assert_close(lanczos_apply(A, b, torch.reciprocal, num_steps).x, expected.x)


def test_the_change_estimates_the_error_and_can_stop():
    A, b = spectrum(POSITIVE["spread"])
    expected = dense_filter(A.matrix, b, 0.3)
    history = []
    result = spectral_filter(
        *(A, b, 0.3, 40), rtol=1e-4, callback=lambda k, change: history.append(change)
    )
    assert result.converged
    assert 3 < result.num_iters < 40
    assert len(history) == result.num_iters
    assert result.change <= 1e-4
    assert history[-1] == pytest.approx(result.change * float(result.x.norm()), rel=1e-6)
    assert float((result.x - expected).norm() / expected.norm()) < 1e-3
    cancelled = spectral_filter(A, b, 0.3, 40, callback=lambda k, change: k == 3)
    assert cancelled.reason is SolveReason.CANCELLED
    assert torch.equal(cancelled.x, spectral_filter(A, b, 0.3, 3).x)


@pytest.mark.parametrize("operator", [GaussNewtonOperator, HessianOperator])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_filter_of_an_objective(dtype, rtol, kind, operator):
    A = operator(*make_problem("isolated", kind=kind, dtype=dtype), damping=0.1)
    shape = vector_shape(A)
    n = A.shape[0]
    matrix = A.matvec(torch.eye(n, dtype=dtype).view(n, *shape)).view(n, n)
    b = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = spectral_filter(A, b, 0.7, 40)
    expected = dense_filter((matrix + matrix.T) / 2, b.view(n, 1), 0.7).view(shape)
    assert float((result.x.double() - expected).norm()) <= rtol * float(expected.norm())


def test_what_cannot_be_applied():
    A, b = spectrum(POSITIVE["spread"])
    assert not spectral_filter(A, torch.zeros_like(b), 1.0).x.any()
    assert spectral_filter(A, torch.zeros_like(b), 1.0).converged
    assert spectral_filter(A, b / 0.0, 1.0).reason is SolveReason.NONFINITE
    negative = Dense(-1e3 * torch.eye(3, dtype=torch.float64))
    grown = spectral_filter(negative, torch.ones(3, 1, dtype=torch.float64), 1.0)
    assert grown.reason is SolveReason.NONFINITE
    for options, text in (
        ({"time": 0.0}, "time: expected a positive number, got 0"),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"rtol": -1}, "rtol: expected a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=text):
            spectral_filter(A, b, **{"time": 1.0, **options})
    with pytest.raises(ValueError, match="b: expected a matrix of 40 elements"):
        spectral_filter(A, b[:3], 1.0)
    A.matrix[3, 3] = float("nan")
    assert spectral_filter(A, b, 1.0).reason is SolveReason.NONFINITE
