"""Operators on some rows: blocks of the full ones, at the cost of what the rows touch."""

from __future__ import annotations

import itertools

import pytest
import torch
from graphs import GRAPHS
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import make_problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ifru_ext import (
    BipartiteGraph,
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    LightGCN,
    MatrixFactorization,
    Objective,
    Pruning,
    cg,
    objective,
    steihaug,
    unlearn,
)
from ifru_ext.anchored import Anchor
from ifru_ext.linearization import GatheredLinearization, SlicedLinearization

RTOL = {torch.float32: 2e-5, torch.float64: 1e-12}
MODELS = [("mf", 0), ("lightgcn", 1), ("lightgcn", 2), ("lightgcn", 3)]
SHAPES = [*(g for g in GRAPHS if g != "empty"), "path"]
OPERATORS = (HessianOperator, GaussNewtonOperator)
OPTIONS = [
    {"loss": loss, "reduction": reduction, "weighted": weighted}
    for loss, reduction, weighted in itertools.product(
        ("bce", "mse"), ("sum", "mean"), (False, True)
    )
]
# What makes each form be taken, whatever the sizes.
FORMS = {SlicedLinearization: float("inf"), GatheredLinearization: -1.0}


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request, monkeypatch):
    monkeypatch.setattr(objective, "FULL_ABOVE", FORMS[request.param])
    return request.param


def some_rows(model):
    return torch.arange(1, model.n_nodes, max(5, model.n_nodes // 12))


def normal(*shape, seed=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def embedded(v, rows, n_nodes):
    full = torch.zeros(n_nodes, *v.shape[1:], dtype=v.dtype)
    full[rows] = v
    return full


def assert_rows(got, full, rows, dtype):
    """Rows of a float64 matrix, to the digits of the whole."""
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), full[rows], rtol=0, atol=RTOL[dtype] * max(1.0, float(full.abs().max()))
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("graph", SHAPES)
@pytest.mark.parametrize(("kind", "n_layers"), MODELS)
@pytest.mark.parametrize("dtype", RTOL)
def test_exact_restriction_is_a_block_of_the_full_operator(
    form, dtype, kind, n_layers, graph, options
):
    low, data, phi = make_problem(graph, kind=kind, n_layers=n_layers, dtype=dtype, **options)
    model, rows = low.to(torch.float64), some_rows(low)
    v, mu = normal(len(rows), 8, dtype=dtype), normal(len(rows)).abs()
    point = phi.linearize(low, data, rows)
    assert type(point) is form
    full_point = phi.linearize(model, data)
    assert_rows(point.gradient(), full_point.gradient(), rows, dtype)
    for operator in OPERATORS:
        whole = operator.at(full_point, embedded(mu, rows, model.n_nodes))
        block = operator.at(point, mu)
        assert block.shape == (v.numel(), v.numel())
        assert (block.dtype, block.device) == (dtype, v.device)
        assert_rows(block @ v, whole @ embedded(v.double(), rows, model.n_nodes), rows, dtype)
        assert_rows(block.ridge_inverse, whole.ridge_inverse, rows, dtype)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), min_size=1, max_size=40),
    chosen=st.sets(st.integers(0, 15), min_size=1),
    n_layers=st.integers(0, 3),
    seed=st.integers(0, 99),
    limit=st.sampled_from([-1.0, objective.FULL_ABOVE, float("inf")]),
)
@settings(max_examples=100, deadline=None)
def test_any_rows_of_any_graph(pairs, chosen, n_layers, seed, limit):
    user, item = torch.tensor(pairs).T
    label = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)).round()
    data = Interactions(user, item, label, n_users=9, n_items=7)
    graph = BipartiteGraph.from_interactions(data)
    alpha = normal(n_layers + 1, seed=seed).tolist()
    model = LightGCN(normal(9, 3), normal(7, 3, seed=6), n_layers, graph=graph, alpha=alpha)
    rows = torch.tensor(sorted(chosen))
    v = normal(len(rows), 3, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "FULL_ABOVE", limit)
        block = HessianOperator(model, data, Objective(l2=0.1), rows=rows)
    whole = HessianOperator(model, data, Objective(l2=0.1))
    assert_rows(block @ v, whole @ embedded(v, rows, 16), rows, torch.float64)


