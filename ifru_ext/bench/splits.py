"""The data sets that unlearning is measured on, divided into training, validation and test rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ifru_ext import datasets
from ifru_ext.errors import InputError, listing
from ifru_ext.interactions import Interactions

__all__ = ["SPLITS", "Split", "load_split"]

_LIKED = 4  # of five stars
_BOOK_LIKED = 6  # of ten
_NEGATIVES = 4


@dataclass(frozen=True, eq=False)
class Split:
    """Rows over the same users and items.

    Attributes:
        name: Of the data.
        train: Rows to train on.
        valid: Rows to stop training on; None where there are none.
        test: Rows that nothing was trained or chosen on.
    """

    name: str
    train: Interactions
    valid: Interactions | None
    test: Interactions

    def to(self, device: torch.device) -> Split:
        """The same rows on a device."""
        valid = None if self.valid is None else self.valid.to(device)
        return Split(self.name, self.train.to(device), valid, self.test.to(device))

    @property
    def has_labels(self) -> bool:
        """Whether there are negative rows; else feedback is implicit."""
        return not bool(self.train.positive.all())


def load_split(name: str) -> Split:
    """One of `SPLITS`.

    - "ml-100k", "ml-1m": positive from 4 stars; 80, 10 and 10 % of the rows at random.
    - "book-crossing": IFRU's recipe, `ifru_ext.datasets.core_split`: ratings above 5 are positive
      (0, implicit, is negative).
    - "gowalla": the split of LightGCN (arXiv 2002.02126); implicit, no validation rows, four
      recorded negatives for each training row.

    "ml-1m" and "gowalla" are read from `NAME.npz` in the folder `IFRU_EXT_DATA`.

    Raises:
        InputError: There is no such data set, or its file is not there.
    """
    if name not in SPLITS:
        raise InputError(f"--data: expected some of {','.join(SPLITS)}, got {listing([name])}")
    return SPLITS[name](name)


def _arrays(name: str) -> dict[str, npt.NDArray[np.generic]]:
    folder = os.environ.get("IFRU_EXT_DATA")
    path = Path(folder or "") / f"{name}.npz"
    if folder is None or not path.is_file():
        raise InputError(
            f"--data {name}: expected {name}.npz in the folder that IFRU_EXT_DATA names, "
            f"got {'none' if folder is None else path}"
        )
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _random(name: str, data: Interactions) -> Split:
    train, rest = datasets.train_test_split(data, test=0.2, seed=0)
    valid, test = datasets.train_test_split(rest, test=0.5, seed=0)
    return Split(name, train, valid, test)


def _ml_100k(name: str) -> Split:
    ratings = datasets.load(name)
    return _random(name, ratings.with_labels((ratings.label >= _LIKED).float()))


def _ml_1m(name: str) -> Split:
    arrays = _arrays(name)
    liked = torch.from_numpy(arrays["rating"]) >= _LIKED
    return _random(name, Interactions(arrays["user"], arrays["item"], liked.float()))


def _gowalla(name: str) -> Split:
    arrays = _arrays(name)
    n_users, n_items = (int(arrays[side].max()) + 1 for side in ("user", "item"))
    data = Interactions(arrays["user"], arrays["item"], n_users=n_users, n_items=n_items)
    test = torch.from_numpy(arrays["split"] == 2)
    train, test_rows = (
        data.subset(rows).with_negatives(k, seed=0) for rows, k in ((~test, _NEGATIVES), (test, 1))
    )
    return Split(name, train, None, test_rows)


def _book_crossing(name: str) -> Split:
    return Split(name, *datasets.core_split(datasets.load(name), threshold=_BOOK_LIKED))


def _tiny(name: str) -> Split:
    return _random(name, datasets.synthetic(60, 40, 1000, seed=0))


SPLITS = {
    "ml-100k": _ml_100k,
    "ml-1m": _ml_1m,
    "book-crossing": _book_crossing,
    "gowalla": _gowalla,
    "tiny": _tiny,  # for the tests
}
