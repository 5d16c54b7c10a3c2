"""The drop-in for IFRU's released scripts: what both modes reach on Book-Crossing, and their time.

Run: python benchmarks/compat.py [--seeds 1024,0,1] [--rounds 3] [--threads 1]. Needs the network
or the cached data set, and some minutes to train. Writes benchmarks/results/compat.json.

The scripts' recipe: 2 % of the training rows, flipped; matrix factorisation, d = 48, trained as the
scripts train; Adam's step 1e4. Compared, in turns: reference mode; the same loop with the product
by autograd, a double backward over all training rows; exact mode. The released scripts also make
their evaluation masks row by row in Python, which is timed once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ifru_ext import Interactions, MatrixFactorization, Objective, datasets
from ifru_ext.bench.timing import processor
from ifru_ext.bench.training import EarlyStopping, train_early_stopped
from ifru_ext.compat import ifru
from ifru_ext.environment import environment
from ifru_ext.files import write_atomic
from ifru_ext.verify import auc, distance, mean_loss

RESULT = Path(__file__).resolve().parent / "results" / "compat.json"
DIM = 48
LEARNING_RATE = 1e4
RETRAINED_SEEDS = (0, 1)
OBJECTIVE = Objective("bce")


class MF(nn.Module):
    """A model with the interface that the scripts' has."""

    def __init__(self, n_users: int, n_items: int) -> None:
        super().__init__()
        self.user_embeddings = nn.Embedding(n_users, DIM)
        self.item_embeddings = nn.Embedding(n_items, DIM)
        for table in (self.user_embeddings, self.item_embeddings):
            nn.init.normal_(table.weight, std=1e-3)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.user_embeddings(users) * self.item_embeddings(items)).sum(-1)

    def predict(self, users: Any, items: Any) -> Any:
        with torch.no_grad():
            return self(torch.from_numpy(users), torch.from_numpy(items)).numpy()

    def ours(self) -> MatrixFactorization:
        weights = self.user_embeddings.weight, self.item_embeddings.weight
        return MatrixFactorization(*(w.detach().clone() for w in weights))


class DoubleBackward:
    """The Hessian of the mean loss restricted to some rows, by autograd on a kept graph."""

    def __init__(
        self, model: MatrixFactorization, data: Interactions, objective: Objective, *, rows: Tensor
    ) -> None:
        self.moving = model.embedding[rows].requires_grad_()
        ego = model.embedding.index_copy(0, rows, self.moving)
        score = (ego[data.user] * ego[data.item + data.n_users]).sum(1)
        loss = binary_cross_entropy_with_logits(score, data.label)
        (self.gradient,) = torch.autograd.grad(loss, self.moving, create_graph=True)

    def matvec_into(self, v: Tensor, out: Tensor) -> Tensor:
        product = torch.autograd.grad(self.gradient, self.moving, v, retain_graph=True)[0]
        return out.copy_(product)


def trained(data: Interactions, valid: Interactions, seed: int) -> MF:
    """As the scripts train: all draws from torch's own generator, as theirs are."""
    torch.manual_seed(seed)
    model = MF(data.n_users, data.n_items)
    rule = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, state, waited = 0.0, model.state_dict(), 0
    while waited <= 10:
        for rows in torch.randperm(len(data)).split(2048):
            rule.zero_grad()
            score = model(data.user[rows], data.item[rows])
            binary_cross_entropy_with_logits(score, data.label[rows]).backward()
            rule.step()
        area = area_of(model.ours(), valid)
        waited += 1
        if area > best:
            best, waited = area, 0
            state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def area_of(model: Any, rows: Interactions) -> float:
    return auc(model.scores(rows.user, rows.item), rows.label)


def interactions(frame: Any, like: Any) -> Interactions:
    columns = (frame[name] for name in ("user", "item", "label"))
    return Interactions(*columns, n_users=like.n_users, n_items=like.n_items)


