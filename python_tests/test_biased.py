"""Matrix factorisation with biases: frozen coordinates stay, and the rest is autograd's."""

from __future__ import annotations

import functools

import pytest
import torch
from graphs import make_pairs

from ifru_ext import (
    BiasedMatrixFactorization,
    BlockJacobiPreconditioner,
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    JacobiPreconditioner,
    NystromPreconditioner,
    Objective,
    cg,
    influence,
    polish,
    unlearn,
)
from ifru_ext.anchored import implied_ridge, stopping_times

DIM = 4
EXACT = {"rtol": 1e-9, "atol": 1e-10}
LOSSES = ("bce", "mse", "bpr")


def make_biased(loss, *, biases=(True, True), dtype=torch.float64, scale=0.5):
    user, item, n_users, n_items = make_pairs("isolated")
    g = torch.Generator().manual_seed(5)
    label = (torch.rand(len(user), generator=g) < 0.6).float()
    weight = torch.rand(len(user), generator=g)
    sizes = {"n_users": n_users, "n_items": n_items}
    data = Interactions(user, item, None if loss == "bpr" else label, weight=weight, **sizes)
    if loss == "bpr":
        data = data.with_negatives(2)
    p, q, b, c = (
        (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)
        for shape in ((n_users, DIM), (n_items, DIM), (n_users,), (n_items, 1))
    )
    b, c = (bias if kept else None for bias, kept in zip((b, c), biases, strict=True))
    model = BiasedMatrixFactorization(p, q, b, c, global_bias=0.7)
    return model, data, Objective(loss, l2=0.3, l2_per_sample=0.05)


def free_parameters(model):
    """p, q, b_u, b_i, as they stand in the model."""
    return [
        x.detach().clone()
        for x in (model.user_factors, model.item_factors, model.user_bias, model.item_bias)
    ]


def phi(data, objective, p, q, b, c, mu):
    """Equation (4) on score = mu + b_u + b_i + <p_u, q_i>, in torch's own losses."""

    def score(user, item):
        return mu + b[user] + c[item] + (p[user] * q[item]).sum(1)

    loss = objective.to_json()["loss"]
    weight = data.weight.double()
    if loss == "bpr":
        k = data.n_negatives
        user, item = (x.repeat_interleave(k) for x in (data.user, data.item))
        margin = score(user, item) - score(user, data.negative.flatten())
        value = torch.nn.functional.softplus(-margin) * weight.repeat_interleave(k)
        ends = user, torch.cat([item, data.negative.flatten()])
    else:
        s, y = score(data.user, data.item), data.label.double()
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        value = weight * (bce(s, y, reduction="none") if loss == "bce" else (s - y).square() / 2)
        ends = data.user, data.item
    total = value.sum()
    for end, rows, bias in zip(ends, (p, q), (b, c), strict=True):
        ridge = (
            objective.l2
            + objective.l2_per_sample * torch.bincount(end, minlength=len(rows)).double()
        )
        total = total + (ridge * (rows.square().sum(1) + bias.square())).sum() / 2
    return total


def embedded(p, q, b, c):
    """[N, d + 3]: what belongs to these parameters, zero in the frozen coordinates."""
    (n, _), (m, _) = p.shape, q.shape
    user = torch.cat([p, b[:, None], p.new_zeros(n, 2)], 1)
    item = torch.cat([q, q.new_zeros(m, 1), c[:, None], q.new_zeros(m, 1)], 1)
    return torch.cat([user, item])


def tangent(model, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in free_parameters(model)]


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_gradient_and_products_are_autograds(loss):
    model, data, objective = make_biased(loss)
    expected = (
        0.7
        + model.user_bias[data.user]
        + model.item_bias[data.item]
        + (model.user_factors[data.user] * model.item_factors[data.item]).sum(1)
    )
    torch.testing.assert_close(model.scores(data.user, data.item), expected, **EXACT)

    value, (gradient, product) = functional_derivatives(model, data, objective)
    assert objective.value(model, data) == pytest.approx(float(value), rel=1e-12)
    got = objective.gradient(model, data)
    torch.testing.assert_close(got, embedded(*gradient), **EXACT)
    v = embedded(*tangent(model))
    hessian = HessianOperator(model, data, objective)
    torch.testing.assert_close(hessian.matvec(v), embedded(*product), **EXACT)


