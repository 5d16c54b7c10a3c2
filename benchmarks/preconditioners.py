"""What each preconditioner saves on an influence step's system, and what it costs.

Run: python benchmarks/preconditioners.py [--threads 2] [--repeats 5]; IFRU_EXT_DATA may name a
folder with ml-1m.npz. Prints the table that NOTES.md quotes from.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ifru_ext import (
    BlockJacobiPreconditioner,
    GaussNewtonOperator,
    Interactions,
    JacobiPreconditioner,
    NystromPreconditioner,
    Objective,
    cg,
    row_jacobi,
    train,
)
from ifru_ext.datasets import synthetic

RTOL = 1e-4
REGULARISERS = {
    "l2 0.5": Objective(l2=0.5),
    "l2 0.05, per sample 0.01": Objective(l2=0.05, l2_per_sample=0.01),
}
PRECONDITIONERS: dict[str, Callable[[GaussNewtonOperator], object]] = {
    "none": lambda A: None,
    "ridge": lambda A: A.ridge_inverse,
    "row Jacobi": row_jacobi,
    "Jacobi": JacobiPreconditioner,
    "blocks": BlockJacobiPreconditioner,
    "Nystrom 50": lambda A: NystromPreconditioner(A, 50),
}


def data_sets() -> dict[str, Interactions]:
    found = {"synthetic, shape of ML-100K": synthetic(seed=0)}
    path = Path(os.environ.get("IFRU_EXT_DATA", "")) / "ml-1m.npz"
    if path.is_file():
        with np.load(path) as arrays:
            label = (arrays["rating"] >= 4).astype(np.float32)
            found["ML-1M"] = Interactions(arrays["user"], arrays["item"], label)
    return found


def seconds(run: Callable[..., object], *args: object, **options: object) -> float:
    start = time.perf_counter()
    run(*args, **options)
    return time.perf_counter() - start


def measure(name: str, data: Interactions, kind: str, dim: int, repeats: int) -> None:
    for regulariser, objective in REGULARISERS.items():
        epochs = 6 if len(data) < 500_000 else 3
        trained = train(
            data, objective, kind=kind, dim=dim, n_layers=2, epochs=epochs, batch_size=8192
        )
        point = objective.linearize(trained.model, data)
        A = GaussNewtonOperator.at(point)
        # What one row in a hundred contributed to the gradient.
        forgotten = torch.rand(len(data), generator=torch.Generator().manual_seed(0)) < 0.01
        g = objective.gradient(trained.model, data.subset(forgotten))
        made = {key: make(A) for key, make in PRECONDITIONERS.items()}
        results = {key: cg(A, g, rtol=RTOL, M=M, maxiter=3000) for key, M in made.items()}
        build: dict[str, list[float]] = {key: [] for key in made}
        solve: dict[str, list[float]] = {key: [] for key in made}
        for _ in range(repeats):
            for key, make in PRECONDITIONERS.items():
                build[key].append(seconds(make, A))
                solve[key].append(seconds(cg, A, g, rtol=RTOL, M=made[key]))
        for key, result in results.items():
            cells = (
                *(name, f"{kind} d={dim}", regulariser, key, str(result.num_iters)),
                f"{1e3 * statistics.median(solve[key]):.0f}",
                f"{1e3 * statistics.median(build[key]):.0f}",
                result.reason.name,
            )
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| data | model | ridge | M | iterations | solve, ms | made in, ms | reason |")
    print("|---|---|---|---|---:|---:|---:|---|")
    for name, data in data_sets().items():
        for kind, dim in (("mf", 32), ("mf", 64), ("lightgcn", 32)):
            measure(name, data, kind, dim, options.repeats)


if __name__ == "__main__":
    main()