class Bench:
    """The data, and what is measured on it."""

    def __init__(self, folder: Path) -> None:
        ifru.prepare(datasets.load("book-crossing"), folder / "data", share=0.02)
        self.generator = ifru.FolderData(folder / "data")
        self.saved = folder / "model.pth"
        names = ("train", "train_normal", "train_random", "valid", "test")
        self.rows = {n: interactions(getattr(self.generator, n), self.generator) for n in names}
        kept, valid = self.rows["train_normal"], self.rows["valid"]
        self.retrained = [
            train_early_stopped(
                kept, EarlyStopping(), lambda model: area_of(model, valid), seed=seed
            ).model
            for seed in RETRAINED_SEEDS
        ]

    def quality(self, model: MatrixFactorization) -> dict[str, float]:
        """Mean distances to the retrained models, beside the areas."""
        test, forgotten = self.rows["test"], self.rows["train_random"]
        found = {
            "valid_auc": area_of(model, self.rows["valid"]),
            "test_auc": area_of(model, test),
            "forget_loss": mean_loss(model, forgotten, OBJECTIVE),
        }
        for name, rows in (("distance_test", test), ("distance_forget", forgotten)):
            others = [other for other in self.retrained if other is not model]
            found[name] = statistics.mean(distance(model, o, rows, OBJECTIVE) for o in others)
        return found

    def unlearn(self, model: MF, mode: str) -> dict[str, Any]:
        """A call on a copy of a model, from the script's objects to the written file."""
        copy = MF(self.generator.n_users, self.generator.n_items)
        copy.load_state_dict(model.state_dict())
        product = DoubleBackward if mode == "autograd" else ifru.HessianOperator
        unlearner = ifru.influence_unlearn(
            self.saved, 5000, LEARNING_RATE, 0, 0, mode="exact" if mode == "exact" else "reference"
        )
        printed = io.StringIO()
        with (
            mock.patch.object(ifru, "HessianOperator", product),
            contextlib.redirect_stdout(printed),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            unlearner.compute_hessian_with_test(copy, self.generator)
            seconds = {
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
            }
        copy.load_state_dict(torch.load(self.saved, weights_only=True))
        n_steps = printed.getvalue().count("step ")
        return {**seconds, "steps": n_steps, "quality": self.quality(copy.ours())}

    def mask_seconds(self) -> float:
        """Evaluation masks row by row, each id looked for in a tensor."""
        forgotten = self.rows["train_random"]
        users, items = forgotten.user.unique(), forgotten.item.unique()
        start = time.perf_counter()
        for name in ("valid", "test"):
            frame = getattr(self.generator, name)
            pairs = list(zip(frame["user"], frame["item"], strict=True))
            either = [u in users or i in items for u, i in pairs]
            both = [u in users and i in items for u, i in pairs]
            assert sum(both) <= sum(either)
        return time.perf_counter() - start


def run(seeds: list[int], rounds: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="ifru-bench-") as folder:
        bench = Bench(Path(folder))
        models = []
        for seed in seeds:
            model = trained(bench.rows["train"], bench.rows["valid"], seed)
            row = {"seed": seed, "original": bench.quality(model.ours())}
            calls: dict[str, list[Any]] = {"reference": [], "autograd": [], "exact": []}
            for _ in range(rounds):
                for mode, made in calls.items():
                    made.append(bench.unlearn(model, mode))
            for mode, made in calls.items():
                row[mode] = {
                    **made[0],
                    **{
                        k: statistics.median(m[k] for m in made) for k in ("seconds", "cpu_seconds")
                    },
                    "runs": len(made),
                }
            print(json.dumps(row, indent=1), flush=True)
            models.append(row)
        train = bench.rows["train"]
        return {
            "benchmark": "compat",
            "data": "book-crossing",
            "shape": [train.n_users, train.n_items, len(train)],
            "n_forgotten": len(bench.rows["train_random"]),
            "dim": DIM,
            "learning_rate": LEARNING_RATE,
            "models": models,
            "retrained": [bench.quality(model) for model in bench.retrained],
            "mask_seconds": bench.mask_seconds(),
            "environment": {
                **environment(torch.float32),
                "processor": processor(),
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
                "load": os.getloadavg()[0],
            },
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1024,0,1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    report = run([int(s) for s in options.seeds.split(",")], options.rounds, options.threads)
    write_atomic(RESULT, (json.dumps(report, indent=1) + "\n").encode())