def functional_derivatives(model, data, objective):
    parameters = [x.requires_grad_() for x in free_parameters(model)]
    value = phi(data, objective, *parameters, model.global_bias)
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradient, tangent(model), strict=True))
    product = torch.autograd.grad(along, parameters)
    return value.detach(), ([g.detach() for g in gradient], product)


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_form_of_the_product_is_the_same(loss, operator):
    model, data, objective = make_biased(loss)
    full = operator(model, data, objective, damping=0.2)
    n, d = model.embedding.shape
    basis = torch.eye(n * d, dtype=torch.float64).view(-1, n, d)
    matrix = full.matvec(basis).view(n * d, n * d)
    torch.testing.assert_close(matrix, matrix.T, **EXACT)
    frozen = model.frozen().flatten()
    assert not bool(matrix[frozen][:, ~frozen].any())
    ridge = full.ridge[:, None].expand(n, d).flatten()
    torch.testing.assert_close(matrix[frozen][:, frozen], torch.diag(ridge[frozen]), **EXACT)
    if operator is GaussNewtonOperator:
        torch.testing.assert_close(full.diagonal().flatten(), matrix.diagonal(), **EXACT)
        own = torch.stack([matrix.view(n, d, n, d)[k, :, k] for k in range(n)])
        torch.testing.assert_close(full.diagonal_blocks(), own, **EXACT)
    for rows in (torch.tensor([0, n - 1]), torch.arange(0, n, 2)):
        some = operator(model, data, objective, damping=0.2, rows=rows)
        v = torch.randn(len(rows), d, dtype=torch.float64)
        scattered = torch.zeros(n, d, dtype=torch.float64).index_copy(0, rows, v)
        torch.testing.assert_close(some.matvec(v), full.matvec(scattered)[rows], **EXACT)
        torch.testing.assert_close(some.diagonal(), full.diagonal()[rows], **EXACT)
        point = objective.linearize(model, data, rows)
        torch.testing.assert_close(point.gradient(), objective.gradient(model, data)[rows], **EXACT)


@pytest.mark.parametrize(
    "make",
    [
        JacobiPreconditioner,
        BlockJacobiPreconditioner,
        functools.partial(NystromPreconditioner, rank=10),
    ],
    ids=["jacobi", "blocks", "nystrom"],
)
def test_preconditioned_solves_stay_among_the_free(make):
    model, data, objective = make_biased("bce")
    operator = GaussNewtonOperator(model, data, objective)
    b = objective.gradient(model, data)
    solve = cg(operator, b, rtol=1e-10, M=make(operator))
    assert solve.converged
    assert solve.x[model.frozen()].abs().max() < 1e-20
    torch.testing.assert_close(operator.matvec(solve.x), b, rtol=1e-7, atol=1e-8)


def stationary(loss, biases=(True, True)):
    model, data, _ = make_biased(loss, biases=biases, scale=0.3)
    objective = Objective(loss, l2=0.8, l2_per_sample=0.1)
    model, result = polish(model, data, objective, rtol=1e-10)
    assert result.converged
    return model, data, objective


