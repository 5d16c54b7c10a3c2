"""Differentiable functions: every transform against autograd of the twin in plain torch."""

from __future__ import annotations

import pytest
import torch
from graphs import make_adjacency, make_triples
from problems import autograd_objective, make_problem
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ifru_ext import BipartiteGraph, HessianOperator, functional, reference
from ifru_ext.objective import Loss

# torch's forward mode and compiler load parts that use torch.jit, and warn of that themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

GRAPHS = ("empty", "one_edge", "isolated", "duplicates", "hub")
ALPHA = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
DIM = 2


def normal(shape, seed, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=g, dtype=torch.float64)


def uniform(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pointwise_case(name, graph, loss, weighted):
    a = make_adjacency(graph)
    label = uniform(a.n_interactions, 1)
    options = {"weight": uniform(a.n_interactions, 2) if weighted else None, "loss": loss}
    owner = torch.repeat_interleave(torch.arange(a.n_nodes), a.rowptr.diff())
    first = owner < a.n_users
    order = torch.argsort(a.edge[first])
    ends = owner[first][order], a.neighbor[first].long()[order]

    def twin_loss(f):
        constants = label, options["weight"], Loss.parse(loss).value
        return reference.pointwise_derivatives(*ends, f, *constants)[0].sum()

    twin = twin_loss if name == "pointwise_loss" else func.grad(twin_loss)
    return lambda f: getattr(functional, name)(a, label, f, **options), twin, a.n_nodes


def pairwise_case(name, graph, weighted):
    t = make_triples(make_adjacency(graph))
    weight = uniform(t.n_triples, 2) if weighted else None
    ordered = t.order(weight) if weighted else None

    def twin_loss(f):
        return reference.pairwise_derivatives(*t.nodes(), f, ordered)[0].sum()

    twin = twin_loss if name == "pairwise_loss" else func.grad(twin_loss)
    return lambda f: getattr(functional, name)(t, f, weight=weight), twin, t.n_nodes


def propagate_case(graph):
    a = make_adjacency(graph)
    degree = a.degrees().double()
    s = torch.where(degree > 0, degree.rsqrt(), 0.0)
    g = BipartiteGraph(a)
    return (
        lambda x: functional.propagate(g, x, ALPHA),
        lambda x: reference.propagate(a.rowptr, a.neighbor, s, x, ALPHA),
        a.n_nodes,
    )


def objective_case(graph, kind, **options):
    model, data, objective = make_problem(graph, kind=kind, dim=DIM, **options)
    return (
        lambda e: functional.objective_value(objective, model, data, e),
        lambda e: autograd_objective(model, data, objective, e),
        data.n_nodes,
    )


FUNCTIONS = {
    "propagate": propagate_case,
    "loss bce": lambda graph: pointwise_case("pointwise_loss", graph, "bce", True),
    "loss mse": lambda graph: pointwise_case("pointwise_loss", graph, "mse", False),
    "gradient bce": lambda graph: pointwise_case("pointwise_gradient", graph, "bce", False),
    "gradient mse": lambda graph: pointwise_case("pointwise_gradient", graph, "mse", True),
    "loss bpr": lambda graph: pairwise_case("pairwise_loss", graph, True),
    "gradient bpr": lambda graph: pairwise_case("pairwise_gradient", graph, False),
    "objective mf": lambda graph: objective_case(graph, "mf", loss="mse", reduction="mean"),
    "objective lightgcn": lambda graph: objective_case(graph, "lightgcn", weighted=True),
}


def make_case(function, graph):
    """(function, its twin, x, direction of x, direction of the output)."""
    f, twin, n_nodes = FUNCTIONS[function](graph)
    x = normal((n_nodes, DIM), 3, 0.7)
    return f, twin, x, normal(x.shape, 4), normal(twin(x).shape, 5)


def scalar(f, u):
    """A function into the numbers that is curved even where f is linear."""
    return lambda x: (u * torch.sin(f(x) / 16)).sum()


def double_backward(f, x, v, u):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(f, u)(x), x, create_graph=True)
    return torch.autograd.grad((gradient * v).sum(), x)[0]


def forward_mode(f, x, v, u):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


def hvp(f, u):
    return lambda x, v: func.jvp(func.grad(scalar(f, u)), (x,), (v,))[1]


