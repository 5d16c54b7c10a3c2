"""On a CUDA device: the ops against their twins, solvers, models, unlearning.

Skipped where there is no device; `make emulated` runs them on an emulated one.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulation import CPU_ONLY
from graphs import GRAPHS, make_adjacency, make_pairs, make_triples
from problems import make_problem
from test_ops import OPS, PRODUCTS, RTOL, SHAPES, as_tuple, op_arguments, scalar, vectors

from ifru_ext import (
    BlockJacobiPreconditioner,
    Forget,
    GaussNewtonOperator,
    HessianOperator,
    Interactions,
    JacobiPreconditioner,
    NystromPreconditioner,
    Pruning,
    cg,
    functional,
    ops,
    reference,
    row_jacobi,
    train,
    unlearn,
)
from ifru_ext.bench.unlearning import CASES, UnlearningSettings, run_unlearning

pytestmark = pytest.mark.gpu

GPU_OPS = [name for name in OPS if name not in CPU_ONLY]


def on_gpu(name, args):
    """The arguments of an op, on the device but for what the host reads."""
    alpha = 4 if name == "propagate" else None
    return [
        a.cuda() if isinstance(a, torch.Tensor) and place != alpha else a
        for place, a in enumerate(args)
    ]


def assert_close(got, expected, dtype=torch.float64):
    """Of results on the device, and of those of the twin on the CPU in float64."""
    for x, y in zip(as_tuple(got), as_tuple(expected), strict=True):
        assert x.device.type == "cuda"
        assert x.dtype == dtype
        scale = max(1.0, float(y.abs().max())) if y.numel() else 1.0
        atol = RTOL[dtype] * scale
        torch.testing.assert_close(x.cpu().double(), y.double(), rtol=0, atol=atol)


def twin(name, args):
    wide = [
        a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    ]
    return getattr(reference, name)(*wide)


# --- ops ------------------------------------------------------------------------------------------


@pytest.mark.hardware("the emulated ops run this table in test_ops.py")
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100, 130, 260])
@pytest.mark.parametrize(
    ("dtype", "index"), [(torch.float32, torch.int32), (torch.float64, torch.int64)]
)
@pytest.mark.parametrize("name", GPU_OPS)
def test_ops_agree_with_their_twins(name, dtype, index, dim, graph):
    args = op_arguments(name, make_adjacency(graph, index), dim, dtype, gather=True)
    here = on_gpu(name, args)
    got, again = (getattr(ops, name)(*here) for _ in range(2))
    assert all(map(torch.equal, as_tuple(got), as_tuple(again)))
    assert_close(got, twin(name, args), dtype)


@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_propagation_writes_where_asked(n_layers):
    args = list(op_arguments("propagate", make_adjacency("hub"), 48, torch.float32))
    args[4] = torch.rand(n_layers + 1, dtype=torch.float64)
    here = on_gpu("propagate", args)
    out, scratch = (torch.full_like(here[3], math.nan) for _ in range(2))
    assert ops.propagate(*here, out=out, scratch=scratch) is out
    assert torch.equal(out, ops.propagate(*here))
    assert_close(out, twin("propagate", args), torch.float32)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [7, 64])
def test_products_of_several_vectors_in_16_bits_and_where_asked(name, dim, storage):
    args = list(op_arguments(name, make_adjacency("power_law"), dim, torch.float32, gather=True))
    g = torch.Generator().manual_seed(5)
    args[-3] = args[-3].to(storage)
    args[-2] = torch.randn(3, *args[-2].shape, generator=g).to(storage)
    here = on_gpu(name, args)
    out = torch.full(args[-2].shape, math.nan, device=here[-2].device)
    assert getattr(ops, name)(*here, out=out) is out
    assert_close(out, twin(name, args), torch.float32)
    for vector, result in zip(here[-2], out, strict=True):
        assert torch.equal(getattr(ops, name)(*here[:-2], vector, here[-1]), result)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_vector_updates_agree_with_their_twins(shape, dtype, preconditioned):
    inverse = vectors(shape[:1], dtype, 1)[0].abs() if preconditioned else None
    results = []
    for module, device in ((ops, "cuda"), (reference, "cpu")):
        x, r, p, ap = (v.to(device) for v in vectors(shape, dtype, 4))
        diagonal = None if inverse is None else inverse.to(device)
        dots = torch.empty(2, dtype=torch.float64, device=device)
        module.cg_update(x, r, p, ap, scalar(0.37).to(device), diagonal, dots)
        module.cg_direction(p, r, scalar(-0.6).to(device), diagonal)
        results.append((x, r, p, dots, module.dot(x, p)))
    for got, expected in zip(*results, strict=True):
        assert got.device.type == "cuda"
        options = {"rtol": RTOL[dtype], "atol": 10 * RTOL[dtype]}
        torch.testing.assert_close(got.cpu(), expected, **options)


# Where the ops have node ids, and where positions of rows.
IDS = {
    "propagate": (1,),
    "pointwise_derivatives": (0, 1),
    "pointwise_gradient": (1,),
    "pointwise_hvp": (1,),
    "pointwise_ggn": (1,),
    "restricted_hvp": (1, 2),
    "restricted_ggn": (1, 2),
    "ggn_diagonal": (1, 2),
    "ggn_blocks": (1, 2),
    "pairwise_derivatives": (0, 1, 2),
    "pairwise_gradient": (1, 2),
    "pairwise_hvp": (1, 2),
    "pairwise_ggn": (1, 2),
}
ROWPTR = [name for name in GPU_OPS if not name.endswith("derivatives")]


def assert_poisoned(name, args):
    results = as_tuple(getattr(ops, name)(*on_gpu(name, args)))
    for result in results:
        bad = result.isnan().cpu()
        assert bool(bad.any())
        assert not bool(bad.all())


@pytest.mark.parametrize("graph", ["isolated", "hub"])
@pytest.mark.parametrize("bad", [10**4, -2, 2**62, -(2**63)])
@pytest.mark.parametrize(("name", "place"), [(n, k) for n, places in IDS.items() for k in places])
def test_ids_that_do_not_exist_are_not_followed(name, place, bad, graph):
    args = list(
        op_arguments(name, make_adjacency(graph, torch.int64), 6, torch.float32, gather=True)
    )
    args[place] = args[place].clone()
    args[place][3] = bad
    assert_poisoned(name, args)


@pytest.mark.parametrize("bad", [10**6, -1, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ROWPTR)
def test_rows_that_do_not_exist_are_not_read(name, bad):
    args = list(op_arguments(name, make_adjacency("isolated"), 6, torch.float32, gather=True))
    args[0] = args[0].clone()
    args[0].view(-1)[1] = bad
    assert_poisoned(name, args)


@pytest.mark.parametrize("dim", [5, 16, 64, 100])
def test_blocks_are_symmetric_and_have_the_diagonal(dim):
    args = on_gpu(
        "ggn_blocks", op_arguments("ggn_blocks", make_adjacency("power_law"), dim, torch.float32)
    )
    blocks = ops.ggn_blocks(*args)
    assert torch.equal(blocks, blocks.mT)
    diagonal = ops.ggn_diagonal(*args)
    torch.testing.assert_close(blocks.diagonal(dim1=1, dim2=2), diagonal, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("score", [0.0, 1e-8, 30.0, -30.0, 80.0, -80.0, 3e38, -3e38])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_keep_the_digits_that_the_cpu_keeps(dtype, label, score):
    f = torch.tensor([[1.0], [score], [0.0]], dtype=dtype)
    zero, one, two = (torch.tensor([k]) for k in range(3))
    calls = [
        (ops.pointwise_derivatives, zero, one, f, torch.tensor([label], dtype=dtype), None, 0),
        (ops.pairwise_derivatives, zero, one, two, f),
    ]
    for op, *args in calls:
        here = on_gpu(op.__name__, args)
        for x, y in zip(op(*here), op(*args), strict=True):
            torch.testing.assert_close(x.cpu(), y, rtol=10 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", ["pairwise_hvp", "pairwise_ggn"])
def test_a_bad_triple_poisons_its_three_rows(name):
    t = make_triples(make_adjacency("isolated"))
    args = on_gpu(name, op_arguments(name, make_adjacency("isolated"), 16, torch.float32))
    user, positive, negative = (int(ids[7]) for ids in t.nodes())
    args[1] = args[1].clone()
    args[1][7] = t.n_nodes
    bad = getattr(ops, name)(*args).isnan().any(1).cpu()
    assert bad.nonzero().flatten().tolist() == sorted({user, positive, negative})


def test_every_op_is_in_the_tables():
    assert set(IDS) == set(GPU_OPS)


def test_tensors_of_two_devices_are_refused():
    args = list(op_arguments("propagate", make_adjacency("isolated"), 4, torch.float32))
    here = on_gpu("propagate", args)
    for place in (0, 1, 2, 4):
        mixed = list(here)
        mixed[place] = here[place].cuda() if place == 4 else args[place]
        with pytest.raises((ValueError, RuntimeError), match=r"device|on the CPU"):
            ops.propagate(*mixed)


# --- models and data ------------------------------------------------------------------------------

KINDS = ["mf", "lightgcn"]


@pytest.mark.parametrize("kind", KINDS)
def test_models_and_data_move_there_and_back(kind):
    model, data, _ = make_problem("power_law", kind=kind, weighted=True)
    known = data.adjacency, data.n_duplicates  # go along
    there, data_there = model.to("cuda"), data.to("cuda")
    assert there.features().device.type == data_there.adjacency.neighbor.device.type == "cuda"
    assert_close(there.features(), model.features())
    assert_close(there.scores(data.user, data.item), model.scores(data.user, data.item))
    assert data_there.fingerprint() == data.fingerprint()
    assert data_there.n_duplicates == known[1]
    back, data_back = there.to("cpu"), data_there.to("cpu")
    assert torch.equal(back.embedding, model.embedding)
    assert data_back.adjacency.same_as(known[0])
    if kind == "lightgcn":
        assert torch.equal(back.features(), model.features())
        with pytest.raises(ValueError, match=r"^graph: expected one on cuda:0 as the embeddings"):
            there.with_graph(model.graph)


def test_indices_are_made_from_data_on_the_device():
    user, item, n_users, n_items = make_pairs("power_law")
    data = Interactions(user.cuda(), item.cuda(), n_users=n_users, n_items=n_items)
    expected = make_adjacency("power_law")
    assert data.adjacency.neighbor.device.type == "cuda"
    assert data.adjacency.to("cpu").same_as(expected)
    rows = torch.arange(0, expected.n_nodes, 7)
    for one, other in zip(
        data.adjacency.slice(rows.cuda()).indices, expected.slice(rows).indices, strict=True
    ):
        assert torch.equal(one.cpu(), other)
    assert torch.equal(data.adjacency.ball(rows, 1).cpu(), expected.ball(rows, 1))
    triples = make_triples(expected)
    for one, other in zip(triples.to("cuda").nodes(), triples.nodes(), strict=True):
        assert one.device.type == "cuda"
        assert torch.equal(one.cpu(), other)


# --- operators, solvers, unlearning ---------------------------------------------------------------

ROWS = {"all": None, "some": [0, 3, 4, 20]}


def make_operator(operator, device, *, kind="mf", rows=None, **options):
    model, data, objective = make_problem("isolated", kind=kind, dim=6, **options)
    return operator(
        model.to(device), data.to(device), objective, rows=rows, damping=torch.tensor(0.3)
    )


def normal(operator, *leading):
    n_rows = operator.ridge_inverse.shape[0]
    shape = (*leading, n_rows, operator.shape[0] // n_rows)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_products_are_those_of_the_cpu(operator, kind, rows, no_waiting):
    here, there = (make_operator(operator, d, kind=kind, rows=rows) for d in ("cuda", "cpu"))
    v = normal(there, 2)
    v_here = v.cuda()
    out = here.matvec(v_here)  # makes what is kept from one product to the next
    assert_close(out, there.matvec(v))
    with no_waiting():
        again = here.matvec_into(v_here, out.clone())
    assert torch.equal(again, out)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_cpu(kind, rows):
    model, data, objective = make_problem("isolated", kind=kind, weighted=True, reduction="mean")
    here = objective.linearize(model.to("cuda"), data.to("cuda"), rows)
    there = objective.linearize(model, data, rows)
    assert_close(here.gradient(), there.gradient())
    if rows is None:
        assert here.value == pytest.approx(there.value, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable_forms_are_those_of_the_cpu(kind):
    model, data, objective = make_problem("isolated", kind=kind)
    triples = make_triples(data.adjacency)
    results = []
    for device in ("cuda", "cpu"):
        here, embedding = data.to(device), model.embedding.to(device)
        phi = functional.ObjectiveFunction(objective, model.to(device), here)
        pairs = here.adjacency, here.label, embedding
        comparisons = triples.to(device), embedding
        results.append(
            (
                phi(embedding),
                functional.pointwise_loss(*pairs),
                functional.pointwise_gradient(*pairs),
                functional.pairwise_loss(*comparisons),
                functional.pairwise_gradient(*comparisons),
            )
        )
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


@pytest.mark.hardware("torch runs a backward on a GPU in a thread that asks for a real one")
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_the_cpu(kind):
    model, data, objective = make_problem("isolated", kind=kind)
    results = []
    for device in ("cuda", "cpu"):
        phi = functional.ObjectiveFunction(objective, model.to(device), data.to(device))
        embedding = model.embedding.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(phi(embedding), embedding, create_graph=True)
        (product,) = torch.autograd.grad((gradient * gradient.detach()).sum(), embedding)
        results.append((gradient.detach(), product))
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


class Watched:
    """An operator whose products, but for the first ones, forbid to wait for the device."""

    def __init__(self, operator, no_waiting, n_iters):
        self._operator, self._no_waiting, self._n_iters = operator, no_waiting, n_iters
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self._entered, self._n_products = None, 0

    def matvec(self, v):
        self._n_products += 1
        if self._n_products == 2:
            self._entered = self._no_waiting()
            self._entered.__enter__()
        if self._n_products == self._n_iters:
            self._entered.__exit__(None, None, None)
        return self._operator.matvec(v)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_host_does_not_wait_between_two_looks(kind, preconditioned, no_waiting):
    here, there = (make_operator(GaussNewtonOperator, d, kind=kind) for d in ("cuda", "cpu"))
    b = normal(there)
    watched = Watched(here, no_waiting, n_iters=8)
    M = here.ridge_inverse if preconditioned else None
    result = cg(watched, b.cuda(), rtol=0.0, maxiter=8, check_every=8, M=M)
    M = there.ridge_inverse if preconditioned else None
    expected = cg(there, b, rtol=0.0, maxiter=8, check_every=8, M=M)
    assert result.num_iters == expected.num_iters == 8
    torch.testing.assert_close(result.x.cpu(), expected.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ops_of_an_iteration_can_be_recorded(kind):
    operator = make_operator(GaussNewtonOperator, "cuda", kind=kind)
    b = normal(operator).cuda()

    def start():
        x, r, p = torch.zeros_like(b), b.clone(), b.clone()
        return x, r, p, torch.empty_like(b), torch.stack([ops.dot(r, r), ops.dot(r, r)])

    def iterate(x, r, p, ap, dots):
        operator.matvec_into(p, ap)
        before = dots[0].clone()
        ops.cg_update(x, r, p, ap, before / ops.dot(p, ap), None, dots)
        ops.cg_direction(p, r, dots[0] / before, None)

    with torch.inference_mode():
        eager, state = start(), start()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            iterate(*state)
        torch.cuda.current_stream().wait_stream(stream)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            iterate(*state)
        for _ in range(4):
            recording.replay()
        for _ in range(5):
            iterate(*eager)
        assert all(map(torch.equal, eager, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check_every", [1, 10])
def test_cg_solves_as_on_the_cpu(kind, check_every):
    here, there = (make_operator(GaussNewtonOperator, d, kind=kind) for d in ("cuda", "cpu"))
    b = normal(there)
    result = cg(here, b.cuda(), rtol=1e-10, M=here.ridge_inverse, check_every=check_every)
    expected = cg(there, b, rtol=1e-10, M=there.ridge_inverse)
    assert result.converged
    assert expected.converged
    torch.testing.assert_close(result.x.cpu(), expected.x, rtol=1e-8, atol=1e-8)


PRECONDITIONERS = (
    row_jacobi,
    JacobiPreconditioner,
    BlockJacobiPreconditioner,
    NystromPreconditioner,
)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", PRECONDITIONERS)
def test_preconditioners_are_made_on_the_device(make, kind, rows):
    here, there = (
        make_operator(GaussNewtonOperator, d, kind=kind, rows=rows) for d in ("cuda", "cpu")
    )
    b = normal(there)
    result = cg(here, b.cuda(), rtol=1e-10, M=make(here))
    expected = cg(there, b, rtol=1e-10, M=make(there), check_every=10)
    assert result.converged
    assert result.num_iters == expected.num_iters
    torch.testing.assert_close(result.x.cpu(), expected.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pruning", [None, Pruning(hops=1, keep=0.6)], ids=["all", "pruned"])
@pytest.mark.parametrize("damping", ["auto", 0.5])
@pytest.mark.parametrize("method", ["influence", "newton", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_unlearning_gives_the_model_of_the_cpu(kind, method, damping, pruning):
    model, data, objective = make_problem("isolated", kind=kind)
    forget = Forget(users=[2], interactions=[0, 5])
    options = {"method": method, "damping": damping, "pruning": pruning, "rtol": 1e-9}
    here, there = (
        unlearn(model.to(d), data.to(d), forget, objective=objective, **options)
        for d in ("cuda", "cpu")
    )
    assert here.model.embedding.device.type == "cuda"
    assert here.report.method == there.report.method
    torch.testing.assert_close(
        here.model.embedding.cpu(), there.model.embedding, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_training_runs_on_the_device(kind):
    _, data, objective = make_problem("isolated", kind=kind)
    here, there = (
        train(data.to(d), objective, kind=kind, dim=4, epochs=1) for d in ("cuda", "cpu")
    )
    assert here.model.embedding.device.type == "cuda"
    torch.testing.assert_close(
        here.model.embedding.cpu(), there.model.embedding, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["mf", "lightgcn-stopped"])
def test_the_benchmark_of_unlearning_runs_on_the_device(name, tmp_path):
    case = next(case for case in CASES if (case.data, case.name) == ("tiny", name))
    sections = []
    for device in map(torch.device, ("cuda", "cpu")):
        settings = UnlearningSettings(
            cases=[case],
            requests=["1-user"],
            methods=["auto"],
            seeds=1,
            models=tmp_path,
            sequential=0,
            threads=1,
            device=device,
        )
        report = run_unlearning(settings, lambda _: None, lambda _: None)
        assert all(section["device"] == device.type for section in report["sections"])
        sections.append(report["sections"])
    for here, there in zip(*sections, strict=True):
        got, expected = here["methods"][0], there["methods"][0]
        for model in ("original", "unlearned"):
            for key in ("distance_forget", "distance_test", "forget_loss"):
                pair = (row["verification"][model][key] for row in (got, expected))
                assert next(pair) == pytest.approx(next(pair), abs=1e-3)
