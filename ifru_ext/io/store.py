"""Models on disk: a folder with `model.safetensors` and `model.json`.

`model.safetensors` is complete by itself: embeddings, graph, original ids, and in its metadata the
description that `model.json` shows to people and other tools. So a model is replaced by replacing
one file, which is atomic, and no crash leaves halves of two models. Nothing is unpickled.

`ifru_ext.io.versions` keeps several of them, one for each request.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ifru_ext._native import native
from ifru_ext.adjacency import Adjacency
from ifru_ext.anchored import Anchor, Regime
from ifru_ext.errors import InputError
from ifru_ext.files import write_atomic
from ifru_ext.graph import BipartiteGraph
from ifru_ext.ids import IdMap
from ifru_ext.interactions import Interactions
from ifru_ext.models import (
    BiasedMatrixFactorization,
    LightGCN,
    MatrixFactorization,
    RecommenderModel,
)
from ifru_ext.objective import Objective

__all__ = [
    "DESCRIPTION",
    "LATEST",
    "TENSORS",
    "ModelFile",
    "StoredModel",
    "checked_version",
    "decode_model",
    "encode_model",
    "fingerprint",
    "is_version",
    "latest_version",
    "load_model",
    "save_model",
]

TENSORS = "model.safetensors"
DESCRIPTION = "model.json"
LATEST = "latest"
_FORMAT = "ifru-ext model 1"
_VERSION = re.compile(r"v[0-9]{4,9}", re.ASCII)
_ID_MAPS = ("user_ids", "item_ids")
_ANCHOR_PARTS = ("damping", "times", "linear")


@dataclass(frozen=True, eq=False)
class StoredModel:
    """A model with what it was trained on.

    Attributes:
        model: The model.
        objective: What it was trained on.
        user_ids: Original ids of the users, or None.
        item_ids: Original ids of the items, or None.
        fingerprint: Of the interactions; see `Interactions.fingerprint`.
        anchor: Of a model that was unlearned: what the next request needs; else None.
        settings: What the command line keeps of how it was read, trained and unlearned.
    """

    model: RecommenderModel
    objective: Objective
    user_ids: IdMap | None
    item_ids: IdMap | None
    fingerprint: str
    anchor: Anchor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def check_data(self, data: Interactions) -> None:
        """Checks that these are the interactions that the model stands on.

        A model that was unlearned stands on the rows it had without the forgotten ones, in the
        same order.

        Raises:
            InputError: They are others.
        """
        if data.fingerprint() != self.fingerprint:
            raise InputError(
                f"data: expected the interactions that the model was made from (fingerprint "
                f"{self.fingerprint[:12]}), got others ({data.fingerprint()[:12]}); give the same "
                "rows in the same order, columns and threshold, and for a model that was unlearned "
                "those rows without the forgotten ones"
            )


@dataclass(frozen=True, eq=False)
class ModelFile:
    """The contents of a `model.safetensors`.

    Attributes:
        tensors: By name.
        text: The description, JSON, as in `model.json`.
    """

    tensors: Mapping[str, Tensor]
    text: str

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Reads a file.

        Raises:
            InputError: It is damaged, or of another kind.
        """
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("ifru_ext")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: is not a readable safetensors file ({error})") from None
        if text is None:
            raise InputError(f"{path}: expected a model written by ifru-ext, got other tensors")
        return cls(tensors, text)

    def files(self) -> dict[str, bytes]:
        """{name: bytes} of the two files; the same for the same contents."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        return {
            TENSORS: save(tensors, metadata={"ifru_ext": self.text}),
            DESCRIPTION: (self.text + "\n").encode(),
        }


def encode_model(
    model: RecommenderModel,
    objective: Objective,
    data: Interactions,
    anchor: Anchor | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelFile:
    """What `save_model` writes; see there.

    Args:
        model: The model.
        objective: What it was trained on.
        data: The interactions that it stands on.
        anchor: `UnlearnResult.anchor` of a model that was unlearned.
        settings: JSON values that `StoredModel.settings` gives back.

    Raises:
        ValueError: Model and data, or model and anchor, have different sizes.
    """
    objective.check(model, data)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "kind": model.kind,
        "n_users": model.n_users,
        "n_items": model.n_items,
        "dim": model.dim,
        "dtype": str(model.dtype).removeprefix("torch."),
        "objective": objective.to_json(),
        "data": {"interactions": len(data), "fingerprint": data.fingerprint()},
        "user_ids": _ids_kind(data.user_ids),
        "item_ids": _ids_kind(data.item_ids),
        "written_by": f"ifru-ext {native.build['version']}",
    }
    if settings:
        description["settings"] = dict(settings)
    tensors: dict[str, Tensor] = {
        "user_embedding": model.user_embedding,
        "item_embedding": model.item_embedding,
    }
    if isinstance(model, LightGCN):
        description["alpha"] = model.alpha.tolist()
        a = model.graph.adjacency
        half = a.n_interactions
        tensors["graph.rowptr"] = a.rowptr[: a.n_users + 1]
        tensors["graph.item"] = a.neighbor[:half] - a.n_users
    if isinstance(model, BiasedMatrixFactorization):
        users, items = model.frozen_columns
        description["biases"] = {"user": not bool(users[-3]), "item": not bool(items[-2])}
    for name, ids in zip(_ID_MAPS, (data.user_ids, data.item_ids), strict=True):
        if ids is not None:
            tensors.update(_ids_to_tensors(name, ids))
    if anchor is not None:
        anchor.check(model)
        description["anchor"] = (
            {"own_norm": anchor.own_norm} if anchor.regime is None else anchor.regime.value
        )
        tensors.update(
            (f"anchor.{name}", part)
            for name in _ANCHOR_PARTS
            if (part := getattr(anchor, name)) is not None
        )
    return ModelFile(tensors, json.dumps(description, indent=2, allow_nan=False))


def save_model(
    folder: str | os.PathLike[str],
    model: RecommenderModel,
    objective: Objective,
    data: Interactions,
    anchor: Anchor | None = None,
) -> None:
    """Writes a model; an existing one in the folder is replaced in one step.

    First `model.safetensors` is replaced, then `model.json`. A crash between the two leaves the new
    model with the old description beside it: `load_model` reads the first file alone, and writing
    the model again puts the second right.

    Args:
        folder: Made if it does not exist.
        model: The model.
        objective: What it was trained on.
        data: The interactions that it stands on: their fingerprint and original ids are kept.
        anchor: `UnlearnResult.anchor` of a model that was unlearned.

    Raises:
        ValueError: Model and data, or model and anchor, have different sizes.
        OSError: The folder cannot be written to. Nothing was changed, unless the text says that the
            model is written and its description is not.
    """
    files = encode_model(model, objective, data, anchor).files()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / TENSORS, files[TENSORS])
    try:
        write_atomic(path / DESCRIPTION, files[DESCRIPTION])
    except OSError as error:
        raise OSError(
            f"{path}: the model is written, but {DESCRIPTION} is not ({error.strerror or error})"
        ) from error


def load_model(folder: str | os.PathLike[str]) -> StoredModel:
    """Reads a model that `save_model` wrote, or the latest of a store of versions.

    Args:
        folder: The folder, or its `model.safetensors`.

    Raises:
        InputError: There is no model, or the file is damaged or of another kind; or an embedding
            is NaN or infinite.
    """
    path = Path(folder)
    if not path.is_file():
        version = latest_version(path)
        path = (path if version is None else path / version) / TENSORS
    if not path.is_file():
        raise InputError(f"{folder}: expected a folder with {TENSORS}, got none")
    return decode_model(ModelFile.read(path), path)


def latest_version(folder: Path) -> str | None:
    """The name of the version that a store's `latest` points to; None where there is no link.

    Raises:
        InputError: It points to something else: nothing outside the store is ever read through it.
    """
    link = folder / LATEST
    if not link.is_symlink():
        return None
    return checked_version(f"{link}: target", os.readlink(link))


def is_version(name: str) -> bool:
    """Whether a name is that of a version."""
    return _VERSION.fullmatch(name) is not None


def checked_version(name: str, value: object) -> str:
    """Checks the name of a version, from which a path is made.

    Raises:
        InputError: It is none.
    """
    if not isinstance(value, str) or not is_version(value):
        raise InputError(f"{name}: expected a version such as 'v0001', got {value!r:.80}")
    return value


def fingerprint(content: bytes) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def decode_model(file: ModelFile, path: Path) -> StoredModel:
    """The model in a file.

    Args:
        file: Its contents.
        path: What an error calls it.

    Raises:
        InputError: It is damaged.
    """
    try:
        description = json.loads(file.text)
        found = description["format"]
        if found == _FORMAT:
            return _from_parts(description, dict(file.tensors))
    except InputError as error:
        raise InputError(f"{path}: is damaged ({error})") from None
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    raise InputError(f"{path}: expected format {_FORMAT!r}, got {found!r}")


def _from_parts(description: dict[str, Any], tensors: dict[str, Tensor]) -> StoredModel:
    user, item = tensors["user_embedding"], tensors["item_embedding"]
    model: RecommenderModel
    if description["kind"] == MatrixFactorization.kind:
        model = MatrixFactorization(user, item)
    elif description["kind"] == BiasedMatrixFactorization.kind:
        model = _biased(user, item, description["biases"])
    elif description["kind"] == LightGCN.kind:
        degree = tensors["graph.rowptr"].diff()
        owner = torch.repeat_interleave(torch.arange(len(degree)), degree)
        pairs = owner, tensors["graph.item"].long()
        graph = BipartiteGraph(Adjacency.from_pairs(*pairs, user.shape[0], item.shape[0]))
        alpha = description["alpha"]
        model = LightGCN(user, item, len(alpha) - 1, graph=graph, alpha=alpha)
    else:
        raise InputError(f"unknown kind {description['kind']!r}")
    user_ids, item_ids = (_ids_from_tensors(n, description, tensors) for n in _ID_MAPS)
    for name, size, expected in (
        ("n_users", description["n_users"], model.n_users),
        ("n_items", description["n_items"], model.n_items),
        ("user_ids", model.n_users if user_ids is None else len(user_ids), model.n_users),
        ("item_ids", model.n_items if item_ids is None else len(item_ids), model.n_items),
    ):
        if size != expected:
            raise InputError(f"{name}: expected {expected} as in the embeddings, got {size}")
    anchor = None
    if "anchor" in description:
        times, linear = (tensors.get(f"anchor.{part}") for part in _ANCHOR_PARTS[1:])
        ended = description["anchor"]
        regime, own = (
            (None, ended["own_norm"]) if isinstance(ended, dict) else (Regime(ended), None)
        )
        anchor = Anchor(regime, tensors["anchor.damping"], times, linear, own)
        anchor.check(model)
    settings = description.get("settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"settings: expected an object, got {type(settings).__name__}")
    return StoredModel(
        model=model,
        objective=Objective(**description["objective"]),
        user_ids=user_ids,
        item_ids=item_ids,
        fingerprint=str(description["data"]["fingerprint"]),
        anchor=anchor,
        settings=settings,
    )


def _biased(user: Tensor, item: Tensor, biases: dict[str, bool]) -> RecommenderModel:
    """From the embeddings, in which the biases and the constants stand; see the class."""
    model = BiasedMatrixFactorization(
        user[:, :-3],
        item[:, :-3],
        user[:, -3] if biases["user"] else None,
        item[:, -2] if biases["item"] else None,
        float(user[0, -1]),
    )
    if not torch.equal(model.embedding, torch.cat([user, item])):
        raise InputError("embedding: expected the constants of a model with biases, got others")
    return model


def _ids_kind(ids: IdMap | None) -> str | None:
    if ids is None:
        return None
    return "integer" if ids.is_integer else "string"


def _ids_to_tensors(name: str, ids: IdMap) -> dict[str, Tensor]:
    """Integers as they are; strings as UTF-8 bytes and the offsets between them."""
    if ids.is_integer:
        return {name: torch.from_numpy(ids.ids.copy())}
    encoded = [text.encode() for text in ids.ids.tolist()]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    content = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return {name: torch.from_numpy(content), f"{name}.offsets": torch.from_numpy(offsets)}


def _ids_from_tensors(
    name: str, description: dict[str, Any], tensors: dict[str, Tensor]
) -> IdMap | None:
    kind = description[name]
    if kind is None:
        return None
    if kind == "integer":
        return IdMap(tensors[name])
    content = tensors[name].numpy().tobytes()
    offsets = tensors[f"{name}.offsets"].tolist()
    return IdMap([content[a:b].decode() for a, b in pairwise(offsets)])