def third(f, x, v, u):
    return func.grad(lambda y: (v * func.vjp(func.grad(scalar(f, u)), y)[1](v)[0]).sum())(x)


def fourth(f, x, v, u):
    return func.grad(lambda y: func.jvp(lambda z: hvp(f, u)(z, v), (y,), (v,))[1].sum())(x)


TRANSFORMS = {
    "value": lambda f, x, v, u: f(x),
    "grad": lambda f, x, v, u: func.grad(scalar(f, u))(x),
    "vjp": lambda f, x, v, u: func.vjp(f, x)[1](u)[0],
    "jvp": lambda f, x, v, u: func.jvp(f, (x,), (v,))[1],
    "forward mode": forward_mode,
    "vmap": lambda f, x, v, u: func.vmap(f, in_dims=2)(torch.stack([x, v, x - v], 2)),
    "vmap of grad": lambda f, x, v, u: func.vmap(func.grad(scalar(f, u)))(torch.stack([x, v])),
    "grad of vmap": lambda f, x, v, u: func.grad(
        lambda both: (func.vmap(scalar(f, u))(both) ** 2).sum()
    )(torch.stack([x, v])),
    "double backward": double_backward,
    "forward over reverse": lambda f, x, v, u: hvp(f, u)(x, v),
    "reverse over forward": lambda f, x, v, u: func.grad(
        lambda y: func.jvp(scalar(f, u), (y,), (v,))[1]
    )(x),
    "forward over forward": lambda f, x, v, u: func.jvp(
        lambda y: func.jvp(scalar(f, u), (y,), (v,))[1], (x,), (v,)
    )[1],
    "reverse over reverse": lambda f, x, v, u: func.vjp(func.grad(scalar(f, u)), x)[1](v)[0],
    "vmap of hvp": lambda f, x, v, u: func.vmap(hvp(f, u), in_dims=(None, 0))(
        x, torch.stack([x, v])
    ),
    "third": third,
    "fourth": fourth,
}
MATRICES = {
    "jacrev": lambda f, x, v, u: func.jacrev(f)(x),
    "jacfwd": lambda f, x, v, u: func.jacfwd(f)(x),
    "hessian": lambda f, x, v, u: func.hessian(scalar(f, u))(x),
    "jacrev of grad": lambda f, x, v, u: func.jacrev(func.grad(scalar(f, u)))(x),
}


def assert_close(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * scale)


# "empty" has no interaction and hence no objective.
TABLE = [
    (function, graph)
    for function in FUNCTIONS
    for graph in GRAPHS
    if graph != "empty" or not function.startswith("objective")
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("function", "graph"), TABLE)
def test_transform_matches_the_twin(function, graph, transform):
    f, twin, x, v, u = make_case(function, graph)
    apply = TRANSFORMS[transform]
    assert_close(apply(f, x, v, u), apply(twin, x, v, u))


# The hub's matrices are as large as the others' together.
@pytest.mark.parametrize("transform", MATRICES)
@pytest.mark.parametrize(("function", "graph"), [row for row in TABLE if row[1] != "hub"])
def test_matrix_matches_the_twin(function, graph, transform):
    f, twin, x, v, u = make_case(function, graph)
    apply = MATRICES[transform]
    assert_close(apply(f, x, v, u), apply(twin, x, v, u))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
@pytest.mark.parametrize("function", FUNCTIONS)
def test_linearize_matches_jvp(function):
    f, _, x, v, u = make_case(function, "isolated")
    product = func.linearize(func.grad(scalar(f, u)), x)[1]
    for direction in (v, x):
        assert_close(product(direction), hvp(f, u)(x, direction))


