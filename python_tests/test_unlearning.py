"""Unlearning: the step, its certificate, its automatic choices, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest
import torch
from problems import make_learnable, make_problem

import ifru_ext.choices
import ifru_ext.solving
from ifru_ext import (
    BipartiteGraph,
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    Objective,
    Pruning,
    SolveReason,
    cg,
    polish,
    train,
    unlearn,
)
from ifru_ext.anchored import (
    Anchor,
    AnchoredObjective,
    Regime,
    Start,
    implied_ridge,
    stopping_times,
)
from ifru_ext.datasets import synthetic
from ifru_ext.minimize import newton_steps
from ifru_ext.removal import Removal, Spillover
from ifru_ext.solvers import norm
from ifru_ext.verify import distance

KINDS = ("mf", "lightgcn", "mf bpr", "lightgcn bpr")


@functools.cache
def trained_model(kind):
    """A small model at a stationary point of its objective."""
    data, loss = make_learnable(4000), "bce"
    kind, *pairwise = kind.split()
    if pairwise:
        data, loss = data.subset(data.positive).with_negatives(2), "bpr"
    objective = Objective(loss, l2=2.0, l2_per_sample=0.02)
    result = train(
        data, objective, kind=kind, dim=8, epochs=5, dtype=torch.float64, polish_rtol=1e-8
    )
    assert result.polish.converged
    return result.model, data, objective


@pytest.fixture(params=KINDS)
def trained(request):
    return trained_model(request.param)


def retrain(model, retained, objective):
    """The stationary point nearest to `model` on the retained rows: what retraining means here."""
    start = model
    if model.graph is not None:
        start = model.with_graph(BipartiteGraph.from_interactions(retained))
    empty = objective.degrees(retained) == 0
    start = start.with_embedding(torch.where(empty[:, None], 0.0, start.embedding))
    return polish(start, retained, objective, rtol=1e-8)[0]


REQUESTS = {
    "rows": Forget(interactions=torch.arange(20)),
    "user": Forget(users=[3]),
    "items": Forget(items=[5, 9]),
    "mixture": Forget(users=[1, 2], items=[4], interactions=[7, 7, 100]),
}


@functools.cache
def retrained_model(kind, name):
    model, data, objective = trained_model(kind)
    retained = data.subset(~REQUESTS[name].resolve(data))
    return retrain(model, retained, objective)


def check_complete(model, original, retrained, forgotten, data, objective, share):
    """Two-sided: by how much of the way the model is off, in predictions and in the loss."""
    for rows in (forgotten, data):
        before = distance(original, retrained, rows, objective)
        assert distance(model, retrained, rows, objective) <= share * before
    plain = dataclasses.replace(objective, l2=0.0, l2_per_sample=0.0)
    loss, truth, before = (plain.value(m, forgotten) for m in (model, retrained, original))
    assert abs(loss - truth) <= share * abs(before - truth)


@pytest.mark.parametrize(
    ("options", "share", "residual"),
    [
        ({"method": "influence"}, 0.95, 0.6),
        ({"method": "newton"}, 1e-3, 1e-4),
        ({}, 0.02, 1e-3),
    ],
    ids=["influence", "newton", "auto"],
)
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kind", KINDS)
def test_unlearned_is_retrained(kind, name, options, share, residual):
    model, data, objective = trained_model(kind)
    retrained = retrained_model(kind, name)
    forgotten = data.subset(REQUESTS[name].resolve(data))
    result = unlearn(model, data, REQUESTS[name], objective=objective, **options)
    check_complete(result.model, model, retrained, forgotten, data, objective, share)
    assert result.solve.converged
    assert result.report.residual <= residual
    assert result.report.residual_all == result.report.residual == result.certify()
    assert result.report.method == options.get("method", "newton")


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kind", KINDS)
def test_neither_doing_nothing_nor_forgetting_too_much_is_complete(kind, name):
    model, data, objective = trained_model(kind)
    retrained = retrained_model(kind, name)
    forgotten = data.subset(REQUESTS[name].resolve(data))
    done = unlearn(model, data, REQUESTS[name], objective=objective).model
    check = functools.partial(
        check_complete, original=model, retrained=retrained, forgotten=forgotten, data=data
    )
    check(done, objective=objective, share=0.5)
    further = done.with_embedding(2.5 * done.embedding - 1.5 * model.embedding)
    for wrong in (model, further):
        with pytest.raises(AssertionError):
            check(wrong, objective=objective, share=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_newton_lowers_the_anchored_objective(kind):
    # Far from stationary, where the Hessian is indefinite: the trust region has work to do.
    model, data, objective = trained_model(kind)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(model.embedding.shape, generator=g, dtype=torch.float64)
    start = model.with_embedding(model.embedding + 0.5 * noise)
    forget = Forget(users=[2, 3])
    removal = Removal.of(start, data, forget, objective)
    rows = removal.live.nonzero()[:, 0]
    psi = AnchoredObjective(
        Start.of(removal, rows), torch.zeros(model.n_nodes, dtype=torch.float64), Regime.STATIONARY
    )
    values = [psi.start.value]
    for steps in (1, 2, 4, 8):
        solution = newton_steps(psi, gtol=0.0, max_steps=steps, convex_only=False, callback=None)
        values.append(psi.at(solution.x).value)
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_the_right_hand_side_is_the_gradient_of_what_is_forgotten():
    # For MF the gradients of the rows themselves, whatever the others are.
    model, data, objective = trained_model("mf")
    forget = Forget(interactions=torch.arange(30))
    result = unlearn(model, data, forget, objective=objective, method="influence")
    own = objective.gradient(model, data.subset(torch.arange(30)))
    ridge_of_others = objective.l2 * model.embedding  # l2 counts once in each gradient
    g = own - ridge_of_others
    assert result.report.gradient_norm == pytest.approx(float(g.norm()), rel=1e-9)


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian", "auto"])
def test_the_solution_solves_the_system(trained, curvature):
    model, data, objective = trained
    forget = Forget(interactions=torch.arange(25))
    result = unlearn(
        *(model, data, forget),
        objective=objective,
        method="influence",
        curvature=curvature,
        damping=0.5,
        rtol=1e-9,
    )
    operator_type = HessianOperator if curvature == "hessian" else GaussNewtonOperator
    new_model = model
    if model.graph is not None:
        new_model = model.with_graph(BipartiteGraph.from_interactions(result.retained))
    operator = operator_type(new_model, result.retained, objective, damping=0.5)
    g = objective.gradient(model, data) - objective.gradient(new_model, result.retained)
    torch.testing.assert_close(operator @ result.solve.x, g, rtol=0, atol=1e-7)
    assert result.report.solve_residual < 1e-9


@pytest.mark.parametrize("method", ["influence", "newton"])
def test_the_certificate_is_the_gradient_of_the_anchored_objective(trained, method):
    model, data, objective = trained
    forget = Forget(users=[2], interactions=torch.arange(10))
    result = unlearn(model, data, forget, objective=objective, damping=0.3, method=method, rtol=0.1)
    rho = objective.gradient(model, data)
    start = model
    if model.graph is not None:
        start = model.with_graph(BipartiteGraph.from_interactions(result.retained))
    live = (objective.degrees(result.retained) > 0)[:, None]
    delta = result.model.embedding - model.embedding
    left = objective.gradient(result.model, result.retained) - rho + 0.3 * delta
    g = rho - objective.gradient(start, result.retained)
    assert result.report.residual == pytest.approx(float((left * live).norm() / (g * live).norm()))


def moved_rows(result, model):
    return (result.model.embedding != model.embedding).any(1).nonzero()[:, 0]


@pytest.mark.parametrize("method", ["influence", "newton"])
@pytest.mark.parametrize("pruning", [Pruning(), Pruning(1, 0.2)], ids=["hop 0", "hop 1"])
def test_pruned_rows_alone_change(trained, pruning, method):
    model, data, objective = trained
    forget = Forget(users=[2], interactions=torch.arange(5))
    options = {"objective": objective, "method": method, "pruning": pruning}
    result = unlearn(model, data, forget, **options)
    rows = pruning.select(data, forget.resolve(data).nonzero()[:, 0]).rows
    assert torch.equal(moved_rows(result, model), rows)
    assert result.report.n_rows == len(rows) - 1  # user 2 is erased, not solved for
    assert result.report.pruning["kept"] == list(
        pruning.select(data, forget.resolve(data).nonzero()[:, 0]).kept
    )
    # The residual over the rows is the whole's restricted to them.
    start = Start.of(Removal.of(model, data, forget, objective), None)
    mu = torch.zeros(model.n_nodes, dtype=torch.float64)
    left = AnchoredObjective(start, mu, Regime.CONVERGED).at(result.model.embedding).gradient
    solved = rows[rows != 2]
    g = start.g[solved].norm()
    assert result.report.residual == pytest.approx(float(left[solved].norm() / g), rel=1e-6)
    live = torch.arange(model.n_nodes) != 2
    everything = float((left * live[:, None]).norm() / (start.g * live[:, None]).norm())
    assert result.certify() == pytest.approx(everything, rel=1e-6)
    assert result.certify() > result.report.residual
    assert torch.equal(result.undo().embedding, model.embedding)


def test_a_pruned_newton_step_is_the_minimum_over_its_rows(trained):
    model, data, objective = trained
    options = {"objective": objective, "method": "newton", "rtol": 1e-8, "pruning": Pruning()}
    result = unlearn(model, data, Forget(users=[2]), **options)
    assert result.report.residual <= 1e-8


def test_what_has_no_interaction_left_is_erased(trained):
    model, data, objective = trained
    user = int(data.user[0])
    others = data.degrees()[: data.n_users] > 0
    result = unlearn(model, data, Forget(users=[user]), objective=objective)
    assert result.report.erased_users == 1
    assert not result.model.user_embedding[user].any()
    assert bool((result.model.user_embedding[others].abs().sum(1) > 0).sum() == others.sum() - 1)
    assert (result.model.n_users, result.model.n_items) == (model.n_users, model.n_items)
    assert not (result.retained.user == user).any()


def test_the_new_graph_is_the_retained_one():
    model, data, objective = trained_model("lightgcn")
    result = unlearn(
        model, data, Forget(interactions=data.positive.nonzero()[:10, 0]), objective=objective
    )
    assert result.model.graph.n_edges == model.graph.n_edges - 10
    expected = BipartiteGraph.from_interactions(result.retained)
    assert result.model.graph.adjacency.same_as(expected.adjacency)


def test_an_erased_row_can_be_the_mean(trained):
    model, data, objective = trained
    result = unlearn(model, data, Forget(users=[2]), objective=objective, erase="mean")
    others = (result.retained.degrees()[: data.n_users] > 0).nonzero()[:, 0]
    mean = model.user_embedding[others].mean(0)
    torch.testing.assert_close(result.model.user_embedding[2], mean)
    zero = unlearn(model, data, Forget(users=[2]), objective=objective)
    rest = torch.arange(model.n_nodes) != 2
    torch.testing.assert_close(result.model.embedding[rest], zero.model.embedding[rest])


def dense_paper_gradient(model, data, objective, forget):
    """Autograd through the rows that the 1 % rule takes."""
    gone = forget.resolve(data)
    after = model.with_graph(BipartiteGraph.from_interactions(data.subset(~gone)))
    old, new = (m.graph.adjacency.degrees() for m in (model, after))
    lost = (old - new) > 0.01 * old
    spilled = (lost[data.user] | lost[data.item + data.n_users]) & ~gone
    plain = dataclasses.replace(objective, l2=0.0, l2_per_sample=0.0)

    def gradient(m, rows):
        return plain.gradient(m, data.subset(rows))

    own = objective.l2_per_sample * (data.degrees() - data.subset(~gone).degrees()).double()
    direct = gradient(model, gone) + own[:, None] * model.embedding
    return direct + gradient(model, spilled) - gradient(after, spilled), spilled


def test_the_papers_spillover_takes_rows_at_changed_nodes_alone():
    model, data, objective = trained_model("lightgcn")
    forget = Forget(interactions=data.positive.nonzero()[:3, 0])
    expected, spilled = dense_paper_gradient(model, data, objective, forget)
    assert 0 < int(spilled.sum()) < len(data) - 3
    removal = Removal.of(model, data, forget, objective)
    got = removal.forget_gradient(None, Spillover.PAPER)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(got, removal.forget_gradient(None), rtol=0, atol=1e-6)
    options = {"objective": objective, "damping": 0.1, "rtol": 1e-9}
    result = unlearn(model, data, forget, spillover="paper", **options)
    operator = GaussNewtonOperator(removal.start, result.retained, objective, damping=0.1)
    torch.testing.assert_close(operator @ result.solve.x, expected, rtol=0, atol=1e-7)


def test_undo_gives_back_the_original_and_nothing_is_changed(trained):
    model, data, objective = trained
    embedding, label = model.embedding.clone(), data.label.clone()
    result = unlearn(model, data, Forget(users=[1]), objective=objective)
    assert torch.equal(result.undo().embedding, embedding)
    assert torch.equal(model.embedding, embedding)
    assert torch.equal(data.label, label)
    assert not torch.equal(result.model.embedding, embedding)


@pytest.mark.parametrize("request_", [Forget(users=[1]), Forget(interactions=[3])])
def test_writing_to_what_was_restored_changes_nothing_else(trained, request_):
    """Also where all rows were solved for, of which the result keeps the original's."""
    model, data, objective = trained
    embedding = model.embedding.clone()
    result = unlearn(model, data, request_, objective=objective, method="newton", rtol=1e-2)
    result.undo().embedding.zero_()
    assert torch.equal(model.embedding, embedding)
    assert torch.equal(result.undo().embedding, embedding)


