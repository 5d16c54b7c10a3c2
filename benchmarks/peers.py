"""Hessian-vector products and their inverse by other libraries, beside ours; renews peers.json.

Run by `make peers`, in an environment of its own. Each library computes the same sum of binary
cross-entropies of a matrix factorisation over all interactions at once, through a module or a
function, at the setting that was fastest or could be made to stop where the others do:

- curvlinops: forward over reverse, without its check for determinism; conjugate gradients of
  `linear_operator` by tolerance;
- dattri: reverse over reverse on a kept graph, and forward over reverse. Its conjugate gradients
  take a number of iterations: that which reaches the tolerance from where it starts;
- pyDVL: the gradient kept with its graph; for conjugate gradients, which take an operator, its
  Hessian operator. The batch is handed over whole: a `DataLoader` would collate single rows. It
  stops at an absolute residual of `atol` squared, which is set to what is asked for.

DGL (2.1.0 on PyPI) is not among them: its wheels hold libraries for torch 2.0.0 to 2.2.1, and it
cannot be imported beside a newer one. Ratios are of processor time, which other work on the machine
changes least: a long call waits for it more often than a short one.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from curvlinops import CGInverseLinearOperator, HessianLinearOperator
from curvlinops.examples import IdentityLinearOperator
from dattri.func.hessian import hvp_at_x, ihvp_at_x_cg
from pydvl.influence.torch import functional as pydvl_functional
from pydvl.influence.torch.operator import CgOperator as PyDVLCg
from pydvl.influence.torch.operator import HessianOperator as PyDVLHessian
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ifru_ext import HessianOperator, MatrixFactorization, Objective, cg
from ifru_ext.bench.contenders import HVP
from ifru_ext.bench.problems import HESSIAN, HvpProblem, relative_error
from ifru_ext.bench.shapes import SHAPES, load_shape
from ifru_ext.bench.timing import Call, clock_of, interleave, processor, thread_section
from ifru_ext.environment import environment
from ifru_ext.files import write_atomic

PEERS = ("curvlinops-for-pytorch", "dattri", "pyDVL")
INVERSE = "inverse hessian"
TOLERANCE = 1e-4  # of the product's error, and of the solution's relative residual
# Two solvers that stop at one residual may overshoot, or fall short by the rounding of float32.
SLACK = 1.1
MAXITER = 1000


class Problem(HvpProblem):
    """A product, and a system with a positive definite matrix H + mu I.

    mu exceeds the spectral norm of H's part with the residuals, and the rest is Gauss-Newton's.
    """

    @cached_property
    def damping(self) -> float:
        residual, data = self.derivatives[0].double().numpy(), self.data
        matrix = coo_array((residual, (data.user.numpy(), data.item.numpy())), shape=data.shape)
        norm = svds(matrix.tocsr(), k=1, return_singular_vectors=False, rng=0)
        return float(1.1 * norm[0])

    def operator(self, dtype: torch.dtype) -> HessianOperator:
        users, items = self.f.to(dtype).split(self.data.shape)
        model = MatrixFactorization(users, items)
        return HessianOperator(model, self.data, Objective("bce"), damping=self.damping)

    def residual(self, x: Tensor) -> float:
        """Of a solution, relative to the right-hand side, in float64."""
        return relative_error(self.operator(torch.float64).matvec(x.double()), self.z.double())

    @cached_property
    def iterations(self) -> int:
        """That conjugate gradients take from z itself to the tolerance: dattri starts there."""
        found = cg(self.operator(torch.float32), self.z, x0=self.z, rtol=TOLERANCE, check_every=1)
        return found.num_iters

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """[E, 2] nodes and [E] labels, in the order of users: the best for autograd's gathers."""
        edge = self.by_user.edge
        nodes = torch.stack([self.data.user, self.data.item + self.data.n_users], dim=1)
        return nodes[edge], self.data.label[edge]

    @cached_property
    def module(self) -> Factorization:
        return Factorization(self.f)

    def loss(self, parameters: Tensor) -> Tensor:
        """Of a flat vector of parameters."""
        nodes, label = self.rows
        return loss_sum(scores(parameters.view_as(self.f), nodes), label)


class Factorization(torch.nn.Module):
    def __init__(self, f: Tensor) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(f.clone())

    def forward(self, nodes: Tensor) -> Tensor:
        return scores(self.embedding, nodes)


def scores(f: Tensor, nodes: Tensor) -> Tensor:
    return (f.index_select(0, nodes[:, 0]) * f.index_select(0, nodes[:, 1])).sum(1)


