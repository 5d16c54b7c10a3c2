"""Real data of a million rows, where IFRU_EXT_DATA names a folder that has it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ifru_ext import (
    BipartiteGraph,
    HessianOperator,
    Interactions,
    MatrixFactorization,
    Objective,
    reference,
)


def load(name):
    """The arrays of a file as tensors."""
    folder = os.environ.get("IFRU_EXT_DATA")
    if folder is None:
        pytest.skip("IFRU_EXT_DATA names no folder with larger data")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) / dim**0.5


def relative_error(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


def test_hessian_product_on_ml_1m(threads):
    arrays = load("ml-1m.npz")
    user, item = (arrays[name][:200_000].long() for name in ("user", "item"))
    label = (arrays["rating"][:200_000] >= 4).float()
    n_users, n_items = int(arrays["user"].max()) + 1, int(arrays["item"].max()) + 1
    data = Interactions(user, item, label, n_users=n_users, n_items=n_items)
    objective = Objective(loss="bce", l2=0.3, l2_per_sample=0.01)
    embedding, v = normal(data.n_nodes, 32, 0), normal(data.n_nodes, 32, 1)
    single = embedding.float().split([n_users, n_items])

    def product(n_threads):
        threads(n_threads)
        operator = HessianOperator(MatrixFactorization(*single), data, objective)
        return operator.matvec(v.float())

    got = product(1)
    assert torch.equal(got, product(2))

    f, z = embedding.float().double(), v.float().double()
    u, i = data.user, data.item + n_users
    _, residual, curvature = reference.pointwise_derivatives(
        u, i, f, data.label.double(), None, loss=0
    )
    delta = (z[u] * f[i] + f[u] * z[i]).sum(1)
    expected = objective.ridge(data)[:, None] * z
    for here, there in ((u, i), (i, u)):
        terms = (curvature * delta)[:, None] * f[there] + residual[:, None] * z[there]
        expected.index_add_(0, here, terms)
    assert relative_error(got, expected) < 1e-5


def test_propagation_on_gowalla(threads):
    arrays = load("gowalla.npz")
    train = arrays["split"] < 2
    user, item = arrays["user"][train].long(), arrays["item"][train].long()
    data = Interactions(user, item)
    x = normal(data.n_nodes, 32, 0)
    alpha = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

    def propagated(n_threads):
        threads(n_threads)
        return BipartiteGraph.from_interactions(data).propagate(x.float(), alpha)

    got = propagated(1)
    assert torch.equal(got, propagated(2))

    degree = data.degrees().double()
    s = torch.where(degree > 0, degree.rsqrt(), 0.0)
    edges = torch.stack([user, item + data.n_users])
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    shape = (data.n_nodes, data.n_nodes)
    matrix = torch.sparse_coo_tensor(edges, s[edges[0]] * s[edges[1]], shape, check_invariants=True)
    matrix = matrix.coalesce()
    power = x.float().double()
    expected = float(alpha[0]) * power
    for weight in alpha[1:].tolist():
        power = matrix @ power
        expected = expected + weight * power
    assert relative_error(got, expected) < 1e-5