def test_float32_agrees_with_float64(trained):
    model, data, objective = trained
    forget = Forget(interactions=torch.arange(25))
    high, low = (
        unlearn(m, data, forget, objective=objective, rtol=1e-4)
        for m in (model, model.to(torch.float32))
    )
    step = (high.model.embedding - model.embedding).norm()
    difference = (low.model.embedding.double() - high.model.embedding).norm()
    assert float(difference / step) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_and_two_threads_train_and_unlearn_to_the_same_bits(dtype):
    # Large enough for torch's own sums to be divided among threads.
    data = synthetic(943, 1682, 20_000, seed=1)
    objective = Objective(l2=0.7, l2_per_sample=0.006)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options = {"dim": 64, "epochs": 1, "dtype": dtype, "polish_rtol": 3e-2}
            model = train(data, objective, **options).model
            unlearned = unlearn(model, data, Forget(users=[1, 2]), objective=objective)
            results.append((model.embedding, unlearned.model.embedding))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_the_report_is_json_and_says_why(trained):
    model, data, objective = trained
    report = unlearn(model, data, Forget(users=[1]), objective=objective).report
    loaded = json.loads(json.dumps(report.to_json()))
    assert loaded["n_forgotten"] == int((data.user == 1).sum())
    assert "not a privacy theorem" in loaded["certificate"]
    assert any("converged" in reason for reason in report.reasons)
    assert report.stationarity < 1e-4
    assert report.damping == {"min": 0.0, "mean": 0.0, "max": 0.0}
    assert set(loaded["seconds"]) == {
        "prepare",
        "gradient",
        "damping",
        "solve",
        "certificate",
        "total",
    }


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_an_early_stopped_model_gets_the_implied_ridge(kind):
    _, data, _ = make_problem("power_law")
    objective = Objective()  # no regulariser at all
    model = train(data, objective, kind=kind, dim=8, epochs=3, dtype=torch.float64).model
    result = unlearn(model, data, Forget(interactions=torch.arange(100)), objective=objective)
    assert result.report.stationarity > 0.1
    assert result.report.damping["mean"] > 0
    assert any("implied by early stopping" in reason for reason in result.report.reasons)
    rows = Pruning().select(data, torch.arange(100)).rows
    assert set(moved_rows(result, model).tolist()) <= set(rows.tolist())
    assert result.solve.reason is SolveReason.FILTERED
    assert result.solve.converged
    solved = unlearn(
        model, data, Forget(interactions=torch.arange(100)), objective=objective, solver="cg"
    )
    assert solved.report.solve_rtol == 0.3
    assert solved.report.solve_residual <= 0.3
    mu = implied_ridge(objective.linearize(model, data))
    assert bool((mu >= 0).all())
    # Rows of like degree share a value.
    degree = data.degrees()
    for exponent in range(3, 8):
        like = (degree >= 2**exponent) & (degree < 2 ** (exponent + 1))
        if int(like.sum()):
            assert mu[like].unique().numel() == 1


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_the_filter_is_that_of_the_dense_matrix(kind, curvature):
    _, data, _ = make_problem("isolated")
    objective = Objective(l2=0.1)
    training = {"kind": kind, "dim": 3, "batch_size": 8, "epochs": 6, "dtype": torch.float64}
    model = train(data, objective, **training).model
    forget = Forget(interactions=torch.arange(4))
    options = {"objective": objective, "curvature": curvature, "rtol": 0.0, "maxiter": 100}
    result = unlearn(model, data, forget, solver="filter", **options)
    removal = Removal.of(model, data, forget, objective)
    rows = Pruning().select(data, torch.arange(4)).rows
    start = Start.of(removal, rows)
    operator_type = HessianOperator if curvature == "hessian" else GaussNewtonOperator
    size = start.g.numel()
    basis = torch.eye(size, dtype=torch.float64).view(size, *start.g.shape)
    matrix = operator_type.at(start.linearization).matvec(basis).view(size, size)
    # Curvature and ridge from their definitions: the rows' own blocks, pooled by degree.
    whole = objective.linearize(model, data)
    mu = implied_ridge(whole)
    times = stopping_times(objective.linearize(removal.start, data, omitted=removal.omitted), mu)
    root = times[rows].sqrt().repeat_interleave(model.dim)
    values, vectors = torch.linalg.eigh(root[:, None] * matrix * root)
    if curvature == "hessian":
        assert float(values[0]) < 0
    phi = vectors @ torch.diag(-torch.expm1(-values) / values) @ vectors.T
    expected = root * (phi @ (root * start.g.flatten()))
    torch.testing.assert_close(result.solve.x.flatten(), expected, rtol=1e-7, atol=1e-9)