def dense_local_product(model, data, phi, rows, v, exact):
    """Scope "local" from dense matrices: walks among the rows only, all their interactions."""
    n, pairs = model.n_nodes, (data.user, data.item + data.n_users)
    inner, features = torch.eye(len(rows), dtype=torch.float64), model.embedding
    if isinstance(model, LightGCN):
        positive = data.label > 0.5
        a = torch.zeros(n, n, dtype=torch.float64)
        a.index_put_([p[positive] for p in pairs], torch.ones(1).double(), accumulate=True)
        a = a + a.T
        s = torch.where(a.sum(1) > 0, a.sum(1).rsqrt(), 0.0)
        normalised = s[:, None] * a * s
        block = normalised[rows][:, rows]
        weights = list(enumerate(model.alpha.tolist()))
        inner = sum(w * torch.linalg.matrix_power(block, k) for k, w in weights)
        features = sum(w * torch.linalg.matrix_power(normalised, k) for k, w in weights) @ features
    z, y = embedded(inner @ v, rows, n), torch.zeros(n, v.shape[1], dtype=torch.float64)
    for k, (u, i) in enumerate(zip(*(p.tolist() for p in pairs), strict=True)):
        f_u, f_i, label = features[u], features[i], data.label[k].double()
        score = f_u @ f_i
        residual, curvature = score - label, torch.ones(())
        if phi.to_json()["loss"] == "bce":
            sigma = torch.sigmoid(score)
            residual, curvature = sigma - label, sigma * (1 - sigma)
        delta = curvature * (z[u] @ f_i + f_u @ z[i])
        y[u] += delta * f_i + exact * residual * z[i]
        y[i] += delta * f_u + exact * residual * z[u]
    return inner @ y[rows] + phi.ridge(data)[rows, None] * v


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("graph", ["one_edge", "isolated", "duplicates", "path"])
@pytest.mark.parametrize(("kind", "n_layers"), MODELS)
def test_local_restriction_is_its_dense_definition(kind, n_layers, graph, loss):
    model, data, phi = make_problem(graph, kind=kind, n_layers=n_layers, dim=3, loss=loss)
    # Runs of rows, so that some walks stay among them and some leave.
    rows = torch.arange(model.n_nodes)
    rows = rows[rows % 5 < 3]
    v = normal(len(rows), 3)
    for operator in OPERATORS:
        got = operator(model, data, phi, rows=rows, scope="local") @ v
        expected = dense_local_product(model, data, phi, rows, v, operator is HessianOperator)
        assert_rows(got, expected, slice(None), torch.float64)
        if kind == "mf":
            exact = operator(model, data, phi, rows=rows, scope="exact") @ v
            assert_rows(exact, expected, slice(None), torch.float64)


@pytest.mark.parametrize("scope", ["exact", "local"])
@pytest.mark.parametrize(("kind", "n_layers"), MODELS)
def test_restrictions_are_symmetric_and_gauss_newton_semidefinite(form, kind, n_layers, scope):
    model, data, _ = make_problem("isolated", kind=kind, n_layers=n_layers, dim=2)
    rows = torch.arange(0, 27, 2)
    for operator in OPERATORS:
        restricted = operator(model, data, Objective(), rows=rows, scope=scope)
        basis = torch.eye(restricted.shape[0], dtype=torch.float64)
        matrix = torch.stack([(restricted @ e.view(-1, 2)).flatten() for e in basis])
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-13)
        if operator is GaussNewtonOperator:
            assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-13


