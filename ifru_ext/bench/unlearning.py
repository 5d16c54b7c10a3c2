"""Unlearning against retraining: completeness, quality and time on trained models.

Each case is a data set and a way to train. For each request the original, the unlearned and the
retrained models are compared by `ifru_ext.verify.verify`. Trained models are kept in a folder with
the time that they took, so that a second run only unlearns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from ifru_ext.anchored import Anchor
from ifru_ext.bench.splits import Split, load_split
from ifru_ext.bench.timing import CPU, processor
from ifru_ext.bench.training import EarlyStopping, train_early_stopped
from ifru_ext.environment import environment
from ifru_ext.errors import InputError, listing
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.io.store import load_model, save_model
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.pruning import Pruning
from ifru_ext.train import train
from ifru_ext.unlearning import UnlearnResult, unlearn
from ifru_ext.verify import auc, distance, verify

__all__ = ["CASES", "METHODS", "REQUESTS", "Case", "UnlearningSettings", "run_unlearning"]

# A pure function of milliseconds: its median is steadier than one run. Where it takes seconds one
# is enough.
_RUNS = 3
_PATIENCE = 2.0  # seconds of processor time
_RANKED_USERS = 500
_ORIGINAL_SEED = 0
_TRAINING = "training.json"


class Recipe(Protocol):
    """A way to train."""

    @property
    def objective(self) -> Objective:
        """What `unlearn` is told that the model was trained on."""

    @property
    def title(self) -> str:
        """In tables."""

    def fit(self, split: Split, rows: Interactions, seed: int) -> RecommenderModel:
        """A model of some training rows of a split."""


@dataclass(frozen=True)
class Regularised:
    """Trained to a stationary point; see `ifru_ext.train.train`."""

    kind: str = "lightgcn"
    dim: int = 32
    n_layers: int = 2
    l2: float = 0.7
    l2_per_sample: float = 0.006
    epochs: int = 5
    learning_rate: float = 0.01
    polish_rtol: float = 1e-6

    @property
    def objective(self) -> Objective:
        return Objective(loss="bce", l2=self.l2, l2_per_sample=self.l2_per_sample)

    @property
    def title(self) -> str:
        return f"{_KINDS[self.kind]}, regularised, d = {self.dim}"

    def fit(self, split: Split, rows: Interactions, seed: int) -> RecommenderModel:
        return train(
            rows,
            self.objective,
            kind="mf" if self.kind == "mf" else "lightgcn",
            dim=self.dim,
            n_layers=self.n_layers,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            polish_rtol=self.polish_rtol,
            seed=seed,
        ).model


@dataclass(frozen=True)
class Stopped:
    """Stopped on the validation rows' AUC, or, where there are none, after all epochs."""

    training: EarlyStopping

    @property
    def objective(self) -> Objective:
        return Objective(loss=self.training.loss)

    @property
    def title(self) -> str:
        loss = ", BPR" if self.training.loss == "bpr" else ""
        return f"{_KINDS[self.training.kind]}, early-stopped{loss}, d = {self.training.dim}"

    def fit(self, split: Split, rows: Interactions, seed: int) -> RecommenderModel:
        valid = split.valid

        def validation_auc(model: RecommenderModel) -> float:
            assert valid is not None
            return auc(model.scores(valid.user, valid.item), valid.label)

        validate = None if valid is None else validation_auc
        return train_early_stopped(rows, self.training, validate, seed=seed).model


_KINDS = {"mf": "MF", "lightgcn": "LightGCN"}


@dataclass(frozen=True)
class Case:
    """A data set and a way to train on it."""

    data: str
    name: str
    recipe: Recipe