def test_stopping_times_explain_the_implied_ridge():
    # Of one feature, where a row's own block is a number: sum of w f^2 over its interactions.
    model, data, objective = make_problem("power_law", dim=1)
    point = objective.linearize(model, data)
    mu = torch.full((model.n_nodes,), 0.7, dtype=torch.float64)
    times = stopping_times(point, mu)
    f, degree = model.embedding[:, 0], data.degrees()
    w = torch.sigmoid(model.scores(data.user, data.item))
    w = w * (1 - w)
    item = data.item + data.n_users
    own = torch.zeros_like(f).index_add(0, data.user, w * f[item].square())
    own = own.index_add(0, item, w * f[data.user].square()) + objective.ridge(data)
    for exponent in range(8):
        like = (degree >= 2**exponent) & (degree < 2 ** (exponent + 1))
        if not bool(like.any()):
            continue
        c = float((own * f.square())[like].sum() / f.square()[like].sum())
        (time,) = times[like].unique().tolist()
        assert c / math.expm1(time * c) == pytest.approx(0.7, rel=1e-9)
    assert not times[degree == 0].any()


def test_the_implied_ridge_is_found_again():
    # A stationary model of a known ridge, looked at through an objective without one.
    _, data, _ = make_problem("power_law")
    known = Objective(l2=1.5)
    model = train(
        data, known, kind="mf", dim=8, epochs=3, dtype=torch.float64, polish_rtol=1e-9
    ).model
    mu = implied_ridge(Objective().linearize(model, data))
    live = data.degrees() > 0
    torch.testing.assert_close(mu[live], torch.full_like(mu[live], 1.5), rtol=1e-6, atol=0)
    assert float(implied_ridge(known.linearize(model, data)).max()) < 1e-6


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_at_a_minimum_does_not_raise_the_objective(kind, name, curvature):
    model, data, objective = trained_model(kind)
    options = {"objective": objective, "method": "influence", "curvature": curvature}
    result = unlearn(model, data, REQUESTS[name], **options)
    removal = Removal.of(model, data, REQUESTS[name], objective)
    before, after = (objective.value(m, result.retained) for m in (removal.start, result.model))
    assert after < before
    cut = [reason for reason in result.report.reasons if reason.startswith("step cut to")]
    # Here the exact Hessian's step in full is twenty times too far.
    assert bool(cut) or (kind, name, curvature) != ("mf", "mixture", "hessian")


