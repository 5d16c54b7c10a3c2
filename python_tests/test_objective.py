"""Value, gradient, Hessian and Gauss-Newton products against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from graphs import GRAPHS
from problems import autograd_objective, make_problem

import ifru_ext.objective
from ifru_ext import (
    BipartiteGraph,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    LightGCN,
    MatrixFactorization,
    Objective,
)
from ifru_ext.interactions import Omitted

RTOL = {torch.float32: 1e-5, torch.float64: 1e-10}
MODELS = [("mf", 0), ("lightgcn", 1), ("lightgcn", 2), ("lightgcn", 3)]
# "empty" has no interaction and hence no objective.
FILLED = [g for g in GRAPHS if g != "empty"]


def relative_error(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


def exact(model, data, objective, v=None):
    """(value, gradient, Hessian product) by autograd in float64."""
    e = model.embedding.double().clone().requires_grad_()
    value = autograd_objective(model, data, objective, e)
    (gradient,) = torch.autograd.grad(value, e, create_graph=True)
    product = None
    if v is not None:
        (product,) = torch.autograd.grad((gradient * v).sum(), e)
    return float(value.detach()), gradient.detach(), product


def direction(model, seed=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(model.embedding.shape, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("graph", FILLED)
@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100])
@pytest.mark.parametrize(("kind", "n_layers"), MODELS)
@pytest.mark.parametrize("dtype", RTOL)
def test_hessian_operator_matches_double_backward(dtype, kind, n_layers, dim, graph):
    model, data, objective = make_problem(
        graph, kind=kind, n_layers=n_layers, dim=dim, dtype=torch.float64
    )
    # The float32 operator is compared at its own, rounded point.
    model = model.to(dtype).to(torch.float64)
    v = direction(model).to(dtype).double()
    value, gradient, product = exact(model, data, objective, v)
    low = model.to(dtype)
    assert (
        relative_error(HessianOperator(low, data, objective).matvec(v.to(dtype)), product)
        < RTOL[dtype]
    )
    assert relative_error(objective.gradient(low, data), gradient) < RTOL[dtype]
    assert objective.value(low, data) == pytest.approx(value, rel=RTOL[dtype])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"loss": "mse", "weighted": True},
        {"weighted": True},
        {"reduction": "mean"},
        {"reduction": "mean", "weighted": True, "loss": "mse"},
        {"l2": 0.0, "l2_per_sample": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_every_option_of_the_objective(kind, options):
    model, data, objective = make_problem("duplicates", kind=kind, **options)
    v = direction(model)
    value, gradient, product = exact(model, data, objective, v)
    assert objective.value(model, data) == pytest.approx(value, rel=1e-12)
    assert relative_error(objective.gradient(model, data), gradient) < 1e-12
    assert relative_error(HessianOperator(model, data, objective) @ v, product) < 1e-12


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_gauss_newton_is_the_hessian_without_residuals(kind, loss):
    # J^T W J with the Jacobian of the scores by autograd.
    model, data, objective = make_problem("isolated", kind=kind, dim=3, loss=loss)

    def scores(e):
        f = model.propagate(torch.eye(model.n_nodes, dtype=torch.float64)) @ e
        return (f[data.user] * f[data.item + data.n_users]).sum(1)

    e = model.embedding
    jacobian = torch.func.jacrev(scores)(e).flatten(1)
    s = scores(e)
    w = torch.sigmoid(s) * torch.sigmoid(-s) if loss == "bce" else torch.ones_like(s)
    v = direction(model)
    ridge = objective.ridge(data)[:, None]
    expected = (jacobian.T @ (w * (jacobian @ v.flatten()))).view_as(v) + ridge * v
    operator = GaussNewtonOperator(model, data, objective)
    assert relative_error(operator.matvec(v), expected) < 1e-12
    assert float((v * operator.matvec(v)).sum()) > 0


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_damping_is_added_to_the_diagonal(kind):
    model, data, objective = make_problem(kind=kind)
    v = direction(model)
    mu = torch.rand(model.n_nodes, dtype=torch.float64)
    plain = HessianOperator(model, data, objective).matvec(v)
    assert (
        relative_error(
            HessianOperator(model, data, objective, damping=mu) @ v - plain, mu[:, None] * v
        )
        < 1e-9
    )
    assert (
        relative_error(HessianOperator(model, data, objective, damping=2.0) @ v - plain, 2 * v)
        < 1e-9
    )
    for bad in (-5.0, float("nan"), -mu):
        with pytest.raises(ValueError, match="damping: expected finite numbers >= 0"):
            HessianOperator(model, data, objective, damping=bad)
    for bad in (torch.ones(3), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="damping: expected a number or one per row"):
            HessianOperator(model, data, objective, damping=bad)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_give_the_same_bits(kind, dtype):
    model, data, objective = make_problem("power_law", kind=kind, dim=32, dtype=dtype)
    v = direction(model).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fresh = model.with_embedding(model.embedding)
            results.append(HessianOperator(fresh, data, objective).matvec(v))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_gradient_matches_finite_differences():
    model, data, objective = make_problem(kind="lightgcn", dim=4)
    v = direction(model)
    h = 1e-5
    ahead, behind = (
        objective.value(model.with_embedding(model.embedding + step * v), data) for step in (h, -h)
    )
    slope = float((objective.gradient(model, data) * v).sum())
    assert (ahead - behind) / (2 * h) == pytest.approx(slope, rel=1e-7)


def test_loss_names():
    with pytest.raises(
        ValueError, match=r"loss: expected one of \['bce', 'bpr', 'mse'\], got 'nll'"
    ):
        Objective(loss="nll")
    with pytest.raises(ValueError, match="l2: expected a finite number >= 0, got -1"):
        Objective(l2=-1)
    with pytest.raises(ValueError, match="l2_per_sample: expected a finite number >= 0, got nan"):
        Objective(l2_per_sample=float("nan"))
    with pytest.raises(ValueError, match="l2: expected a finite number >= 0, got '1'"):
        Objective(l2="1")
    with pytest.raises(ValueError, match="reduction: expected 'sum' or 'mean', got 'max'"):
        Objective(reduction="max")
    assert Objective(**Objective(loss="mse", l2=2).to_json()) == Objective(loss="mse", l2=2)


def test_labels_must_fit_the_loss():
    model, data, objective = make_problem()
    rated = data.with_labels(torch.full((len(data),), 5.0))
    with pytest.raises(
        ValueError, match=r"label: expected values in \[0, 1\] for loss 'bce', got 5 in row 0"
    ):
        objective.value(model, rated)
    assert Objective(loss="mse").value(model, rated) > 0
    assert rated.first_label_outside_unit == 0
    assert data.first_label_outside_unit is None
    assert data.subset([]).first_label_outside_unit is None


def test_sizes_must_agree():
    model, data, objective = make_problem()
    other = Interactions(data.user, data.item, data.label, n_users=99, n_items=data.n_items)
    with pytest.raises(
        ValueError, match="data: expected 15 users and 12 items as in the model, got 99"
    ):
        HessianOperator(model, other, objective)
    with pytest.raises(ValueError, match="data: expected at least one interaction, got none"):
        objective.value(model, data.subset(torch.zeros(len(data), dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"v: expected shape \[27, 8\]"):
        HessianOperator(model, data, objective).matvec(torch.zeros(3, 8, dtype=torch.float64))


def test_models_refuse_what_they_cannot_use():
    user, item = torch.zeros(3, 4), torch.zeros(2, 4)
    user[1, 2] = float("nan")
    with pytest.raises(
        ValueError, match="user_embedding: expected finite values, got NaN or infinity in row 1"
    ):
        MatrixFactorization(user, item)
    with pytest.raises(ValueError, match="item_embedding: expected the width and dtype"):
        MatrixFactorization(torch.zeros(3, 4), torch.zeros(2, 5))
    with pytest.raises(
        ValueError, match=r"user_embedding: expected float32 or float64, got torch\.int64"
    ):
        MatrixFactorization(torch.zeros(3, 4).long(), item)
    with pytest.raises(ValueError, match=r"user_embedding: expected shape \[rows, d\], got \[4\]"):
        MatrixFactorization(torch.zeros(4), item)
    data = Interactions([0, 1], [0, 1], n_users=3, n_items=2)
    graph = BipartiteGraph.from_interactions(data)
    with pytest.raises(ValueError, match="graph: expected 5 users and 2 items"):
        LightGCN(torch.zeros(5, 4), item, graph=graph)
    with pytest.raises(ValueError, match="alpha: expected 3 weights for 2 layers, got 1"):
        LightGCN(torch.zeros(3, 4), item, 2, graph=graph, alpha=[1.0])
    with pytest.raises(ValueError, match="n_layers: expected at least 0, got -1"):
        LightGCN(torch.zeros(3, 4), item, -1, graph=graph)
    model = MatrixFactorization(torch.zeros(3, 4), item)
    with pytest.raises(ValueError, match=r"embedding: expected shape \[5, 4\], got \[1, 4\]"):
        model.with_embedding(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"item: expected ids in \[0, 2\), got 2 at position 1"):
        model.scores(torch.tensor([0, 0]), torch.tensor([0, 2]))


def test_numpy_embeddings_are_accepted():
    model = MatrixFactorization(torch.ones(2, 3).numpy(), torch.ones(1, 3).numpy())
    assert model.scores(torch.tensor([0, 1]), torch.tensor([0, 0])).tolist() == [3.0, 3.0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_omitted_rows_are_left_out(kind, weighted, reduction):
    model, data, objective = make_problem(kind=kind, weighted=weighted, reduction=reduction)
    kept = torch.arange(len(data)) % 3 != 1
    expected = objective.linearize(model, data.subset(kept))
    got = objective.linearize(model, data, omitted=Omitted.of(data, kept))
    v = direction(model)
    assert got.value == pytest.approx(expected.value, rel=1e-12)
    assert torch.equal(got.degree, expected.degree)
    assert relative_error(got.gradient(), expected.gradient()) < 1e-12
    assert relative_error(HessianOperator.at(got) @ v, HessianOperator.at(expected) @ v) < 1e-12


@pytest.mark.parametrize("form", [float("inf"), -1.0], ids=["sliced", "gathered"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_the_value_of_some_rows_changes_as_the_whole(monkeypatch, form, kind):
    monkeypatch.setattr(ifru_ext.objective, "FULL_ABOVE", form)
    model, data, objective = make_problem("path", kind=kind)
    kept = torch.arange(len(data)) % 3 != 1
    rows = torch.arange(5, 60, 7)
    change = torch.zeros_like(model.embedding)
    change[rows] = direction(model)[rows]
    moved = model.with_embedding(model.embedding + change)
    whole, some = (
        objective.linearize(moved, data, *s, omitted=Omitted.of(data, kept)).value
        - objective.linearize(model, data, *s, omitted=Omitted.of(data, kept)).value
        for s in ((), (rows,))
    )
    assert some == pytest.approx(whole, rel=1e-10)


def pairwise_objective(model, data, objective, embedding):
    """Phi of equation (4) with the loss of equation (3), row by row; differentiable, float64."""
    f = embedding
    if isinstance(model, LightGCN):
        f = model.propagate(torch.eye(model.n_nodes, dtype=torch.float64)) @ embedding
    value, degree = torch.zeros((), dtype=torch.float64), torch.zeros(data.n_nodes)
    weight = torch.ones(len(data)) if data.weight is None else data.weight
    for row in range(len(data)):
        user, item = int(data.user[row]), int(data.item[row]) + data.n_users
        for negative in (data.negative[row] + data.n_users).tolist():
            score = f[user] @ (f[item] - f[negative])
            value = value + weight[row].double() * torch.nn.functional.softplus(-score)
            degree[[user, item]] += 1
            degree[negative] += 1
    ridge = objective.l2 + objective.l2_per_sample * degree.double()
    value = value + (ridge * embedding.square().sum(1)).sum() / 2
    scale = len(data) * data.n_negatives if objective.reduction == "mean" else 1
    return value / scale


def make_pairwise(kind, *, weighted=False, **options):
    model, data, objective = make_problem("isolated", kind=kind, loss="bpr", **options)
    data = Interactions(
        *(data.user, data.item),
        n_users=data.n_users,
        n_items=data.n_items,
        weight=torch.rand(len(data)) if weighted else None,
    ).with_negatives(2, seed=1)
    if kind == "lightgcn":
        model = model.with_graph(BipartiteGraph.from_interactions(data))
    return model, data, objective


@pytest.mark.parametrize("omit", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_the_pairwise_objective_matches_autograd(kind, weighted, reduction, omit):
    model, data, objective = make_pairwise(kind, weighted=weighted, reduction=reduction)
    kept = torch.arange(len(data)) % 3 != 1 if omit else torch.ones(len(data), dtype=torch.bool)
    omitted = Omitted.of(data, kept) if omit else None
    e = model.embedding.clone().requires_grad_()
    value = pairwise_objective(model, data.subset(kept), objective, e)
    (gradient,) = torch.autograd.grad(value, e, create_graph=True)
    v = direction(model)
    (product,) = torch.autograd.grad((gradient * v).sum(), e)
    point = objective.linearize(model, data, omitted=omitted)
    assert point.value == pytest.approx(float(value.detach()), rel=1e-12)
    assert relative_error(point.gradient(), gradient.detach()) < 1e-12
    assert relative_error(HessianOperator.at(point) @ v, product) < 1e-12
    # The Gauss-Newton product, and some rows of both.
    assert float((v * (GaussNewtonOperator.at(point) @ v)).sum()) > 0
    rows = torch.arange(1, model.n_nodes, 4)
    part = torch.zeros_like(v)
    part[rows] = v[rows]
    (product,) = torch.autograd.grad(
        (
            torch.autograd.grad(
                pairwise_objective(model, data.subset(kept), objective, e), e, create_graph=True
            )[0]
            * part
        ).sum(),
        e,
    )
    some = objective.linearize(model, data, rows, omitted=omitted)
    assert relative_error(HessianOperator.at(some) @ v[rows], product[rows]) < 1e-12


@pytest.mark.parametrize("form", [float("inf"), -1.0, "all"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_a_linearisation_moves_to_other_embeddings(monkeypatch, loss, kind, form):
    if form != "all":
        monkeypatch.setattr(ifru_ext.objective, "FULL_ABOVE", form)
    maker = make_pairwise if loss == "bpr" else make_problem
    model, data, objective = maker(kind=kind)
    rows = () if form == "all" else (torch.arange(1, model.n_nodes, 4),)
    moved = model.with_embedding(model.embedding + direction(model))
    got = objective.linearize(model, data, *rows).at(moved)
    expected = objective.linearize(moved, data, *rows)
    assert got.value == expected.value
    assert torch.equal(got.gradient(), expected.gradient())


def test_what_a_pairwise_loss_asks_of_the_data():
    model, data, objective = make_problem(loss="bpr")
    with pytest.raises(ValueError, match="data: expected a negative item in each row"):
        objective.check(model, data)
    with pytest.raises(ValueError, match="label: expected positive rows alone for loss 'bpr'"):
        objective.check(model, data.with_negatives())
    model, data, objective = make_pairwise("mf", dtype=torch.float32)
    with pytest.raises(ValueError, match="storage: expected None for loss 'bpr'"):
        HessianOperator(model, data, objective, storage=torch.bfloat16)
    with pytest.raises(ValueError, match="scope: expected 'exact' for loss 'bpr', got 'local'"):
        HessianOperator(*make_pairwise("lightgcn"), rows=torch.arange(3), scope="local")


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_several_vectors_of_a_pairwise_loss(kind):
    model, data, objective = make_pairwise(kind)
    operator = HessianOperator(model, data, objective)
    v = torch.stack([direction(model, 1), direction(model, 2)])
    assert torch.equal(operator @ v, torch.stack([operator @ one for one in v]))