CASES = (
    Case("ml-100k", "mf", Regularised(kind="mf", dim=32, l2=0.0, l2_per_sample=0.07)),
    Case("ml-100k", "lightgcn", Regularised(dim=64)),
    Case("book-crossing", "mf-stopped", Stopped(EarlyStopping())),
    Case(
        "book-crossing",
        "lightgcn-stopped",
        Stopped(EarlyStopping(kind="lightgcn", dim=32, patience=3)),
    ),
    Case("ml-1m", "mf", Regularised(kind="mf", l2=0.0, l2_per_sample=0.05, epochs=3)),
    Case("ml-1m", "lightgcn", Regularised(dim=32, epochs=3)),
    Case(
        "gowalla",
        "lightgcn-bpr",
        Stopped(
            EarlyStopping(
                kind="lightgcn",
                dim=32,
                n_layers=3,
                loss="bpr",
                learning_rate=1e-2,
                batch_size=8192,
                init_scale=0.1,
                max_epochs=12,
            )
        ),
    ),
    Case("tiny", "mf", Regularised(kind="mf", dim=4)),
    Case("tiny", "lightgcn-stopped", Stopped(EarlyStopping(kind="lightgcn", dim=4, patience=1))),
)

# What `unlearn` is called with.
METHODS: dict[str, dict[str, Any]] = {
    "auto": {},
    "newton": {"method": "newton"},
    "influence": {"method": "influence"},
    "pruned": {"pruning": Pruning(hops=0)},
}

# Share of the rows, or number of users.
REQUESTS: dict[str, float | int] = {
    "1-user": 1,
    "10-users": 10,
    "1%": 0.01,
    "2%": 0.02,
    "5%": 0.05,
}


@dataclass(frozen=True)
class UnlearningSettings:
    """What is measured.

    Attributes:
        cases: Data sets and ways to train.
        requests: Keys of `REQUESTS`.
        methods: Keys of `METHODS`.
        seeds: Retrained models per request; the first has the original's seed.
        models: Folder that trained models are kept in.
        sequential: Number of parts that 1 % of the rows are forgotten in, one after the other; 0
            leaves this out.
        threads: Of torch.
        device: Where is trained, unlearned and compared.
    """

    cases: Sequence[Case]
    requests: Sequence[str]
    methods: Sequence[str]
    seeds: int
    models: Path
    sequential: int
    threads: int
    device: torch.device = CPU

    def __post_init__(self) -> None:
        for option, names, known in (
            ("--requests", self.requests, REQUESTS),
            ("--methods", self.methods, METHODS),
        ):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise InputError(
                    f"{option}: expected some of {','.join(known)}, got {listing(unknown)}"
                )


@dataclass(frozen=True, eq=False)
class _Trained:
    model: RecommenderModel
    anchor: Anchor | None
    seconds: float
    cpu_seconds: float