def in_sequence(model, data, objective, rows, n_requests):
    """Forgets rows in parts, each from the result of the one before; model and methods."""
    ids, anchor, methods = torch.arange(len(data)), None, set()
    for part in rows.chunk(n_requests):
        gone = torch.isin(ids, part)
        forget = Forget(interactions=gone)
        result = unlearn(model, data, forget, objective=objective, anchor=anchor)
        model, data, anchor, ids = result.model, result.retained, result.anchor, ids[~gone]
        methods.add(result.report.method)
    return model, methods


@pytest.mark.parametrize("kind", KINDS)
def test_small_requests_in_a_row_end_where_one_does(kind):
    model, data, objective = trained_model(kind)
    rows = torch.arange(3, len(data), 61)
    retained = data.subset(~torch.isin(torch.arange(len(data)), rows))
    retrained = retrain(model, retained, objective)
    one = unlearn(model, data, Forget(interactions=rows), objective=objective).model
    many, methods = in_sequence(model, data, objective, rows, len(rows))
    assert methods == {"newton"}
    at_once, in_a_row, before = (
        distance(m, retrained, data, objective) for m in (one, many, model)
    )
    assert in_a_row <= max(1.2 * at_once, 1e-3 * before)


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_an_anchor_made_after_training_spares_a_request_the_same_passes(kind):
    _, data, _ = make_problem("power_law")
    objective, forget = Objective(), Forget(interactions=torch.arange(100))
    model = train(data, objective, kind=kind, dim=8, epochs=3, dtype=torch.float64).model
    anchor = Anchor.of(model, data, objective)
    assert anchor.regime is None
    assert anchor.own_norm == pytest.approx(norm(objective.gradient(model, data)))
    found = unlearn(model, data, forget, objective=objective)
    told = unlearn(model, data, forget, objective=objective, anchor=anchor)
    assert told.report.regime == found.report.regime == "early_stopped"
    assert told.report.stationarity == pytest.approx(found.report.stationarity)
    # Without an anchor the curvature is that of the retained rows alone.
    difference = norm(told.model.embedding - found.model.embedding)
    assert difference < 0.05 * norm(found.model.embedding - model.embedding)
    following = told.anchor
    assert following.regime is Regime.EARLY_STOPPED
    assert following.own_norm is None


