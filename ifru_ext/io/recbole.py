"""RecBole's checkpoints of BPR and LightGCN, read and written without RecBole.

The pickle in a checkpoint is not executed (`ifru_ext.io.pickles`). RecBole keeps neither ids nor
interactions in it: they come from the data loaders that it saves with `save_dataloaders: True`, or
from the `.inter` file, by the same rules and seed that RecBole makes them with (version 1.2.1,
recbole/data/dataset/dataset.py). Where these depend on more than that, the file is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ifru_ext.columns import as_ids
from ifru_ext.errors import InputError, as_integer
from ifru_ext.graph import BipartiteGraph
from ifru_ext.interactions import Interactions
from ifru_ext.io.imported import Imported, ids_in_order, with_sampled_negatives
from ifru_ext.io.pickles import Inert, StoredTensor, TorchArchive, plain, unpickle
from ifru_ext.io.reading import read_interactions
from ifru_ext.models import LightGCN, MatrixFactorization, RecommenderModel
from ifru_ext.objective import Objective

__all__ = ["read", "write"]

_PADDING = "[PAD]"
_WEIGHTS = ("user_embedding.weight", "item_embedding.weight")
# LightGCN's features, kept for scoring.
_CACHED = ("restore_user_e", "restore_item_e")
# What chooses rows or numbers ids in a way that is not replayed here.
_NOT_REPLAYED = (
    *("benchmark_filename", "rm_dup_inter", "val_interval", "user_inter_num_interval"),
    *("item_inter_num_interval", "alias_of_user_id", "alias_of_item_id"),
)


def read(
    checkpoint: str | os.PathLike[str],
    *,
    inter: str | os.PathLike[str] | None = None,
    dataloaders: str | os.PathLike[str] | None = None,
    negatives: int | None = None,
    seed: int | None = None,
) -> Imported:
    """Reads a checkpoint of RecBole's BPR or LightGCN and the interactions that it was trained on.

    The rows are those of RecBole's training split, in its order. Users and items are numbered anew,
    by their ids; the padding row is one of them, without interactions.

    Args:
        checkpoint: The `.pth` that RecBole's trainer saved.
        inter: The data set's `.inter` file; needs pyarrow.
        dataloaders: The `...-dataloader.pth` that RecBole saved; one of the two.
        negatives: Negatives of each row; by default as many as in training.
        seed: Of their draw; by default RecBole's own.

    Returns:
        The model, its data with the original ids as strings, the objective, and notes.

    Raises:
        InputError: A file is missing, damaged, of another model, or asks for more than plain data;
            or the rows of the training split cannot be told from what is given.
    """
    archive = TorchArchive(os.fspath(checkpoint), _is_recboles)
    config = _config(archive.content, checkpoint)
    name = config.get("model")
    if name not in ("BPR", "LightGCN"):
        raise InputError(f"{checkpoint}: expected a checkpoint of BPR or LightGCN, got {name!r}")
    user, item = (archive.tensor(stored) for stored in _weights(archive, checkpoint))
    if (inter is None) == (dataloaders is None):
        raise InputError("inter, dataloaders: expected one of the two, got both or none")
    if dataloaders is not None:
        ids, rows, note = _from_dataloaders(dataloaders, config)
    else:
        assert inter is not None
        ids, rows, note = _replayed(inter, config)
    for side, tokens, weight in zip(("users", "items"), ids, (user, item), strict=True):
        if len(tokens) != len(weight):
            raise InputError(
                f"{dataloaders or inter}: expected the data set of {checkpoint}, with "
                f"{len(weight)} {side} and the padding among them, got {len(tokens)}"
            )
    user_ids, user_order = ids_in_order("users", ids[0])
    item_ids, item_order = ids_in_order("items", ids[1])
    data = Interactions(
        user_order.argsort()[as_ids("user", rows[0], below=len(user))],
        item_order.argsort()[as_ids("item", rows[1], below=len(item))],
        user_ids=user_ids,
        item_ids=item_ids,
    )
    sampling = _setting(config, "train_neg_sample_args", dict, {})
    if negatives is None:
        negatives = _setting(sampling, "sample_num", int, 1)
    negatives = as_integer("negatives", negatives, 1)
    seed = _setting(config, "seed", int, 0) if seed is None else seed
    objective, notes = _objective(name, config, len(data) * negatives)
    padding = int(item_ids.encode([_PADDING], name="items")[0])
    data, drawn = with_sampled_negatives(data, objective, negatives, seed, never=padding)
    how = sampling.get("distribution"), sampling.get("dynamic")
    if how[0] != "uniform" or how[1]:
        drawn += f"; it drew by {how[0]!r}{', the hardest of several' if how[1] else ''}"
    model = _model(name, user[user_order], item[item_order], config, data)
    return Imported(model, data, objective, (note, drawn, *notes), user_order, item_order)


def write(
    imported: Imported,
    model: RecommenderModel,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
) -> None:
    """Writes a model into a copy of the checkpoint that it was read from.

    Only numbers change: the embeddings, LightGCN's cached features where it had kept any, and the
    optimiser's moments of the rows that changed, which are set to zero. The padding rows stay.

    RecBole's LightGCN takes its graph from the data set that it is given when it is loaded: there
    the forgotten rows must be left out too. `~request.resolve(imported.data)` is the mask of those
    that stay, in the order of RecBole's training rows.

    Args:
        imported: What `read` returned.
        model: The new model.
        source: The checkpoint that was read.
        target: The new checkpoint; replaced in one step where it exists.

    Raises:
        InputError: The model is of another kind or size, or the source is not what was read.
        OSError: The target cannot be written.
    """
    imported.check(model)
    archive = TorchArchive(os.fspath(source), _is_recboles)
    stored = _weights(archive, source)
    old = imported.in_order(imported.model.user_embedding, imported.model.item_embedding)
    new = imported.in_order(model.user_embedding, model.item_embedding)
    features = model.features()
    caches = imported.in_order(features[: model.n_users], features[model.n_users :])
    cached = _mapping(archive.content.get("other_parameter"))
    moments = _moments(archive.content)
    changes: list[tuple[StoredTensor, Tensor]] = []
    for k, (place, before, after) in enumerate(zip(stored, old, new, strict=True)):
        if not torch.equal(archive.tensor(place), before):
            raise InputError(f"source: expected the checkpoint that was read, got {source}")
        after[0] = before[0]
        changes.append((place, after))
        cache = cached.get(_CACHED[k])
        if isinstance(cache, StoredTensor):
            changes.append((cache, caches[k]))
        changed = (after != before).any(1)
        for moment in moments[k]:
            if moment.shape == place.shape:
                values = archive.tensor(moment)
                values[changed] = 0
                changes.append((moment, values))
    archive.write(os.fspath(target), changes)


def _is_recboles(module: str, name: str) -> bool:
    return module.startswith("recbole.") or (module, name) == ("yaml.loader", "FullLoader")


def _is_a_loaders(module: str, name: str) -> bool:
    """What stands in saved data loaders beside: samplers, a logger, bound methods."""
    return (
        _is_recboles(module, name)
        or module.startswith("torch.utils.data.")
        or (module, name) in {("logging", "getLogger"), ("builtins", "getattr")}
    )


def _state(value: object, what: str, path: object) -> dict[str, Any]:
    if not isinstance(value, Inert) or not isinstance(value.state, dict):
        raise InputError(f"{path}: expected {what} as RecBole saves it, got {type(value).__name__}")
    return value.state


def _config(content: object, path: object) -> dict[str, Any]:
    held = content.get("config") if isinstance(content, dict) else None
    config = _state(held, "a checkpoint with its configuration", path).get("final_config_dict")
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a checkpoint with its configuration, got none")
    return config


def _setting(config: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """A value of the configuration, which may be anything; the default where it is None."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(
            f"{name}: expected a configuration as RecBole saves it, got a {type(value).__name__}"
        )
    return value