def run_unlearning(
    settings: UnlearningSettings,
    on_section: Callable[[dict[str, Any]], None],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Trains what is not there yet, unlearns, and compares with retraining.

    Args:
        settings: What to measure.
        on_section: Called after each request with the report so far.
        on_progress: Told what is being done.

    Returns:
        The report as JSON values.
    """
    report: dict[str, Any] = {
        "benchmark": "unlearn",
        "runs": _RUNS,
        "sections": [],
    }
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        split: Split | None = None
        for case in settings.cases:
            if split is None or split.name != case.data:
                split = load_split(case.data).to(settings.device)
            for section in _Bench(case, split, settings, on_progress).sections():
                report["sections"].append(section)
                on_section(report)
    finally:
        torch.set_num_threads(before)
    return report


class _Bench:
    """One case."""

    def __init__(
        self,
        case: Case,
        split: Split,
        settings: UnlearningSettings,
        on_progress: Callable[[str], None],
    ) -> None:
        self._case, self._split, self._settings = case, split, settings
        self._tell = on_progress
        self._objective = case.recipe.objective

    def sections(self) -> Any:
        """Reports of the requests, one by one."""
        for name in self._settings.requests:
            size = REQUESTS[name]
            by_rows = isinstance(size, float)
            for flipped in (False, True) if by_rows and self._split.has_labels else (False,):
                yield self._section(name, flipped)
        if self._settings.sequential:
            yield self._sequential()

    def _request(self, name: str) -> Forget:
        """The rows of smaller requests are among those of larger ones."""
        train, size = self._split.train, REQUESTS[name]
        if isinstance(size, float):
            if self._split.name == "book-crossing":  # the recipe's: its rows are in random order
                start = int(len(train) * (1 - size))
                return Forget(interactions=torch.arange(start, len(train)))
            return Forget(interactions=_permutation(len(train))[: round(size * len(train))])
        present = train.user.unique().cpu()
        return Forget(users=present[_permutation(len(present))[:size]])

    def _poisoned(self, forget: Forget, flipped: bool) -> Interactions:
        train = self._split.train
        if not flipped:
            return train
        fake = forget.resolve(train)
        return train.with_labels(torch.where(fake, 1 - train.label, train.label))

    def _section(self, name: str, flipped: bool) -> dict[str, Any]:
        forget = self._request(name)
        data = self._poisoned(forget, flipped)
        original = self._trained(data, _ORIGINAL_SEED)
        retained = data.subset(~forget.resolve(data))
        retrained = [self._trained(retained, seed) for seed in range(self._settings.seeds)]
        seconds = median(r.seconds for r in retrained)
        cpu_seconds = median(r.cpu_seconds for r in retrained)
        rows = []
        for method in self._settings.methods:
            self._tell(f"{self._title}: {name}{' flipped' if flipped else ''}, {method}")
            result, timing = self._unlearn(original, data, forget, method)
            report = verify(
                result,
                data,
                forget,
                objective=self._objective,
                test=self._split.test,
                retrain=[r.model for r in retrained],
                max_users=_RANKED_USERS,
            )
            rows.append(
                {
                    "method": method,
                    **timing,
                    "times_faster": seconds / timing["seconds"],
                    "times_faster_cpu": cpu_seconds / timing["cpu_seconds"],
                    "unlearning": _numbers(result.report.to_json()),
                    "verification": report.to_json(),
                }
            )
        return {
            **self._head(data),
            "request": name,
            "flipped": flipped,
            "n_forgotten": int(forget.resolve(data).sum()),
            "training_seconds": original.seconds,
            "retraining_seconds": seconds,
            "retraining_cpu_seconds": cpu_seconds,
            "methods": rows,
        }

    def _sequential(self) -> dict[str, Any]:
        """1 % of the rows in one request, and in many."""
        train, objective = self._split.train, self._objective
        trained = self._trained(train, _ORIGINAL_SEED)
        original = trained.model
        rows = self._request("1%").resolve(train).nonzero()[:, 0].cpu()
        forgotten = train.subset(rows)
        keep = torch.ones(len(train), dtype=torch.bool)
        keep[rows] = False
        retrained = [
            self._trained(train.subset(keep), seed).model for seed in range(self._settings.seeds)
        ]
        n_parts = min(self._settings.sequential, len(rows))
        methods = []
        for method in self._settings.methods:
            self._tell(f"{self._title}: {n_parts} requests in a row, {method}")
            options = {**METHODS[method], "objective": objective}
            request = Forget(interactions=rows)
            combined = unlearn(original, train, request, anchor=trained.anchor, **options).model
            model, data, anchor = original, train, trained.anchor
            number = torch.arange(len(train))
            begin = time.perf_counter()
            for part in rows[_permutation(len(rows))].tensor_split(n_parts):
                mask = torch.isin(number, part)
                request = Forget(interactions=mask)
                result = unlearn(model, data, request, anchor=anchor, **options)
                model, data, anchor = result.model, result.retained, result.anchor
                number = number[~mask]
            seconds = time.perf_counter() - begin
            found = {}
            for place, rows_of in (("test", self._split.test), ("forget", forgotten)):
                for name, m in (("original", original), ("combined", combined), ("parts", model)):
                    found[f"{name}_{place}"] = sum(
                        distance(m, r, rows_of, objective) for r in retrained
                    ) / len(retrained)
            methods.append({"method": method, "seconds": seconds, **found})
        return {
            **self._head(train),
            "request": "sequential",
            "flipped": False,
            "n_parts": n_parts,
            "n_forgotten": len(rows),
            "methods": methods,
        }

    @property
    def _title(self) -> str:
        return f"{self._case.data}, {self._case.recipe.title}"

    def _head(self, data: Interactions) -> dict[str, Any]:
        return {
            "data": self._case.data,
            "case": self._case.name,
            "model": self._case.recipe.title,
            "recipe": dataclasses.asdict(self._case.recipe),  # type: ignore[call-overload]
            "n_users": data.n_users,
            "n_items": data.n_items,
            "n_interactions": len(data),
            "device": self._settings.device.type,
            "seeds": self._settings.seeds,
            "environment": {
                **environment(torch.float32),
                "processor": processor(),
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
                "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            },
        }

    def _unlearn(
        self, trained: _Trained, data: Interactions, forget: Forget, method: str
    ) -> tuple[UnlearnResult, dict[str, float]]:
        """From the request to the written model: medians of a few runs, and the first one alone."""
        options = {**METHODS[method], "objective": self._objective, "anchor": trained.anchor}
        wall, cpu, write = [], [], []
        with tempfile.TemporaryDirectory(prefix="ifru-bench-") as folder:
            for _ in range(_RUNS):
                start, start_cpu = self._now(), time.process_time()
                result = unlearn(trained.model, data, forget, **options)
                made = self._now()
                save_model(folder, result.model, self._objective, result.retained)
                end = time.perf_counter()
                wall.append(end - start)
                write.append(end - made)
                cpu.append(time.process_time() - start_cpu)
                if sum(cpu) > _PATIENCE:
                    break
        return result, {
            "seconds": median(wall),
            "first_seconds": wall[0],
            "write_seconds": median(write),
            "cpu_seconds": median(cpu),
        }

    def _now(self) -> float:
        """Seconds, when the device has done what it was given."""
        if self._settings.device.type == "cuda":
            torch.cuda.synchronize(self._settings.device)
        return time.perf_counter()

    def _trained(self, rows: Interactions, seed: int) -> _Trained:
        """A model from the folder of models, or trained now and put there."""
        recipe = self._case.recipe
        description = json.dumps(
            {
                "recipe": dataclasses.asdict(recipe),  # type: ignore[call-overload]
                "rows": rows.fingerprint(),
                "seed": seed,
                "threads": self._settings.threads,
                "device": self._settings.device.type,
            },
            sort_keys=True,
        )
        key = hashlib.sha256(description.encode()).hexdigest()[:16]
        folder = self._settings.models / f"{self._case.data}-{self._case.name}-{key}"
        if (folder / _TRAINING).is_file():
            stored = json.loads((folder / _TRAINING).read_text())
            kept, device = load_model(folder), self._settings.device
            anchor = None if kept.anchor is None else kept.anchor.to(device)
            seconds, cpu_seconds = stored["seconds"], stored["cpu_seconds"]
            return _Trained(kept.model.to(device), anchor, seconds, cpu_seconds)
        self._tell(f"{self._title}: training on {len(rows):,} rows, seed {seed}")
        start, start_cpu = self._now(), time.process_time()
        model = recipe.fit(self._split, rows, seed)
        seconds, cpu_seconds = self._now() - start, time.process_time() - start_cpu
        anchor = Anchor.of(model, rows, recipe.objective)
        trained = _Trained(model, anchor, seconds, cpu_seconds)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, model, recipe.objective, rows, anchor)
        # Last, as its presence says that the folder is whole.
        stored = {"seconds": trained.seconds, "cpu_seconds": trained.cpu_seconds}
        write_atomic(folder / _TRAINING, (json.dumps({**stored, "of": description})).encode())
        return trained


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    """Without what is the same in every section."""
    return {k: v for k, v in report.items() if k not in ("certificate", "environment")}


def _permutation(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(1))
