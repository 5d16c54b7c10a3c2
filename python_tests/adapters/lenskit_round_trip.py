"""LensKit's FlexMF: trained there, read, a user unlearned, written, pickled, and scored there.

Run by `make adapters` where LensKit is installed.
"""

from __future__ import annotations

import os
import pickle
import warnings

import lenskit
import numpy as np
import pandas as pd
from lenskit.data import ItemList, from_interactions_df
from lenskit.flexmf import FlexMFExplicitScorer, FlexMFImplicitScorer
from lenskit.training import TrainingOptions

from ifru_ext import Forget, unlearn
from ifru_ext.datasets import synthetic
from ifru_ext.io import lenskit as adapter

SCORERS = {
    "explicit": lambda: FlexMFExplicitScorer(embedding_size=12, epochs=60),
    "logistic": lambda: FlexMFImplicitScorer(embedding_size=12, epochs=60, loss="logistic"),
    "pairwise": lambda: FlexMFImplicitScorer(embedding_size=12, epochs=60, loss="pairwise"),
    "bpr preset": lambda: FlexMFImplicitScorer(embedding_size=12, epochs=60, preset="bpr"),
}


def dataset():
    """Ratings under ids that are not in the order of their rows."""
    data = synthetic(80, 120, 3000, seed=2)
    rng = np.random.default_rng(0)
    users, items = rng.permutation(1000)[:80], rng.permutation(5000)[:120]
    frame = pd.DataFrame(
        {
            "user_id": users[data.user.numpy()],
            "item_id": items[data.item.numpy()],
            "rating": 1.0 + 4.0 * data.label.numpy(),
        }
    )
    return from_interactions_df(frame)


def check_scores(scorer, read, model, label):
    items = read.data.item_ids.ids
    wanted = model.user_embedding @ model.item_embedding.T
    furthest = 0.0
    for user, row in zip(read.data.user_ids.ids.tolist(), wanted, strict=True):
        got = scorer(user, ItemList(item_ids=items)).scores()
        furthest = max(furthest, float(np.abs(got - row.numpy()).max()))
    assert furthest < 2e-5, (label, furthest)
    return furthest


def round_trip(label, make):
    data, scorer = dataset(), make()
    scorer.train(data, TrainingOptions(rng=42, device="cpu"))
    read = adapter.read(scorer, data)
    check_scores(scorer, read, read.model, label)

    user = int(read.data.user_ids.ids[11])
    request = Forget(users=read.data.user_ids.encode([user]))
    result = unlearn(read.model, read.data, request, objective=read.objective)
    adapter.write(read, result.model, scorer)
    again = pickle.loads(pickle.dumps(scorer))
    difference = check_scores(again, read, result.model, label)
    assert not bool(again.model.u_embed.weight[again.users.number(user)].any())
    print(
        f"lenskit {lenskit.__version__}, {label}: {result.report.n_forgotten} rows forgotten, "
        f"method {result.report.method}, scores off by {difference:.1e} at most"
    )
    for note in read.notes:
        print(f"    {note}")


if __name__ == "__main__":
    os.environ["LK_TORCH_COMPILE"] = "0"  # the models are small
    warnings.simplefilter("ignore")
    for label, make in SCORERS.items():
        round_trip(label, make)
