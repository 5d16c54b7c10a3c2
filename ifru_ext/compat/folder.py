"""The folder that IFRU's released scripts read: `Data/Process/{dataset}/{attack}/`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from ifru_ext.datasets import core_split
from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic
from ifru_ext.forget import Forget
from ifru_ext.interactions import Interactions
from ifru_ext.io.reading import read_interactions

__all__ = ["FolderData", "load_folder", "prepare"]

_COLUMNS = ("user", "item", "label")
_FRAMES = ("train_normal", "train_random", "valid", "test")

_Frame = dict[str, npt.NDArray[np.float64] | npt.NDArray[np.int64]]


class FolderData:
    """A data generator as the released scripts have one, of a folder.

    Args:
        path: The folder, with `train_normal.csv` (kept), `train_random.csv` (to forget),
            `valid.csv` and `test.csv`, each with a header that names the columns user, item, label.

    Attributes:
        train: {"user": [n] int64, "item": [n] int64, "label": [n] float64}: the rows of
            `train_normal`, then those of `train_random`.
        train_normal: Likewise, as the following.
        train_random: The rows to forget.
        valid: Validation rows.
        test: Test rows.
        n_users: The largest id of a user in any file + 1.
        n_items: Likewise of items.
        n_train: n.

    Raises:
        InputError: A file is missing, has other columns, no row, or a value that is no number, or
            an id that is no whole number >= 0.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        frames = [_read(Path(path) / f"{name}.csv") for name in _FRAMES]
        self.train_normal, self.train_random, self.valid, self.test = frames
        self.train: _Frame = {
            column: np.concatenate([frame[column] for frame in frames[:2]]) for column in _COLUMNS
        }
        self.n_users, self.n_items = (
            1 + int(max(frame[column].max() for frame in frames)) for column in _COLUMNS[:2]
        )
        self.n_train = len(self.train["user"])


def load_folder(path: str | os.PathLike[str]) -> tuple[Interactions, Forget]:
    """Reads the training rows of a folder, and which of them are to be forgotten.

    Args:
        path: As of `FolderData`, which has the validation and test rows as well.

    Returns:
        The rows of `train_normal.csv`, then those of `train_random.csv`; and the request to forget
        the latter.

    Raises:
        InputError: See `FolderData`; or a label is NaN or infinite.
    """
    folder = FolderData(path)
    user, item, label = (folder.train[column] for column in _COLUMNS)
    data = Interactions(user, item, label, n_users=folder.n_users, n_items=folder.n_items)
    return data, Forget(interactions=torch.arange(len(folder.train_normal["user"]), len(data)))


def prepare(
    ratings: str | os.PathLike[str] | Interactions,
    folder: str | os.PathLike[str],
    *,
    threshold: float = 6.0,
    share: float = 0.02,
    core: int = 5,
    seed: int = 1024,
) -> None:
    """Makes the folder from raw ratings by the recipe of the released scripts.

    See `ifru_ext.datasets.core_split` for the parts. The last `share` of the training rows, which
    are in random order, get flipped labels: the rows to forget.

    Args:
        ratings: A file that `ifru_ext.io.reading.read_interactions` reads, or what was read. Of
            Book-Crossing's own file, which it does not: `ifru_ext.datasets.load("book-crossing")`.
        folder: Made where it is not there; files in it are replaced.
        threshold: Ratings from here on are positive; the default is that for Book-Crossing's 0 to
            10.
        share: Of the training rows, in (0, 1).
        core: Rows that each user and item has at least.
        seed: Of the order of the rows.

    Raises:
        InputError: The file cannot be read, a number is out of range, or nothing is left for a
            part.
    """
    if not 0 < share < 1:
        raise InputError(f"share: expected a number between 0 and 1, got {share}")
    data = ratings if isinstance(ratings, Interactions) else read_interactions(ratings)
    train, valid, test = core_split(data, threshold=threshold, core=core, seed=seed)
    n_kept = int(len(train) * (1 - share))
    if n_kept == 0 or n_kept == len(train):
        raise InputError(
            f"share: expected one that keeps and forgets some of {len(train)} rows, got {share}"
        )
    kept, fake = train.subset(torch.arange(n_kept)), train.subset(torch.arange(n_kept, len(train)))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in zip(
        _FRAMES, (kept, fake.with_labels(1 - fake.label), valid, test), strict=True
    ):
        table = torch.stack([rows.user, rows.item, rows.label.long()], 1).numpy()

        def write(file: BinaryIO, table: npt.NDArray[np.int64] = table) -> None:
            np.savetxt(file, table, "%d", ",", header=",".join(_COLUMNS), comments="")

        write_atomic(Path(folder) / f"{name}.csv", write)


def _read(path: Path) -> _Frame:
    """The columns of a file."""
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().strip().split(",")
            missing = [column for column in _COLUMNS if column not in names]
            if missing:
                raise InputError(f"{path}: expected columns user, item, label, got {names}")
            at = [names.index(column) for column in _COLUMNS]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # no row: an error below
                table = np.loadtxt(file, delimiter=",", usecols=at, ndmin=2)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable file, got {error}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: expected numbers, got {error}") from None
    if len(table) == 0:
        raise InputError(f"{path}: expected at least one row, got none")
    user, item, label = table.T
    for column, ids in (("user", user), ("item", item)):
        wrong = np.flatnonzero(~((ids >= 0) & (ids == np.floor(ids)) & (ids < 2**53)))
        if len(wrong):
            raise InputError(
                f"{path}: {column}: expected whole numbers >= 0, got {ids[wrong[0]]} in line "
                f"{wrong[0] + 2}"
            )
    return {"user": user.astype(np.int64), "item": item.astype(np.int64), "label": label}
