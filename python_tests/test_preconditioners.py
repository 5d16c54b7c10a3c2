"""Preconditioners against their dense definitions, and what they save."""

from __future__ import annotations

import pytest
import torch
from dense import vector_shape
from problems import make_problem

from ifru_ext import (
    BlockJacobiPreconditioner,
    GaussNewtonOperator,
    HessianOperator,
    JacobiPreconditioner,
    MatrixFactorization,
    NystromPreconditioner,
    SolveReason,
    cg,
    cg_batch,
    minres,
    row_jacobi,
)

OPERATORS = [GaussNewtonOperator, HessianOperator]
ROWS = [None, [0, 3, 4, 20], [5, 26]]


def dense(A):
    """The operator as a matrix of blocks [N, d, N, d]."""
    shape, n = vector_shape(A), A.shape[0]
    columns = A.matvec(torch.eye(n, dtype=A.dtype).view(n, *shape))
    return columns.view(*shape, *shape)


def applied(M, A):
    """The preconditioner as a matrix."""
    shape, n = vector_shape(A), A.shape[0]
    identity = torch.eye(n, dtype=A.dtype).view(n, *shape)
    return torch.stack([M(one) for one in identity]).view(n, n)


def make_operator(
    operator=GaussNewtonOperator, *, damping=0.1, rows=None, graph="isolated", **options
):
    return operator(*make_problem(graph, **options), damping=damping, rows=rows)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("graph", ["isolated", "duplicates"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_matrix_factorization_has_exact_blocks(operator, graph, rows):
    rows = None if rows is None else [r for r in rows if graph != "duplicates" or r < 11]
    A = make_operator(operator, graph=graph, rows=rows, weighted=True)
    blocks = torch.einsum("nanb->nab", dense(A))
    torch.testing.assert_close(A.diagonal_blocks(), blocks)
    torch.testing.assert_close(A.diagonal(), blocks.diagonal(dim1=1, dim2=2))
    M = applied(JacobiPreconditioner(A), A)
    torch.testing.assert_close(M, torch.diag(1 / A.diagonal().flatten()))
    torch.testing.assert_close(row_jacobi(A), 1 / A.diagonal().mean(1))
    M = applied(BlockJacobiPreconditioner(A), A)
    torch.testing.assert_close(M, torch.block_diag(*torch.linalg.inv(blocks)))
    assert torch.equal(M, M.T)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("scope", ["exact", "local"])
def test_lightgcn_scales_the_blocks_of_its_features(scope, rows):
    model, data, objective = make_problem("isolated", kind="lightgcn", n_layers=2)
    if rows is None:
        scope = "exact"
    A = GaussNewtonOperator(model, data, objective, damping=0.1, rows=rows, scope=scope)
    # The same curvatures without the propagation: matrix factorisation at the features.
    features = model.features().split([data.n_users, data.n_items])
    plain = GaussNewtonOperator(
        MatrixFactorization(*features), data, objective, damping=0.1, rows=rows
    )
    identity = torch.eye(model.dim, dtype=torch.float64)
    ridge = plain.ridge[:, None, None] * identity
    expected = (plain.diagonal_blocks() - ridge) / 9 + ridge
    torch.testing.assert_close(A.diagonal_blocks(), expected)
    torch.testing.assert_close(A.diagonal(), expected.diagonal(dim1=1, dim2=2))


def test_rows_that_are_gathered_have_the_same_blocks():
    problem = make_problem("power_law")
    some = torch.arange(0, 350, 2)
    every = GaussNewtonOperator(*problem, rows=torch.arange(350))
    whole = GaussNewtonOperator(*problem)
    gathered = GaussNewtonOperator(*problem, rows=some)
    assert torch.equal(every.diagonal_blocks(), whole.diagonal_blocks())
    assert torch.equal(gathered.diagonal_blocks(), whole.diagonal_blocks()[some])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("rows", [None, [0, 3, 4, 20]])
@pytest.mark.parametrize(
    "make",
    [
        JacobiPreconditioner,
        BlockJacobiPreconditioner,
        lambda A: NystromPreconditioner(A, 10),
        lambda A: NystromPreconditioner(A, A.shape[0]),
    ],
    ids=["jacobi", "block", "nystrom", "nystrom-full"],
)
def test_they_are_symmetric_and_positive_definite(make, rows, kind, dtype):
    A = make_operator(rows=rows, kind=kind, dtype=dtype, damping=0.0, l2=1e-3, l2_per_sample=0.0)
    M = applied(make(A), A).double()
    scale = float(M.abs().max())
    torch.testing.assert_close(M, M.T, rtol=0, atol=1e-5 * scale)
    assert float(torch.linalg.eigvalsh((M + M.T) / 2).min()) > 0
    b = torch.randn(vector_shape(A), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert cg(A, b, rtol=1e-2, M=make(A), maxiter=4000).reason is SolveReason.CONVERGED


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_nystrom_is_its_definition(rank):
    A = make_operator()
    n = A.shape[0]
    ridge = A.ridge.repeat_interleave(n // len(A.ridge))
    s = ridge.rsqrt()
    X = s[:, None] * (dense(A).reshape(n, n) - torch.diag(ridge)) * s
    g = torch.Generator().manual_seed(4)
    omega = torch.randn(rank, n, generator=g, dtype=torch.float64).T
    Y = X @ omega
    nystrom = Y @ torch.linalg.pinv(omega.T @ Y, hermitian=True) @ Y.T
    values, U = (part[..., -rank:] for part in torch.linalg.eigh((nystrom + nystrom.T) / 2))
    inner = (values[0] + 1) * U @ torch.diag(1 / (values + 1)) @ U.T
    expected = s[:, None] * (inner + torch.eye(n, dtype=torch.float64) - U @ U.T) * s
    M = NystromPreconditioner(A, rank, seed=4)
    torch.testing.assert_close(applied(M, A), expected, rtol=1e-6, atol=1e-8)
    other = applied(NystromPreconditioner(A, rank, seed=5), A)
    assert torch.allclose(other, expected, rtol=1e-3) == (rank == 1)  # of rank 1 nothing remains


def test_nystrom_of_full_rank_is_the_inverse():
    A = make_operator(graph="duplicates")
    n = A.shape[0]
    M = NystromPreconditioner(A, n)
    torch.testing.assert_close(
        applied(M, A), torch.linalg.inv(dense(A).reshape(n, n)), rtol=1e-6, atol=1e-9
    )
    b = torch.randn(vector_shape(A), dtype=torch.float64)
    assert cg(A, b, rtol=1e-8, M=M).num_iters <= 2


# Degrees that differ by a factor of hundreds, and a ridge that does not follow them.
SKEWED = {"graph": "power_law", "dim": 16, "dtype": torch.float32, "l2_per_sample": 0.0}


def iterations(A, *preconditioners):
    b = torch.randn(vector_shape(A), generator=torch.Generator().manual_seed(0))
    results = [cg(A, b, rtol=1e-4, M=M) for M in preconditioners]
    assert all(result.converged for result in results)
    return [result.num_iters for result in results]


@pytest.mark.parametrize("rows", [None, torch.arange(0, 350, 3)])
def test_what_they_save_on_matrix_factorization(rows):
    A = make_operator(**SKEWED, damping=0.0, l2=0.2, rows=rows)
    plain, by_row, jacobi, block = iterations(
        *(A, None, row_jacobi(A), JacobiPreconditioner(A), BlockJacobiPreconditioner(A))
    )
    assert by_row < 0.7 * plain
    assert jacobi < 0.7 * plain
    assert block < 0.9 * min(by_row, jacobi)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_what_nystrom_saves(kind):
    A = make_operator(**SKEWED, damping=0.0, l2=0.05, kind=kind)
    plain, some, more = iterations(
        *(A, None, NystromPreconditioner(A, 20), NystromPreconditioner(A, 100))
    )
    assert some < 0.8 * plain
    assert more < 0.8 * some


def test_all_solvers_take_them():
    A = make_operator()
    b = torch.randn(3, *vector_shape(A), dtype=torch.float64)
    for M in (JacobiPreconditioner(A), BlockJacobiPreconditioner(A), NystromPreconditioner(A, 5)):
        assert all(result.converged for result in cg_batch(A, b, rtol=1e-8, M=M))
        assert minres(A, b[0], rtol=1e-8, M=M).converged


def test_rows_without_anything_keep_their_scale():
    # Users 10.. and items 8.. have no interaction, and here no ridge either.
    A = make_operator(l2=0.0, damping=0.0, l2_per_sample=0.05)
    empty = A.diagonal().sum(1) == 0
    assert int(empty.sum()) >= 9
    r = torch.randn(vector_shape(A), dtype=torch.float64)
    for M in (JacobiPreconditioner(A), BlockJacobiPreconditioner(A), NystromPreconditioner(A, 5)):
        torch.testing.assert_close(M(r)[empty], r[empty])
    assert bool((row_jacobi(A)[empty] == 1).all())
    bare = make_operator(l2=0.0, damping=0.0, l2_per_sample=0.0)
    with pytest.raises(
        ValueError, match="operator: expected a ridge or a damping in every row with"
    ):
        BlockJacobiPreconditioner(bare)
    assert bool(torch.isfinite(JacobiPreconditioner(bare)(r)).all())


def test_what_nystrom_refuses():
    A = make_operator()
    for rank, text in (
        (0, "rank: expected at least 1, got 0"),
        (10**6, "rank: expected at most 216"),
    ):
        with pytest.raises(ValueError, match=text):
            NystromPreconditioner(A, rank)