def _mapping(value: object) -> Mapping[Any, Any]:
    """What may be left out of a checkpoint."""
    return value if isinstance(value, Mapping) else {}


def _weights(archive: TorchArchive, path: object) -> tuple[StoredTensor, StoredTensor]:
    content = archive.content
    states = content.get("state_dict") if isinstance(content, dict) else None
    found = [states.get(name) for name in _WEIGHTS] if isinstance(states, Mapping) else []
    user, item = found if len(found) == 2 else (None, None)
    if not (isinstance(user, StoredTensor) and isinstance(item, StoredTensor)):
        raise InputError(f"{path}: expected {' and '.join(_WEIGHTS)} in state_dict, got others")
    return user, item


def _moments(content: dict[str, Any]) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The tensors that the optimiser keeps of the users' and of the items' embeddings."""
    states = _mapping(_mapping(content.get("optimizer")).get("state"))
    names = list(content["state_dict"])
    found = (_mapping(states.get(names.index(name))) for name in _WEIGHTS)
    users, items = ([x for x in state.values() if isinstance(x, StoredTensor)] for state in found)
    return users, items


def _model(
    name: str, user: Tensor, item: Tensor, config: dict[str, Any], data: Interactions
) -> RecommenderModel:
    if name == "BPR":
        return MatrixFactorization(user, item)
    if data.n_duplicates:
        raise InputError(
            "data: expected each pair of user and item once for LightGCN, whose graph in RecBole "
            f"has each edge once, got {data.n_duplicates} again"
        )
    graph = BipartiteGraph.from_interactions(data)
    return LightGCN(user, item, _setting(config, "n_layers", int, 2), graph=graph)


def _objective(name: str, config: dict[str, Any], n: int) -> tuple[Objective, list[str]]:
    """BPR with what of RecBole's regularisers are squares; n triples."""
    l2 = _setting(config, "weight_decay", (int, float), 0.0) * n
    per_sample, notes = 0.0, []
    weight = _setting(config, "reg_weight", (int, float), 0.0)
    if name == "LightGCN" and weight:
        if config.get("require_pow"):
            per_sample = float(weight)
        else:
            notes.append(
                f"reg_weight {weight:g} multiplies the norm of each batch's rows, not its square: "
                "it is left out, and counts as training that stopped early"
            )
    if l2:
        notes.append(
            f"weight_decay is taken for a ridge of every row: {l2:g} beside a sum over {n} triples"
        )
    return Objective("bpr", l2=l2, l2_per_sample=per_sample), notes


