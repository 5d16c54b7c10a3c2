"""Chooses the ridge of the demo's models on held-out training rows of MovieLens 100K.

Of each of three splits, a tenth of the clean training rows is held out; the test rows are not
looked at. The setting with the largest mean AUC on the held-out rows is what `DemoSettings` has.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from ifru_ext.datasets import load, train_test_split
from ifru_ext.demo import DemoSettings
from ifru_ext.environment import environment
from ifru_ext.files import write_atomic
from ifru_ext.interactions import Interactions
from ifru_ext.verify import auc

RESULT = Path(__file__).resolve().parent / "results" / "demo_settings.json"
SPLITS = (0, 1, 2)
HELD_OUT = 0.1
# (l2, l2_per_sample): both kinds of ridge together, and each alone.
GRID = (
    (0.5, 0.009),
    (0.7, 0.006),
    (0.7, 0.007),
    (0.8, 0.005),
    (1.0, 0.004),
    (1.4, 0.0),
    (0.3, 0.0),
    (3.0, 0.0),
    (0.0, 0.02),
)


def validation_auc(data: Interactions, l2: float, l2_per_sample: float, seed: int) -> float:
    """Of the demo's model with this ridge on one split."""
    settings = DemoSettings(l2=l2, l2_per_sample=l2_per_sample)
    training_rows, _ = train_test_split(data, test=0.2, seed=seed)
    rows, held_out = train_test_split(training_rows, test=HELD_OUT, seed=seed)
    model = settings.train(rows, seed=seed).model
    return auc(model.scores(held_out.user, held_out.item), held_out.label)


def main() -> None:
    """Prints the table and writes it as JSON."""
    ratings = load("ml-100k")
    data = ratings.with_labels((ratings.label >= 4).float())
    print("   l2  l2_per_sample  mean AUC  on each split")
    settings = []
    for l2, l2_per_sample in GRID:
        reached = [validation_auc(data, l2, l2_per_sample, seed) for seed in SPLITS]
        settings.append(
            {"l2": l2, "l2_per_sample": l2_per_sample, "auc": reached, "mean": mean(reached)}
        )
        each = "  ".join(f"{value:.4f}" for value in reached)
        print(f"{l2:5.1f}  {l2_per_sample:13.3f}  {mean(reached):8.5f}  {each}", flush=True)
    best = max(settings, key=lambda setting: setting["mean"])
    result = {
        "data": "ml-100k",
        "splits": SPLITS,
        "held_out": HELD_OUT,
        "settings": settings,
        "chosen": {"l2": best["l2"], "l2_per_sample": best["l2_per_sample"]},
        "environment": environment(),
    }
    write_atomic(RESULT, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


if __name__ == "__main__":
    main()
