"""The demonstration: train on poisoned rows, forget the poison, compare with retraining.

Nothing in it is special to the demo data: `ifru demo --data FILE` runs the same on any ratings.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ifru_ext.datasets import train_test_split
from ifru_ext.environment import environment
from ifru_ext.errors import InputError, as_integer
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective
from ifru_ext.train import TrainProgress, TrainResult, train
from ifru_ext.unlearning import UnlearnReport, unlearn
from ifru_ext.verify import Comparison, compare, distance

__all__ = ["DemoResult", "DemoRow", "DemoSettings", "run_demo"]


# Unlearning is a pure function of milliseconds: its median is steadier than one run.
_UNLEARN_RUNS = 3


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does, and the defaults of `ifru train`.

    The ridge was chosen on held-out training rows of MovieLens 100K, by
    `benchmarks/choose_demo_settings.py`.

    Attributes:
        seed: Of the split, the fake ratings, the users that leave, and the first training.
        fake: Share of the training rows whose labels are flipped.
        users: Number of users that leave.
        dim: d.
        n_layers: L.
        l2: Ridge of every row.
        l2_per_sample: Ridge per interaction.
        epochs: Of Adam.
        learning_rate: Of Adam.
        polish_rtol: Where the Newton steps stop.
    """

    seed: int = 0
    fake: float = 0.02
    users: int = 3
    dim: int = 64
    n_layers: int = 2
    l2: float = 0.7
    l2_per_sample: float = 0.006
    epochs: int = 5
    learning_rate: float = 0.01
    polish_rtol: float = 1e-4

    def __post_init__(self) -> None:
        as_integer("seed", self.seed, 0)
        as_integer("users", self.users, 1)
        if not 0 < self.fake < 1:
            raise InputError(f"fake: expected a share between 0 and 1, got {self.fake}")

    @property
    def objective(self) -> Objective:
        """What all models of the demo are trained on."""
        return Objective(loss="bce", l2=self.l2, l2_per_sample=self.l2_per_sample)

    def train(
        self,
        rows: Interactions,
        *,
        seed: int,
        callback: Callable[[TrainProgress], None] | None = None,
    ) -> TrainResult:
        """Trains one of the demo's models; see `ifru_ext.train.train`."""
        return train(
            rows,
            self.objective,
            dim=self.dim,
            n_layers=self.n_layers,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            polish_rtol=self.polish_rtol,
            seed=seed,
            callback=callback,
        )


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table.

    Attributes:
        name: Of the model.
        comparison: Beside the retrained model.
        seconds: To make it: training, unlearning (the median of three runs), retraining.
    """

    name: str
    comparison: Comparison
    seconds: float


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the demo found.

    Attributes:
        settings: What was asked for.
        rows: original, unlearned, retrained, retrained with another seed.
        report: Of the unlearning.
        model: The unlearned model.
        retained: What it now stands on.
        n_train: Training rows.
        n_test: Test rows, those of the users that left excluded.
        n_fake: Flipped rows.
        fake_distance: Distance to the retrained model on the flipped rows alone, of the original
            and of the unlearned model. On the rows of the users that left the erased row makes
            every model right; here only the solve can. None where those users have all of the
            flipped rows.
    """

    settings: DemoSettings
    rows: tuple[DemoRow, ...]
    report: UnlearnReport
    model: RecommenderModel
    retained: Interactions
    n_train: int
    n_test: int
    n_fake: int
    fake_distance: dict[str, float] | None

    @property
    def retraining_seconds(self) -> float:
        """The median of the two retrainings."""
        return median(row.seconds for row in self.rows if row.name.startswith("retrained"))

    @property
    def speed_ratio(self) -> float:
        """Seconds of retraining per second of unlearning."""
        (unlearning,) = (row.seconds for row in self.rows if row.name == "unlearned")
        return self.retraining_seconds / unlearning

    def to_json(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "objective": self.settings.objective.to_json(),
            "n_train": self.n_train,
            "n_test": self.n_test,
            "n_fake": self.n_fake,
            "rows": [
                {"name": r.name, "seconds": r.seconds, **dataclasses.asdict(r.comparison)}
                for r in self.rows
            ],
            "fake_distance": self.fake_distance,
            "retraining_seconds": self.retraining_seconds,
            "speed_ratio": self.speed_ratio,
            "unlearning": self.report.to_json(),
            "environment": environment(self.model.dtype),
        }


