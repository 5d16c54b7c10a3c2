"""What numbering users and items anew gains: a Hessian-vector product and a propagation.

Run: python benchmarks/reordering.py [--data D,gowalla,ml-1m] [--dim 64] [--threads 1]; the folder
of gowalla.npz and ml-1m.npz is IFRU_EXT_DATA. Interleaved, one call of each numbering in turn.
Writes benchmarks/results/reordering.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifru_ext import HessianOperator, Interactions, LightGCN, MatrixFactorization, Objective
from ifru_ext.bench.shapes import SHAPES, load_shape
from ifru_ext.bench.timing import interleave
from ifru_ext.environment import environment
from ifru_ext.files import write_atomic
from ifru_ext.graph import BipartiteGraph
from ifru_ext.reordering import ORDERS, reorder

RESULT = Path(__file__).parent / "results" / "reordering.json"


def load(name: str) -> Interactions:
    if name in SHAPES:
        return load_shape(SHAPES[name])[1]
    with np.load(Path(os.environ["IFRU_EXT_DATA"]) / f"{name}.npz") as arrays:
        rows = arrays["split"] == 0 if "split" in arrays else slice(None)
        return Interactions(arrays["user"][rows], arrays["item"][rows])


def numberings(data: Interactions) -> tuple[dict[str, Interactions], dict[str, float]]:
    """The data as they came, at random, and in each order; processor seconds of each order."""
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randperm(n, generator=generator) for n in data.shape)
    sizes = {"n_users": data.n_users, "n_items": data.n_items}
    found = {"given": data, "random": Interactions(user[data.user], item[data.item], **sizes)}
    seconds = {}
    for by in ORDERS:
        begin = time.process_time()
        found[by] = reorder(data, by).data
        seconds[by] = time.process_time() - begin
    return found, seconds


def measure(data: Interactions, dim: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    e, v = (torch.randn(data.n_nodes, dim, generator=generator) for _ in range(2))
    parts = 0.1 * e[: data.n_users], 0.1 * e[data.n_users :]
    found, seconds = numberings(data)
    calls = {}
    for name, rows in found.items():
        hessian = HessianOperator(MatrixFactorization(*parts), rows, Objective(l2=0.1))
        gcn = LightGCN(*parts, n_layers=1, graph=BipartiteGraph.from_interactions(rows))
        calls["hvp", name] = lambda h=hessian: h.matvec(v)
        calls["propagate", name] = lambda m=gcn: m.propagate(v)
    timings = interleave(calls, repeats)
    result: dict[str, Any] = {"interactions": len(data), "shape": list(data.shape)}
    for op in ("hvp", "propagate"):
        # By processor time, which other programs on the machine disturb least.
        given = min(timings[op, "given"].cpu)
        result[op] = {
            name: {
                **timings[op, name].to_json(),
                "share_of_given": min(timings[op, name].cpu) / given,
            }
            for name in found
        }
    return {**result, "order_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="D,gowalla,ml-1m")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"environment": environment(torch.float32), "dim": options.dim}
    for name in options.data.split(","):
        results[name] = measure(load(name), options.dim, options.repeats)
        for op in ("hvp", "propagate"):
            shares = {k: round(x["share_of_given"], 2) for k, x in results[name][op].items()}
            print(f"{name} {op}: of the time of the numbering as given: {shares}")
    write_atomic(RESULT, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