@pytest.mark.parametrize("graph", ["one_edge", "duplicates"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradcheck(function, graph):
    f, _, x, _, _ = make_case(function, graph)
    x.requires_grad_()
    # The finite differences of gradgradcheck are themselves made of our gradients.
    options = {"check_batched_grad": True, "fast_mode": True}
    assert gradcheck(
        f,
        x,
        check_forward_ad=True,
        check_backward_ad=True,
        check_batched_forward_grad=True,
        **options,
    )
    assert gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True, **options)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_jvp_is_the_adjoint_of_vjp_and_not_zero(function):
    f, _, x, v, u = make_case(function, "isolated")
    forward = (u * func.jvp(f, (x,), (v,))[1]).sum()
    backward = (func.vjp(f, x)[1](u)[0] * v).sum()
    assert abs(float(forward)) > 1e-3
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_jacobians_of_both_modes_agree(function):
    f, _, x, _, _ = make_case(function, "duplicates")
    assert_close(func.jacrev(f)(x), func.jacfwd(f)(x))


@pytest.mark.parametrize("kind", ["mf", "lightgcn"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_second_derivatives_are_the_hessian_operator(loss, kind):
    model, data, objective = make_problem("power_law", kind=kind, loss=loss, weighted=True)
    phi = functional.ObjectiveFunction(objective, model, data)
    e, v = model.embedding, normal(model.embedding.shape, 4)
    expected = HessianOperator(model, data, objective).matvec(v)
    assert float(phi(e)) == pytest.approx(objective.value(model, data), rel=1e-12)
    assert_close(func.grad(phi)(e), objective.gradient(model, data))
    assert_close(func.jvp(func.grad(phi), (e,), (v,))[1], expected)
    assert_close(torch.autograd.functional.hvp(phi, e, v)[1], expected)
    assert_close(torch.autograd.functional.vhp(phi, e, v)[1], expected)


class Recorder(TorchDispatchMode):
    """Names of the ops that run."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(str(op).removesuffix(".default"))
        return op(*args, **(kwargs or {}))

    def __enter__(self):
        self.names = []
        return super().__enter__()


@pytest.mark.parametrize("family", ["pointwise", "pairwise"])
def test_double_backward_is_one_fused_product(family):
    a = make_adjacency("isolated")
    f = normal((a.n_nodes, DIM), 0).requires_grad_()
    with Recorder() as first:
        if family == "pointwise":
            value = functional.pointwise_loss(a, uniform(a.n_interactions, 1), f)
        else:
            value = functional.pairwise_loss(make_triples(a), f)
        (gradient,) = torch.autograd.grad(value, f, create_graph=True)
    with Recorder() as second:
        (product,) = torch.autograd.grad(gradient, f, torch.ones_like(f))
    assert [n for n in first.names if n.startswith("ifru_ext")] == [
        f"ifru_ext.{family}_derivatives",
        f"ifru_ext.{family}_gradient",
    ]
    assert [n for n in second.names if n.startswith("ifru_ext")] == [f"ifru_ext.{family}_hvp"]
    # Nothing is gathered or scattered per interaction.
    assert not [n for n in second.names if "index" in n]
    assert not product.requires_grad


def test_gradients_reach_a_parameter_through_a_module():
    model, data, objective = make_problem("isolated", kind="lightgcn", dim=DIM)
    leaf = model.embedding.clone().requires_grad_()
    value = functional.objective_value(objective, model, data, 2 * leaf)
    assert value.requires_grad
    value.backward()
    twin = autograd_objective(model, data, objective, 2 * leaf)
    assert_close(leaf.grad, torch.autograd.grad(twin, leaf)[0])
    with torch.no_grad():
        assert not functional.objective_value(objective, model, data, leaf).requires_grad


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_stays_float32(function):
    f, twin, x, v, u = make_case(function, "isolated")
    for name in ("value", "grad", "vjp", "jvp", "third"):
        low = [t.float() for t in (x, v, u)]
        got = TRANSFORMS[name](f, *low)
        assert got.dtype == torch.float32
        expected = TRANSFORMS[name](twin, *(t.double() for t in low))
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * scale)


def test_indices_are_made_inside_of_transforms():
    # They are made at their first use: here inside of three transforms, which they must outlive.
    model, data, objective = make_problem("isolated", kind="lightgcn", dim=DIM)
    assert "adjacency" not in vars(data)

    def phi(e):
        return functional.objective_value(objective, model, data, e)

    hessian = func.vmap(func.jacfwd(func.grad(phi)))(model.embedding[None])[0]
    assert_close(hessian, func.hessian(phi)(model.embedding))
    assert torch.equal(data.adjacency.degrees(), data.degrees())

    a = make_adjacency("isolated")
    label = uniform(a.n_interactions, 1)
    f = normal((a.n_nodes, DIM), 0)
    gradient = func.grad(lambda f: functional.pointwise_loss(a, label, f))(f)
    assert_close(gradient, functional.pointwise_gradient(a, label, f))
    assert a.stream().edge.numpy().shape == (a.n_interactions,)


# --- constants ------------------------------------------------------------------------------------


def constant_call(function, name):
    """(the function of one of its constants, a value of the constant)."""
    a = make_adjacency("isolated")
    f = normal((a.n_nodes, DIM), 0)
    values = {"label": uniform(a.n_interactions, 1), "weight": uniform(a.n_interactions, 2)}
    if function == "propagate":
        return lambda alpha: functional.propagate(BipartiteGraph(a), f, alpha), ALPHA
    if function.startswith("pairwise"):
        t = make_triples(a)
        return lambda c: getattr(functional, function)(t, f, weight=c), values[name]

    def call(value):
        constants = {**values, name: value}
        return getattr(functional, function)(a, features=f, **constants)

    return call, values[name]


CONSTANTS = [
    ("propagate", "alpha"),
    ("pointwise_loss", "label"),
    ("pointwise_loss", "weight"),
    ("pointwise_gradient", "label"),
    ("pointwise_gradient", "weight"),
    ("pairwise_loss", "weight"),
    ("pairwise_gradient", "weight"),
]


@pytest.mark.parametrize(("function", "name"), CONSTANTS)
def test_derivative_by_a_constant_is_refused(function, name):
    call, value = constant_call(function, name)
    tries = (
        lambda: call(value.clone().requires_grad_()),
        lambda: func.grad(lambda c: call(c).sum())(value),
        lambda: func.jvp(call, (value,), (value,)),
        lambda: func.jacfwd(func.vmap(call))(value[None]),
        lambda: forward_mode(call, value, value, None),
    )
    for attempt in tries:
        with pytest.raises(NotImplementedError, match=rf"{name}: expected a constant") as caught:
            attempt()
        assert f"call {name}.detach()" in str(caught.value)
    with torch.no_grad():
        assert torch.equal(call(value.clone().requires_grad_()), call(value))


@pytest.mark.parametrize("call", ["label", "weight", "weight of a triple"])
def test_mixed_derivative_by_a_constant_is_refused(call):
    a = make_adjacency("isolated")
    f, c = normal((a.n_nodes, DIM), 0), uniform(a.n_interactions, 1)
    name, t = call.split()[0], make_triples(a)
    call = {
        "label": lambda f, c: functional.pointwise_loss(a, c, f),
        "weight": lambda f, c: functional.pointwise_loss(a, torch.ones_like(c), f, weight=c),
        "weight of a triple": lambda f, c: functional.pairwise_loss(t, f, weight=c),
    }[call]
    ones = torch.ones_like(f), torch.ones_like(c)

    def both(f, c):
        return func.jvp(func.grad(call), (f, c), ones)

    for attempt in (both, func.jacfwd(func.grad(call), argnums=1), func.grad(call, argnums=1)):
        with pytest.raises(NotImplementedError, match=f"{name}: expected a constant"):
            attempt(f, c)


@pytest.mark.parametrize(("function", "name"), CONSTANTS)
def test_constants_can_be_batched(function, name):
    call, value = constant_call(function, name)
    both = torch.stack([value, value / 2])
    assert_close(func.vmap(call)(both), torch.stack([call(c) for c in both]))


# --- errors ---------------------------------------------------------------------------------------


def test_bad_arguments_give_one_sentence():
    model, data, objective = make_problem("isolated", dim=DIM)
    a, graph = data.adjacency, BipartiteGraph.from_interactions(data)
    f, label, t = model.embedding, data.label, make_triples(a)
    tries = [
        (lambda: functional.propagate(graph, f[1:], ALPHA), r"x: expected shape \[27, any\], got"),
        (lambda: functional.propagate(graph, f.half(), ALPHA), "Half"),
        (lambda: functional.propagate(graph, f, ALPHA.float()), "alpha: expected a float64 tensor"),
        (
            lambda: functional.pointwise_loss(a, label, f[0]),
            r"features: expected shape \[27, any\]",
        ),
        (lambda: functional.pointwise_loss(a, label[1:], f), r"label: expected shape \[60\]"),
        (
            lambda: functional.pointwise_gradient(a, label, f, weight=label[1:]),
            r"weight: expected shape \[60\]",
        ),
        (lambda: functional.pairwise_loss(t, f[0]), r"features: expected shape \[27, any\]"),
        (
            lambda: functional.pairwise_gradient(t, f, weight=label[1:]),
            r"weight: expected shape \[60\], got \[59\]",
        ),
        (lambda: functional.pointwise_loss(a, label, f, loss="bpr"), "loss: expected one of"),
        (
            lambda: functional.objective_value(objective, model, data, f[:, 0]),
            r"embedding: expected shape \[27, any\], got \[27\]",
        ),
        (
            lambda: functional.objective_value(objective, model, data.with_labels(3 + label), f),
            r"label: expected values in \[0, 1\]",
        ),
        (
            lambda: func.vmap(lambda x: functional.pointwise_loss(a, label, x))(f[None][:0]),
            "vmap: expected a batch of at least one element, got none",
        ),
    ]
    for attempt, text in tries:
        with pytest.raises(ValueError, match=text) as caught:
            attempt()
        assert "\n" not in str(caught.value)


# --- torch.compile --------------------------------------------------------------------------------


def prepared_case(function):
    """As make_case; what a compiler cannot look into is prepared outside."""
    if function.startswith("objective"):
        model, data, objective = make_problem("isolated", kind=function.split()[1], dim=DIM)
        f = functional.ObjectiveFunction(objective, model, data)
        x = model.embedding
        return f, x, normal(x.shape, 4), normal((), 5)
    f, _, x, v, u = make_case(function, "isolated")
    f(x)
    return f, x, v, u


def compiled(f, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(f, backend=backend, fullgraph=True, **options)


COMPILED_FUNCTIONS = (
    "propagate",
    "loss bce",
    "gradient mse",
    "loss bpr",
    "gradient bpr",
    "objective lightgcn",
)


@pytest.mark.parametrize("function", COMPILED_FUNCTIONS)
def test_compiled_forward_and_backward(function):
    f, x, _, u = prepared_case(function)
    g = compiled(f)
    assert_close(g(x), f(x))
    x = x.clone().requires_grad_()
    expected = torch.autograd.grad(f(x), x, u)[0]
    assert_close(torch.autograd.grad(g(x), x, u)[0], expected)
    # Twice as many features, traced with symbolic shapes: the same.
    wide = torch.cat([x, -x], 1).detach()
    assert_close(compiled(f, dynamic=True)(wide), f(wide))


@pytest.mark.parametrize("transform", ["vjp", "jvp", "vmap", "forward over reverse"])
@pytest.mark.parametrize("function", COMPILED_FUNCTIONS)
def test_transforms_inside_of_a_compiled_function(function, transform):
    f, x, v, u = prepared_case(function)
    apply = TRANSFORMS[transform]
    assert_close(compiled(lambda x, v: apply(f, x, v, u))(x, v), apply(f, x, v, u))


def test_compiled_double_backward_is_refused():
    f, x, _, _ = prepared_case("objective lightgcn")
    x = x.clone().requires_grad_()

    def attempt():
        (gradient,) = torch.autograd.grad(compiled(f)(x), x, create_graph=True)
        torch.autograd.grad(gradient.sum(), x)

    with pytest.raises(RuntimeError, match=r"create_graph|double backward"):
        attempt()


def test_compiled_derivative_by_a_constant_is_refused():
    call, value = constant_call("pointwise_loss", "label")
    call(value)
    with pytest.raises(Exception, match="label: expected a constant"):
        compiled(call)(value.clone().requires_grad_())


def test_compiling_needs_a_stream():
    call, value = constant_call("pointwise_loss", "label")
    with pytest.raises(Exception, match=r"adjacency: expected one whose stream\(\) was called"):
        compiled(call)(value)


def test_compiled_by_inductor():
    f, x, _, u = prepared_case("propagate")
    x = x.clone().requires_grad_()
    expected = torch.autograd.grad(f(x), x, u)[0]
    assert_close(torch.autograd.grad(compiled(f, backend="inductor")(x), x, u)[0], expected)