def run_demo(
    data: Interactions,
    settings: DemoSettings | None = None,
    *,
    callback: Callable[[str, TrainProgress], None] | None = None,
) -> DemoResult:
    """Runs the demonstration.

    Args:
        data: Rows with labels in [0, 1], of both classes.
        settings: What to do.
        callback: Told the model's name and the training's progress.

    Returns:
        The comparison.

    Raises:
        ValueError: The labels do not fit, there are too few rows or users, or training diverges.
    """
    settings = DemoSettings() if settings is None else settings
    objective = settings.objective
    objective.check_labels(data)
    n_positive = int(data.positive.sum())
    if n_positive in (0, len(data)):
        raise InputError(
            f"label: expected both positive and negative rows, got {n_positive} positive of "
            f"{len(data)}"
        )
    clean, test = train_test_split(data, test=0.2, seed=settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    fake = _choose_rows(len(clean), settings.fake, generator)
    leaving = _choose_users(clean, settings.users, generator)
    poisoned = clean.with_labels(torch.where(fake, 1 - clean.label, clean.label))
    forget = Forget(interactions=fake, users=leaving)
    fake_elsewhere = fake & ~torch.isin(poisoned.user, leaving)
    test = test.subset(~torch.isin(test.user, leaving))
    _check_enough_rows(data, len(clean) - int((fake | torch.isin(clean.user, leaving)).sum()), test)

    def timed_training(name: str, rows: Interactions, seed: int) -> tuple[TrainResult, float]:
        start = time.perf_counter()
        show = None if callback is None else lambda p: callback(name, p)
        result = settings.train(rows, seed=seed, callback=show)
        return result, time.perf_counter() - start

    original, original_seconds = timed_training("original", poisoned, settings.seed)
    unlearned_seconds = []
    for _ in range(_UNLEARN_RUNS):
        start = time.perf_counter()
        unlearned = unlearn(original.model, poisoned, forget, objective=objective)
        unlearned_seconds.append(time.perf_counter() - start)
    retrained, retrained_seconds = timed_training("retrained", unlearned.retained, settings.seed)
    other_seed = settings.seed ^ 1  # unlike a sum it cannot leave the range of seeds
    other, other_seconds = timed_training("retrained, other seed", unlearned.retained, other_seed)

    forgotten = poisoned.subset(forget.resolve(poisoned))
    fake_rows = poisoned.subset(fake_elsewhere)
    rows = tuple(
        DemoRow(name, compare(model, retrained.model, test, forgotten, objective), seconds)
        for name, model, seconds in (
            ("original", original.model, original_seconds),
            ("unlearned", unlearned.model, median(unlearned_seconds)),
            ("retrained", retrained.model, retrained_seconds),
            ("retrained, other seed", other.model, other_seconds),
        )
    )
    return DemoResult(
        settings=settings,
        rows=rows,
        report=unlearned.report,
        model=unlearned.model,
        retained=unlearned.retained,
        n_train=len(poisoned),
        n_test=len(test),
        n_fake=int(fake.sum()),
        fake_distance={
            name: distance(model, retrained.model, fake_rows, objective)
            for name, model in (("original", original.model), ("unlearned", unlearned.model))
        }
        if len(fake_rows)
        else None,
    )


def _check_enough_rows(data: Interactions, n_retained: int, test: Interactions) -> None:
    """Checks, before minutes of training, that there is something to train and to test on."""
    n_positive = int(test.positive.sum())
    if n_retained == 0 or n_positive in (0, len(test)):
        raise InputError(
            f"data: expected more rows, got {len(data)}, which leave {n_retained} to retrain on "
            f"and {len(test)} to test on, {n_positive} of them positive; the demo tests on both "
            "classes"
        )


def _choose_rows(n: int, share: float, generator: torch.Generator) -> Tensor:
    """[n] bool: a uniformly drawn share of the rows, at least one."""
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n, generator=generator)[: max(1, round(share * n))]] = True
    return chosen


def _choose_users(data: Interactions, count: int, generator: torch.Generator) -> Tensor:
    """[count] ids of users that have rows."""
    present = torch.unique(data.user)
    if len(present) <= count:
        raise InputError(f"data: expected more than {count} users with rows, got {len(present)}")
    chosen: Tensor = present[torch.randperm(len(present), generator=generator)[:count]]
    return chosen