def test_an_anchor_made_after_training_leaves_the_regime_to_the_request(trained):
    model, data, objective = trained
    assert Anchor.of(model, data, objective).regime is Regime.CONVERGED
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.embedding.shape, generator=generator, dtype=model.dtype)
    near = model.with_embedding(model.embedding + 6e-3 * noise)
    anchor = Anchor.of(near, data, objective)
    small, large = Forget(interactions=[0]), Forget(interactions=torch.arange(len(data) // 2))
    for forget, regime in ((small, "early_stopped"), (large, "stationary")):
        with_anchor = unlearn(near, data, forget, objective=objective, anchor=anchor)
        without = unlearn(near, data, forget, objective=objective)
        assert with_anchor.report.regime == without.report.regime == regime
    # A damping can still be given: the anchor has none of its own yet.
    given = unlearn(near, data, small, objective=objective, anchor=anchor, damping=1.0)
    assert given.report.damping["mean"] == 1.0


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
def test_a_model_stopped_early_is_not_misjudged_the_second_time(kind):
    data, objective = make_learnable(4000), Objective()
    options = {"kind": kind, "dim": 8, "epochs": 15, "batch_size": 256, "dtype": torch.float64}
    model = train(data, objective, **options).model
    rows = torch.arange(3, len(data), 61)
    retained = data.subset(~torch.isin(torch.arange(len(data)), rows))
    retrained = train(retained, objective, **options).model
    one = unlearn(model, data, Forget(interactions=rows), objective=objective).model
    many, methods = in_sequence(model, data, objective, rows, len(rows))
    assert methods == {"influence"}
    forgotten = data.subset(rows)
    at_once, in_a_row, before = (
        distance(m, retrained, forgotten, objective) for m in (one, many, model)
    )
    assert at_once < 0.8 * before
    assert in_a_row <= 1.2 * at_once


def test_a_tight_tolerance_is_computed_in_float64():
    model, data, objective = trained_model("mf")
    low = model.to(torch.float32)
    forget = Forget(users=[3])
    result = unlearn(low, data, forget, objective=objective, method="newton", rtol=1e-7)
    assert any(reason.startswith("computed in float64") for reason in result.report.reasons)
    assert result.report.solve_residual < 1e-6
    assert result.model.dtype == torch.float32
    exact = unlearn(model, data, forget, objective=objective, method="newton", rtol=1e-7)
    difference = result.model.embedding.double() - exact.model.embedding
    assert float(difference.norm() / model.embedding.norm()) < 1e-6


def test_at_a_saddle_the_influence_step_is_taken(monkeypatch, trained):
    model, data, objective = trained
    # A Hessian that shows negative curvature, with the forgotten rows and without.

    def indefinite(psi, **options):
        solution = newton_steps(psi, **{**options, "max_steps": 0})
        solve = dataclasses.replace(solution.solve, reason=SolveReason.NEGATIVE_CURVATURE)
        return dataclasses.replace(solution, solve=solve)

    monkeypatch.setattr(ifru_ext.solving, "newton_steps", indefinite)
    monkeypatch.setattr(
        ifru_ext.choices,
        "cg",
        lambda *a, **k: dataclasses.replace(cg(*a, **k), reason=SolveReason.NEGATIVE_CURVATURE),
    )
    report = unlearn(model, data, Forget(users=[3]), objective=objective).report
    assert (report.method, report.curvature) == ("influence", "gauss_newton")
    assert any("at a saddle" in reason for reason in report.reasons)


def test_a_strength_is_chosen_on_validation_rows(trained):
    model, data, objective = trained
    plain = Objective(objective.loss)
    forget = Forget(users=[3], interactions=torch.arange(40))
    validation = data.subset(torch.arange(100, 300))
    result = unlearn(model, data, forget, objective=objective)
    chosen = unlearn(model, data, forget, objective=objective, validation=validation)
    assert plain.value(chosen.model, validation) <= plain.value(result.model, validation)
    assert any("their labels were used" in reason for reason in chosen.report.reasons)
    assert not any("labels were used" in reason for reason in result.report.reasons)
    live = (result.model.embedding != model.embedding) & (result.model.embedding != 0)
    ratio = (chosen.model.embedding - model.embedding) / (result.model.embedding - model.embedding)
    strength = float(ratio[live].median())
    assert f"strength {strength:.4g}:" in " ".join(chosen.report.reasons)


def options(**changes):
    model, data, objective = make_problem(kind="lightgcn")
    values = {"forget": Forget(users=[1]), "objective": objective, **changes}
    return {"model": model, "data": data, **values}


NAN = torch.full((27,), float("nan"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"method": "magic"},
            r"method: expected one of \['auto', 'influence', 'newton'\], got 'magic'",
        ),
        (
            {"curvature": "flat"},
            r"curvature: expected one of \['auto', 'gauss_newton', 'hessian'\]",
        ),
        ({"damping": "lots"}, "damping: expected a number, a tensor or 'auto', got 'lots'"),
        ({"damping": None}, "damping: expected a number, a tensor or 'auto', got None"),
        ({"forget": None}, "forget: expected a Forget, got NoneType"),
        ({"damping": -1.0}, "damping: expected finite numbers >= 0"),
        ({"damping": NAN}, "damping: expected finite numbers >= 0"),
        ({"damping": torch.ones(3)}, r"damping: expected a number or one per row \(\[27\]\)"),
        ({"rtol": -1.0}, "rtol: expected a finite number >= 0"),
        (
            {"forget": Forget(users=[14])},
            r"forget selects no interaction \(users=\[14\] have no rows",
        ),
        ({"forget": Forget(users=list(range(15)))}, "forget selects every interaction"),
        ({"forget": Forget(users=[15])}, r"forget: users: expected ids in \[0, 15\), got 15"),
        ({"forget": Forget(interactions=[60])}, r"forget: interactions: expected ids in \[0, 60\)"),
        ({"forget": Forget(before=3.0)}, "expected data with timestamps"),
    ],
)
def test_bad_input_gives_one_sentence(changes, text):
    with pytest.raises(ValueError, match=text):
        unlearn(**options(**changes))


def test_model_and_data_must_belong_together():
    values = options()
    data = values["data"]
    values["data"] = Interactions(data.user, data.item, data.label, n_users=16, n_items=12)
    with pytest.raises(
        ValueError, match="data: expected 15 users and 12 items as in the model, got 16"
    ):
        unlearn(**values)
    values["data"] = data.with_labels(1 - data.label)
    with pytest.raises(
        ValueError, match=r"model: expected the graph of the .* positive interactions"
    ):
        unlearn(**values)