def loss_sum(score: Tensor, label: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(score, label, reduction="sum")


class Contender(NamedTuple):
    name: str
    product: str
    prepare: Callable[[Problem], Call]


def curvlinops_hessian(p: Problem) -> HessianLinearOperator:
    loss = torch.nn.BCEWithLogitsLoss(reduction="sum")
    parameters = list(p.module.parameters())
    return HessianLinearOperator(
        p.module, loss, parameters, [p.rows], check_deterministic=False, num_data=p.n_interactions
    )


def curvlinops_product(p: Problem) -> Call:
    hessian = curvlinops_hessian(p)
    return lambda: (hessian @ [p.z])[0]


def curvlinops_solve(p: Problem) -> Call:
    identity = IdentityLinearOperator([p.f.shape], p.device, p.f.dtype)
    matrix = curvlinops_hessian(p) + p.damping * identity
    inverse = CGInverseLinearOperator(matrix, tolerance=TOLERANCE, max_iter=MAXITER)

    def solve() -> Tensor:
        (x,) = inverse @ [p.z]
        return x.detach()

    return solve


def dattri_product(mode: str) -> Callable[[Problem], Call]:
    def prepare(p: Problem) -> Call:
        multiply = hvp_at_x(p.loss, (p.f.flatten(),), mode=mode)
        return lambda: multiply(p.z.flatten()).view_as(p.z).detach()

    return prepare


def dattri_solve(p: Problem) -> Call:
    solve = ihvp_at_x_cg(
        p.loss, p.f.flatten(), max_iter=p.iterations, mode="rev-rev", regularization=p.damping
    )
    return lambda: solve(p.z.flatten()).view_as(p.z).detach()


def pydvl_product(p: Problem) -> Call:
    multiply = pydvl_functional.create_hvp_function(
        p.module, loss_sum, [p.rows], precompute_grad=True, use_average=False
    )
    return lambda: multiply(p.z.flatten()).view_as(p.z)


def pydvl_solve(p: Problem) -> Call:
    solver = PyDVLCg(
        PyDVLHessian(p.module, loss_sum, [p.rows]),
        regularization=p.damping,
        rtol=0.0,
        atol=float(TOLERANCE * p.z.norm()) ** 0.5,
        maxiter=MAXITER,
    )
    return lambda: solver.apply(p.z.flatten()).view_as(p.z).detach()


def ours_solve(p: Problem) -> Call:
    operator = p.operator(torch.float32)
    return lambda: cg(operator, p.z, rtol=TOLERANCE, maxiter=MAXITER).x


OURS = {c.name: c.prepare for c in HVP}
CONTENDERS = (
    Contender("ours", HESSIAN, OURS["ours"]),
    Contender("double_backward", HESSIAN, OURS["double_backward"]),
    Contender("curvlinops", HESSIAN, curvlinops_product),
    Contender("dattri, rev-rev", HESSIAN, dattri_product("rev-rev")),
    Contender("dattri, rev-fwd", HESSIAN, dattri_product("rev-fwd")),
    Contender("pyDVL", HESSIAN, pydvl_product),
    Contender("ours, cg", INVERSE, ours_solve),
    Contender("curvlinops, cg", INVERSE, curvlinops_solve),
    Contender("dattri, cg", INVERSE, dattri_solve),
    Contender("pyDVL, cg", INVERSE, pydvl_solve),
)


def section(problem: Problem, n_threads: int, repeats: int) -> dict[str, Any]:
    """Checks and times all contenders on one problem; a product's take turns."""
    rows: list[dict[str, Any]] = []
    skipped = []
    clock = clock_of(problem.device)
    problem.reference(HESSIAN)
    with thread_section(n_threads) as core:
        for product in (HESSIAN, INVERSE):
            calls, checked = {}, {}
            for c in (c for c in CONTENDERS if c.product == product):
                try:
                    call = c.prepare(problem)
                    checked[c.name] = accuracy(problem, product, call())
                except RuntimeError as error:
                    skipped.append({"name": c.name, "reason": str(error).splitlines()[0]})
                    continue
                calls[c.name] = call
            memory = {name: clock.extra_memory(call) for name, call in calls.items()}
            timings = interleave(calls, repeats, warm_up=False, clock=clock)
            times = {name: timing.to_json() for name, timing in timings.items()}
            ours = next(iter(times.values()))["cpu_ms"]
            rows += [
                {
                    "name": name,
                    "product": product,
                    **checked[name],
                    "extra_memory_bytes": memory[name],
                    **time,
                    "times_slower": time["cpu_ms"] / ours,
                }
                for name, time in times.items()
            ]
    return {"threads": n_threads, "pinned_core": core, "contenders": rows, "skipped": skipped}


def accuracy(problem: Problem, product: str, result: Tensor) -> dict[str, float]:
    """The error of a product, or the relative residual of a solution."""
    if product == HESSIAN:
        error = relative_error(result, problem.reference(product))
        if not error < TOLERANCE:
            raise SystemExit(f"peers: expected the reference's product, off by {error:.1e}")
        return {"relative_error": error}
    residual = problem.residual(result)
    if not residual < SLACK * TOLERANCE:
        raise SystemExit(f"peers: expected a residual of {TOLERANCE:.0e}, got {residual:.1e}")
    return {"residual": residual}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="ml-100k,B")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/peers.json"))
    options = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "peers",
        "environment": {
            **environment(torch.float32),
            "processor": processor(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            **{name: version(name) for name in PEERS},
        },
        "repeats": options.repeats,
        "sections": [],
    }
    for name in options.shapes.split(","):
        label, data = load_shape(SHAPES[name])
        problem = Problem(data, options.dim)
        sizes = {
            "shape": label,
            "n_users": data.n_users,
            "n_items": data.n_items,
            "n_interactions": len(data),
            "dim": options.dim,
            "damping": problem.damping,
            "iterations": problem.iterations,
        }
        report["sections"].append(sizes | section(problem, options.threads, options.repeats))
        write_atomic(options.json, (json.dumps(report, indent=2) + "\n").encode())
        print(*(json.dumps(row) for row in report["sections"][-1]["contenders"]), sep="\n")
        print(report["sections"][-1]["skipped"])


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        main()
