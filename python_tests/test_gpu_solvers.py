"""Conjugate gradients on a GPU: recorded as a CUDA graph; skipped where there is no device."""

from __future__ import annotations

import pytest
import torch

from ifru_ext import SolveReason, cg, cg_batch

pytestmark = pytest.mark.gpu


class Dense:
    """A dense symmetric matrix on the GPU as an operator on [n, 1]."""

    def __init__(self, values, *, capturable):
        g = torch.Generator().manual_seed(0)
        n = len(values)
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
        self.matrix = (q @ torch.diag(torch.as_tensor(values).double()) @ q.T).cuda()
        self.shape = n, n
        self.dtype, self.device = self.matrix.dtype, self.matrix.device
        self.capturable = capturable
        self.calls = 0

    def matvec(self, v):
        return self.matvec_into(v, torch.empty_like(v))

    def matvec_into(self, v, out):
        self.calls += 1
        return torch.matmul(self.matrix, v, out=out)


def right_hand_sides(n):
    return torch.randn(3, n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("preconditioned", ["none", "diagonal", "function"])
@pytest.mark.parametrize("n_systems", [1, 3])
def test_a_recorded_iteration_is_the_eager_one(n_systems, preconditioned):
    values = torch.logspace(0, 2, 60).tolist()
    inverse = torch.linspace(0.5, 2.0, 60, dtype=torch.float64).cuda()

    class Scaling:
        capturable = True

        def __call__(self, r):
            return inverse[:, None] * r

    M = {"none": None, "diagonal": inverse, "function": Scaling()}[preconditioned]
    b = right_hand_sides(60)[:n_systems].cuda()
    recorded, eager = (Dense(values, capturable=c) for c in (True, False))
    results, expected = (cg_batch(A, b, rtol=1e-9, M=M, check_every=5) for A in (recorded, eager))
    for one, other in zip(results, expected, strict=True):
        assert one.converged
        assert one.num_iters == other.num_iters > 10
        torch.testing.assert_close(one.x, other.x, rtol=1e-12, atol=1e-14)
        assert one.history == pytest.approx(other.history, rel=1e-9)
    # Replays do not come by the operator: five steps to the first look, then a step and a recording
    # for each set of systems, and each system's last check.
    assert recorded.calls <= 5 + 3 * n_systems < eager.calls / 2


def test_a_function_that_does_not_say_so_is_not_recorded():
    A = Dense(torch.logspace(0, 2, 60).tolist(), capturable=True)
    b = right_hand_sides(60)[0].cuda()
    result = cg(A, b, rtol=1e-9, M=lambda r: 2.0 * r)
    assert A.calls == result.num_matvecs > 10


def test_negative_curvature_is_met_within_a_recording():
    A = Dense([*torch.logspace(0, 2, 30).tolist(), -5.0], capturable=True)
    b = right_hand_sides(31)[0].cuda()
    result = cg(A, b, rtol=1e-12, check_every=20)
    assert result.reason is SolveReason.NEGATIVE_CURVATURE
    looked_at = cg(A, b, rtol=1e-12, check_every=1)
    assert result.num_iters == looked_at.num_iters
    torch.testing.assert_close(result.x, looked_at.x, rtol=1e-12, atol=1e-14)
