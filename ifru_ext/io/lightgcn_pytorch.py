"""State dicts of LightGCN-PyTorch (github.com/gusye1234/LightGCN-PyTorch) and its `train.txt`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from ifru_ext.columns import as_ids
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions
from ifru_ext.io import tensors
from ifru_ext.io.imported import Imported, with_sampled_negatives
from ifru_ext.models import RecommenderModel
from ifru_ext.objective import Objective

__all__ = ["read", "write"]

_USER, _ITEM = "embedding_user.weight", "embedding_item.weight"


def read(
    state_dict: str | os.PathLike[str],
    train_txt: str | os.PathLike[str],
    *,
    n_layers: int | None = 3,
    weight_decay: float = 1e-4,
    seed: int = 2020,
) -> Imported:
    """Reads a model that LightGCN-PyTorch trained.

    Its loss is BPR plus weight_decay / 2 times the squares of the rows of each triple (`bpr_loss`
    in code/model.py). Its sampler draws users uniformly and then one of their items
    (`UniformSample_original` in code/utils.py): a row counts in inverse proportion to its user's
    number of rows.

    Args:
        state_dict: The file that its `torch.save` wrote.
        train_txt: Lines "user item item ...", ids from 0.
        n_layers: `--layer`; None for its matrix factorisation, `--model mf`.
        weight_decay: `--decay`.
        seed: Of the negatives, one for each row; `--seed` by default.

    Returns:
        The model, its data, the objective, and notes.

    Raises:
        InputError: A file is missing or damaged, a line is not of such ids, or the two do not
            belong together.
    """
    weights = tensors.read_tensors(state_dict)
    missing = [name for name in (_USER, _ITEM) if name not in weights]
    if missing:
        raise InputError(f"{state_dict}: expected a tensor {missing[0]!r}, got others")
    for name in (_USER, _ITEM):
        if weights[name].dim() != 2:
            raise InputError(
                f"{state_dict}: {name}: expected shape [rows, d], got {list(weights[name].shape)}"
            )
    n_users, n_items = (weights[name].shape[0] for name in (_USER, _ITEM))
    user, item = _pairs(train_txt)
    try:  # before anything of the size of an id is made
        user = as_ids("user", user, below=n_users, bound="n_users = ")
    except InputError as error:
        raise InputError(f"{train_txt}: {error}, the rows of {state_dict}") from None
    degree = torch.bincount(user)
    # On average of all rows one.
    weight = len(user) / (int((degree > 0).sum()) * degree[user].double())
    try:
        data = Interactions(user, item, n_users=n_users, n_items=n_items, weight=weight)
    except InputError as error:
        raise InputError(f"{train_txt}: {error}, the rows of {state_dict}") from None
    objective = Objective("bpr", l2_per_sample=weight_decay)
    data, note = with_sampled_negatives(data, objective, 1, seed)
    weighted = (
        "the sampler draws users uniformly: each row's weight is in inverse proportion to its "
        "user's number of rows, and stays when some of these are forgotten; the regulariser counts "
        "each row alike"
    )
    plain = tensors.read(state_dict, data, objective, user=_USER, item=_ITEM, n_layers=n_layers)
    return Imported(plain.model, data, objective, (note, weighted))


def write(
    imported: Imported,
    model: RecommenderModel,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
) -> None:
    """Writes a model as a state dict that LightGCN-PyTorch loads.

    It makes its graph from `train.txt` and keeps it beside, in `s_pre_adj_mat.npz`: leave the
    forgotten rows out of the first and delete the second before the model is loaded.

    Args:
        imported: What `read` returned.
        model: The new model.
        source: The file that was read.
        target: The new file; replaced in one step where it exists.

    Raises:
        InputError: The model is of another kind or size.
        OSError: The target cannot be written.
    """
    tensors.write(imported, model, source, target, user=_USER, item=_ITEM)


def _pairs(path: str | os.PathLike[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items of the lines "user item item ..."."""
    users, items, counts = [], [], []
    try:
        with Path(path).open(encoding="ascii") as file:
            for number, line in enumerate(file, start=1):
                parts = line.split()
                if not parts:
                    continue
                if not all(part.isdigit() and len(part) < 19 for part in parts):
                    raise InputError(f"{path}: line {number}: expected ids from 0, got others")
                users.append(int(parts[0]))
                items.append(np.array(parts[1:], dtype=np.int64))
                counts.append(len(parts) - 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if not sum(counts):
        raise InputError(f"{path}: expected lines 'user item item ...', got none")
    user = np.repeat(np.array(users, dtype=np.int64), counts)
    return torch.from_numpy(user), torch.from_numpy(np.concatenate(items))
