"""The data sets that are measured on: synthetic ones of a fixed size each, and MovieLens 100K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ifru_ext import datasets
from ifru_ext.errors import InputError, listing
from ifru_ext.interactions import Interactions

__all__ = ["SHAPES", "VISIBLE", "Shape", "load_shape", "parse_shapes"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a data set.

    Attributes:
        name: What it is asked for by.
        n_users: Number of users.
        n_items: Number of items.
        n_interactions: Number of distinct pairs.
    """

    name: str
    n_users: int
    n_items: int
    n_interactions: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("A", 60_000, 30_000, 1_000_000),
        Shape("B", 6_040, 3_706, 1_000_000),  # as MovieLens 1M
        Shape("C", 138_000, 27_000, 5_000_000),  # users and items as MovieLens 20M
        Shape("D", 1_000_000, 300_000, 5_000_000),
        Shape("ml-100k", 943, 1_682, 100_000),
        Shape("tiny", 60, 40, 500),  # for the tests
    )
}
VISIBLE = tuple(name for name in SHAPES if name != "tiny")

_RATING_LIKED = 4.0


def parse_shapes(text: str) -> list[Shape]:
    """The shapes named in a list with commas.

    Raises:
        InputError: There is none of that name.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        raise InputError(f"--shapes: expected some of {','.join(VISIBLE)}, got {listing(unknown)}")
    return [SHAPES[name] for name in _distinct(names)]


def load_shape(shape: Shape) -> tuple[str, Interactions]:
    """The data of a shape, and the name to report it by. The same every time.

    Synthetic data have power-law popularity (Zipf-Mandelbrot) and ids in random order; see
    `ifru_ext.datasets.synthetic`. D takes some ten seconds. MovieLens 100K is replaced by synthetic
    data of its size, and named so, where it cannot be had.
    """
    name = shape.name
    if name == "ml-100k":
        try:
            ratings = datasets.load(name)
        except datasets.DatasetUnavailable:
            name = "ml-100k (synthetic)"
        else:
            return name, ratings.with_labels((ratings.label >= _RATING_LIKED).float())
    return name, datasets.synthetic(shape.n_users, shape.n_items, shape.n_interactions, seed=0)


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