def _from_dataloaders(
    path: str | os.PathLike[str], config: dict[str, Any]
) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], tuple[Tensor, Tensor], str]:
    """Tokens by RecBole's row, the training rows, and a note."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    loaders = unpickle(content, path, _is_a_loaders)
    try:
        loader = loaders[0][0]
    except (TypeError, IndexError, KeyError):
        loader = None
    train = _state(loader, "data loaders", path)
    dataset = _state(train.get("_dataset"), "data loaders", path)
    table = _state(dataset.get("inter_feat"), "a training set", path)
    fields = [_setting(config, f"{side}_ID_FIELD", str, "") for side in ("USER", "ITEM")]
    try:
        rows = tuple(table["interaction"][field].tensor() for field in fields)
        ids = tuple(plain(dataset["field2id_token"][field]) for field in fields)
    except (TypeError, KeyError, AttributeError):
        rows, ids = (), ()
    if len(rows) != 2 or not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in ids):
        raise InputError(
            f"{path}: expected a training set with {fields[0]} and {fields[1]}, got others"
        )
    note = "training rows and ids are those of the saved data loaders"
    return (ids[0], ids[1]), (rows[0], rows[1]), note


def _replayed(
    path: str | os.PathLike[str], config: dict[str, Any]
) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], tuple[Tensor, Tensor], str]:
    """The same from the `.inter` file, as RecBole numbers and splits it."""
    for name in _NOT_REPLAYED:
        if config.get(name) is not None:
            _refuse(f"{name}: {config[name]!r}")
    columns = _setting(config, "load_col", dict, {"user": None})
    if {"user", "item"} & set(columns):
        _refuse("load_col with columns of users or items, which number ids too")
    arguments = _setting(config, "eval_args", dict, {})
    order, split, group = (arguments.get(key) for key in ("order", "split", "group_by"))
    seed = as_integer("seed", _setting(config, "seed", int, 0), 0)
    by_time = order == "TO"
    table = read_interactions(
        path,
        user=_setting(config, "USER_ID_FIELD", str, "user_id"),
        item=_setting(config, "ITEM_ID_FIELD", str, "item_id"),
        label="",
        timestamp=_setting(config, "TIME_FIELD", str, "timestamp") if by_time else "",
        format="tsv",
        separator=_setting(config, "field_separator", str, "\t"),
    )
    assert table.user_ids is not None
    assert table.item_ids is not None
    pairs = [
        _by_appearance(codes.numpy(), ids.ids.astype(np.str_))
        for codes, ids in ((table.user, table.user_ids), (table.item, table.item_ids))
    ]
    (user, user_ids), (item, item_ids) = pairs
    if by_time:
        assert table.timestamp is not None
        permutation = torch.from_numpy(_time_order(table.timestamp.numpy(), config))
    elif order == "RO":
        generator = torch.Generator().manual_seed(seed)
        permutation = torch.randperm(len(user), generator=generator)
    else:
        _refuse(f"eval_args order: {order!r}")
    user, item = user[permutation], item[permutation]
    train = torch.from_numpy(_train_rows(user.numpy(), split, group))
    note = (
        f"training rows are RecBole's split {split!r}, order {order}, grouped by {group}, seed "
        f"{seed}, made again from {Path(path).name}"
    )
    return (user_ids, item_ids), (user[train], item[train]), note


def _refuse(what: str) -> NoReturn:
    raise InputError(
        f"inter: expected a configuration whose training rows can be made again, got {what}; give "
        "the dataloaders that RecBole saves with save_dataloaders: True"
    )


def _by_appearance(
    codes: npt.NDArray[np.int64], ids: npt.NDArray[np.str_]
) -> tuple[Tensor, npt.NDArray[np.str_]]:
    """Numbers from 1 in the order in which they first appear, after the padding."""
    first = np.unique(codes, return_index=True)[1]
    order = np.argsort(first, kind="stable")
    number = np.empty_like(order)
    number[order] = np.arange(1, len(order) + 1)
    return torch.from_numpy(number[codes]), np.concatenate([[_PADDING], ids[order]])


def _time_order(times: npt.NDArray[Any], config: dict[str, Any]) -> npt.NDArray[np.int64]:
    """A stable order of what RecBole sorts by: float32, after its normalisation."""
    values = times.astype(np.float64)
    fields = _setting(config, "normalize_field", list, [])
    if config.get("normalize_all") or config.get("TIME_FIELD") in fields:
        low, high = values.min(), values.max()
        values = np.ones_like(values) if low == high else (values - low) / (high - low)
    return np.argsort(values.astype(np.float32), kind="stable")


def _train_rows(user: npt.NDArray[np.int64], split: Any, group: Any) -> npt.NDArray[np.int64]:
    """[n] the rows of the training part, in its order."""
    kind, value = next(iter(_mapping(split).items()), (None, None))
    grouped = str(group).lower() == "user"
    if kind == "RS" and _are_ratios(value) and (grouped or str(group).lower() == "none"):
        ratios = [part / sum(value) for part in value]
        if not grouped:
            return np.arange(_train_size(len(user), ratios))

        def kept(total: int) -> int:
            return _train_size(total, ratios)

    elif kind == "LS" and value in ("valid_and_test", "valid_only", "test_only"):
        left_out = 2 if value == "valid_and_test" else 1

        def kept(total: int) -> int:
            return total - min(left_out, total - 1)

    else:
        _refuse(f"eval_args split: {split!r}, group_by: {group!r}")
    # Users in the order in which they first appear, each with its rows in order.
    first = np.unique(user, return_index=True)[1]
    appearance = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    rank = appearance[np.unique(user, return_inverse=True)[1]]
    order = np.argsort(rank, kind="stable")
    total = np.bincount(rank)
    place = np.arange(len(user)) - np.repeat(total.cumsum() - total, total)
    limit = np.array([kept(int(n)) for n in total])
    return order[place < np.repeat(limit, total)]


def _are_ratios(value: object) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or not all(isinstance(x, (int, float)) for x in value):
        return False
    return all(x >= 0 for x in value) and 0 < sum(value) < math.inf


def _train_size(total: int, ratios: list[float]) -> int:
    """Rows of the first part: RecBole's `_calcu_split_ids`."""
    counts = [int(ratio * total) for ratio in ratios]
    counts[0] = total - sum(counts[1:])
    for k in range(1, len(ratios)):
        if counts[0] <= 1:
            break
        if 0 < ratios[-k] * total < 1:
            counts[-k] += 1
            counts[0] -= 1
    return counts[0]