@pytest.mark.parametrize("biases", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("loss", LOSSES)
def test_unlearned_is_retrained(loss, biases):
    model, data, objective = stationary(loss, biases)
    request = Forget(users=[int(data.user[0])], interactions=[3, 4])
    result = unlearn(
        model, data, request, objective=objective, method="newton", rtol=1e-9, erase="mean"
    )
    frozen = model.frozen()
    assert torch.equal(result.model.embedding[frozen], model.embedding[frozen])
    assert isinstance(result.model, BiasedMatrixFactorization)

    retained = result.retained
    degree = objective.degrees(retained)
    start = model.embedding.clone()
    gone = (degree == 0) & (objective.degrees(data) > 0)
    start[gone] = result.model.embedding[gone]
    again, _ = polish(model.with_embedding(start), retained, objective, rtol=1e-11)
    # Scores, of all pairs with data: a rotation of the factors changes nothing.
    users, items = (~gone & (degree > 0)).split([model.n_users, model.n_items])
    got, expected, before = (
        m.user_embedding[users] @ m.item_embedding[items].T for m in (result.model, again, model)
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    assert (expected - before).abs().max() > 1e-2
    assert torch.equal(result.undo().embedding, model.embedding)


def test_erased_rows_keep_their_constants_alone():
    model, data, objective = stationary("bce")
    user = int(data.user[0])
    new = unlearn(model, data, Forget(users=[user]), objective=objective).model
    assert new.embedding[user].tolist() == [0.0] * (DIM + 1) + [1.0, model.global_bias]
    item = torch.arange(model.n_items)
    torch.testing.assert_close(
        new.scores(torch.full_like(item, user), item), new.global_bias + new.item_bias
    )


def test_requests_in_a_row_end_where_one_does():
    model, data, _ = make_biased("mse", scale=0.3)
    objective = Objective("mse", l2=0.8, l2_per_sample=0.1)
    model, _ = polish(model, data, objective, rtol=3e-2)
    options = {"objective": objective, "method": "newton", "rtol": 1e-9, "damping": 0.1}
    first = unlearn(model, data, Forget(interactions=[0, 1]), **options)
    options.pop("damping")
    second = unlearn(
        first.model, first.retained, Forget(interactions=[0]), anchor=first.anchor, **options
    )
    both = unlearn(model, data, Forget(interactions=[0, 1, 2]), damping=0.1, **options)
    torch.testing.assert_close(second.model.embedding, both.model.embedding, rtol=1e-6, atol=1e-7)
    frozen = model.frozen()
    assert torch.equal(second.model.embedding[frozen], model.embedding[frozen])


def test_what_is_read_off_a_model_does_not_count_the_constants():
    model, data, objective = make_biased("bce")
    point = objective.linearize(model, data)
    gradient, own = point.gradient(), model.free(model.embedding)
    n, d = own.shape
    none = torch.zeros(n, dtype=torch.float64)
    diagonal = none - point.ridge
    blocks = GaussNewtonOperator(model, data, objective).diagonal_blocks()
    blocks += torch.diag_embed(diagonal[:, None].expand(n, d))
    curved = torch.einsum("nd,nde,ne->n", own, blocks, own) + point.ridge * own.square().sum(1)
    group = torch.frexp(point.degree.double()).exponent

    def pooled(x):
        total = torch.zeros_like(x)
        for k in group.unique():
            at = group == k
            total[at] = x[at].sum() / own[at].square().sum()
        return torch.where(point.degree > 0, total, 0.0)

    mu = implied_ridge(point)
    torch.testing.assert_close(mu, pooled(-(gradient * own).sum(1)).clamp_min(0), **EXACT)
    c = pooled(curved)
    floor = torch.maximum(mu, 0.01 * c)
    expected = torch.where(c > 0, torch.log1p(c / floor) / c, 0.0)
    torch.testing.assert_close(stopping_times(point, mu), expected, **EXACT)


@pytest.mark.parametrize("solver", ["filter", "cg"])
def test_a_model_stopped_early_keeps_its_constants(solver):
    model, data, _ = make_biased("bce", dtype=torch.float32)
    result = unlearn(
        model, data, Forget(interactions=range(6)), objective=Objective("bce"), solver=solver
    )
    assert result.report.regime == "early_stopped"
    frozen = model.frozen()
    assert torch.equal(result.model.embedding[frozen], model.embedding[frozen])
    assert not torch.equal(result.model.embedding, model.embedding)


@pytest.mark.parametrize("loss", LOSSES)
def test_influence_is_a_dense_solve(loss):
    model, data, objective = stationary(loss)
    got = influence(
        model, data, [0, 7], data, objective=objective, curvature="hessian", damping=0.5, rtol=1e-11
    )
    n, d = model.embedding.shape
    free = ~model.frozen().flatten()
    hessian = HessianOperator(model, data, objective, damping=0.5)
    basis = torch.eye(n * d, dtype=torch.float64).view(-1, n, d)
    dense = hessian.matvec(basis).view(n * d, n * d)[free][:, free]
    evaluation = Objective(loss).gradient(model, data).flatten()[free]
    adjoint = torch.linalg.solve(dense, evaluation)
    for k, row in enumerate((0, 7)):
        part = Objective(loss, l2_per_sample=objective.l2_per_sample)
        g = part.gradient(model, data.subset([row])).flatten()[free]
        assert float(got[k]) == pytest.approx(float(g @ adjoint), rel=1e-6)


def test_bad_parts_give_one_sentence():
    p, q = torch.zeros(3, 2), torch.zeros(4, 2)
    tries = [
        ({"user_bias": torch.zeros(4)}, r"user_bias: expected shape \[3\] and torch.float32 as"),
        ({"item_bias": torch.zeros(4).double()}, r"item_bias: .* got \[4\] and torch.float64"),
        ({"item_bias": torch.full((4, 1), torch.nan)}, "item_bias: expected finite values"),
        ({"global_bias": float("inf")}, "global_bias: expected a finite number, got inf"),
    ]
    for options, text in tries:
        with pytest.raises(ValueError, match=text):
            BiasedMatrixFactorization(p, q, **options)