class LargestResult(TorchDispatchMode):
    """The number of elements of the largest tensor that any op makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.detach.default:  # Tensor.numpy: the same memory
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.numel = max(self.numel, *sizes, 0)
        return out


@pytest.mark.parametrize("scope", ["exact", "local"])
@pytest.mark.parametrize(("kind", "n_layers"), MODELS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_cost_follows_what_the_rows_touch(kind, n_layers, scope, reduction):
    model, data, phi = make_problem(
        "path", kind=kind, n_layers=n_layers, dim=2, weighted=True, reduction=reduction
    )
    model.features(), phi.check(model, data), data.adjacency  # made once per model and data
    rows = torch.tensor([20, 450])
    reached = rows
    if kind == "lightgcn" and scope == "exact":
        reached = model.graph.adjacency.ball(rows, n_layers)
    n_entries = int(data.degrees()[reached].sum())
    with LargestResult() as largest:
        point = phi.linearize(model, data, rows, scope)
        point.gradient()
        for operator in OPERATORS:
            operator.at(point, 0.1) @ model.embedding[rows]
    assert point.part.neighbor.shape == point.residual.shape == (n_entries,)
    touched = n_entries + len(rows)  # nodes at most, of two features each
    assert largest.numel <= 2 * touched < min(len(data), model.n_nodes) // 5


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_a_request_on_a_factorisation_costs_what_it_touches(curvature):
    model, data, phi = make_problem("path", dim=2, weighted=True)
    phi.check(model, data), data.adjacency
    anchor = Anchor.of(model, data, phi)
    anchor.check(model), anchor.mean_damping  # both once per anchor
    request, pruning = Forget(users=[150], interactions=[3]), Pruning(1)
    options = {"objective": phi, "method": "influence", "curvature": curvature, "anchor": anchor}
    with LargestResult() as largest:
        result = unlearn(model, data, request, pruning=pruning, **options)
    n_rows = result.report.n_rows
    assert 0 < n_rows < 20
    # Fifteen vectors of its rows, of two features each, are the basis that the filter builds.
    assert largest.numel <= 30 * n_rows < min(len(data), model.n_nodes) // 2
    undone = result.undo()
    assert torch.equal(undone.embedding, model.embedding)


def test_the_form_is_chosen_by_the_entries_alone():
    model, data, phi = make_problem("path", kind="lightgcn", n_layers=3)
    assert type(phi.linearize(model, data, [5, 70, 400])) is SlicedLinearization
    assert type(phi.linearize(model, data, torch.arange(601))) is GatheredLinearization
    assert type(phi.linearize(model, data, torch.arange(601), "local")) is SlicedLinearization


@pytest.mark.parametrize("scope", ["exact", "local"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_solvers_work_on_some_rows(form, kind, scope):
    model, data, _ = make_problem("isolated", kind=kind, dim=3)
    rows = torch.arange(0, 27, 2)
    operator = HessianOperator(model, data, Objective(), damping=40.0, rows=rows, scope=scope)
    basis = torch.eye(operator.shape[0], dtype=torch.float64)
    matrix = torch.stack([(operator @ e.view(-1, 3)).flatten() for e in basis])
    b = normal(len(rows), 3)
    expected = torch.linalg.solve(matrix, b.flatten()).view_as(b)
    for result in (
        cg(operator, b, rtol=1e-12, M=operator.ridge_inverse),
        steihaug(operator, b, radius=1e3, rtol=1e-12),
    ):
        assert result.converged
        torch.testing.assert_close(result.x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("scope", ["exact", "local"])
def test_threads_give_the_same_bits(form, kind, scope):
    model, data, phi = make_problem("power_law", kind=kind, dim=32, dtype=torch.float32)
    rows = torch.arange(0, model.n_nodes, 3)
    v = normal(len(rows), 32, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            point = phi.linearize(model.with_embedding(model.embedding), data, rows, scope)
            results.append((point.gradient(), HessianOperator.at(point) @ v))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "rows: expected at least one node, got none"),
        ([3, 27], r"rows: expected ids in \[0, 27\), got 27 at position 1"),
        ([-1, 3], r"rows: expected ids in \[0, 27\), got -1 at position 0"),
        ([3, 5, 4], "rows: expected ascending distinct node ids, got 4 after 5 at position 2"),
        ([3, 3], "rows: expected ascending distinct node ids, got 3 after 3 at position 1"),
        ([0.5], "rows: expected integer ids, got float64"),
        ([[1, 2]], r"rows: expected one dimension, got shape \[1, 2\]"),
    ],
)
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_rows_that_are_refused(kind, rows, text):
    model, data, phi = make_problem(kind=kind)
    with pytest.raises(ValueError, match=rf"^{text}$"):
        HessianOperator(model, data, phi, rows=rows)


def test_other_arguments_that_are_refused():
    model, data, phi = make_problem()
    with pytest.raises(ValueError, match=r"^scope: expected one of \['exact', 'local'\], got 'x'$"):
        HessianOperator(model, data, phi, rows=[1], scope="x")
    operator = GaussNewtonOperator(model, data, phi, rows=[1, 2])
    with pytest.raises(ValueError, match=r"^v: expected shape \[2, 8\] or \[k, \.\.\.\] and torch"):
        operator.matvec(model.embedding)
    with pytest.raises(ValueError, match=r"^damping: expected a number or one per row \(\[2\]\)"):
        GaussNewtonOperator(model, data, phi, rows=[1, 2], damping=torch.ones(27))


def test_the_gradient_of_a_hub_keeps_its_digits(monkeypatch):
    # The hub alone reaches all of the data; the walk over its entries is asked for.
    monkeypatch.setattr(objective, "FULL_ABOVE", 2.0)
    n = 200_000
    g = torch.Generator().manual_seed(0)
    item = torch.zeros(n, dtype=torch.int64)
    data = Interactions(torch.arange(n), item, torch.ones(n), n_users=n, n_items=2)
    users, items = torch.rand(n, 4, generator=g), torch.rand(2, 4, generator=g)
    model = MatrixFactorization(users, items)
    point = Objective().linearize(model, data, rows=[n])
    assert isinstance(point, SlicedLinearization)
    exact = Objective().gradient(model.to(torch.float64), data)[n]
    for gradient in (point.gradient()[0], Objective().gradient(model, data)[n]):
        assert float((gradient - exact).norm() / exact.norm()) < 2e-5
