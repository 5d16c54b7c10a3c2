"""Checkpoints and data loaders in RecBole's form, without RecBole.

Classes of its names stand in its modules' places while they are pickled, and are gone when they
are read. What is in them was taken from files that RecBole 1.2.1 wrote (`make adapters` compares
with the real ones).
"""

from __future__ import annotations

import enum
import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["config", "save_checkpoint", "save_dataloaders", "split_as_recbole", "write_inter"]


class _Config:
    pass


class _ModelType(enum.Enum):
    GENERAL = 1


class _FullLoader:
    pass


class _Model:
    pass


class _Holder:
    pass


class _Dataset:
    pass


class _Interaction:
    def __init__(self, columns):
        self.interaction = columns


_PLACES = {
    "recbole.config.configurator": {"Config": _Config},
    "recbole.utils.enum_type": {"ModelType": _ModelType},
    "recbole.model.general_recommender.bpr": {"BPR": _Model},
    "recbole.data.dataloader.general_dataloader": {"TrainDataLoader": _Holder},
    "recbole.data.dataset.dataset": {"Dataset": _Dataset},
    "recbole.data.interaction": {"Interaction": _Interaction},
    "yaml.loader": {"FullLoader": _FullLoader},
}


@contextmanager
def _in_place():
    """The classes under RecBole's names."""
    parents = {name.rsplit(".", k)[0] for name in _PLACES for k in range(name.count(".") + 1)}
    kept = {name: sys.modules.get(name) for name in parents}
    for name in parents:
        sys.modules[name] = types.ModuleType(name)
        for member, kind in _PLACES.get(name, {}).items():
            kind.__module__, kind.__qualname__ = name, member
            setattr(sys.modules[name], member, kind)
    try:
        yield
    finally:
        for name, module in kept.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def config(model="BPR", **changes):
    """RecBole's defaults, as far as they are looked at."""
    return {
        "model": model,
        "seed": 2020,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "field_separator": "\t",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "normalize_all": True,
        "normalize_field": None,
        "eval_args": {
            "split": {"RS": [0.8, 0.1, 0.1]},
            "order": "RO",
            "group_by": "user",
            "mode": {"valid": "full", "test": "full"},
        },
        "train_neg_sample_args": {
            "distribution": "uniform",
            "sample_num": 1,
            "alpha": 1.0,
            "dynamic": False,
        },
        "weight_decay": 0.0,
        "n_layers": 2,
        "reg_weight": 1e-5,
        "require_pow": False,
        "MODEL_TYPE": _ModelType.GENERAL,
        "device": torch.device("cpu"),
        **changes,
    }


def _config_object(settings):
    held = _Config()
    held.final_config_dict = settings
    held.yaml_loader, held.model_class = _FullLoader, _Model
    return held


def save_checkpoint(path, settings, user, item, *, cached=None, protocol=4):
    """Of embeddings in RecBole's order, with an Adam that has made one step."""
    parameters = [torch.nn.Parameter(x.clone()) for x in (user, item)]
    optimizer = torch.optim.Adam(parameters)
    g = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=g)
    optimizer.step()
    modules = {"user_embedding": user, "item_embedding": item}
    state = torch.nn.ModuleDict(
        {name: torch.nn.Embedding(*x.shape, _weight=x.clone()) for name, x in modules.items()}
    ).state_dict()
    whole = None if cached is None else torch.cat(cached).split([len(user), len(item)])
    names = ("restore_user_e", "restore_item_e")
    content = {
        "config": _config_object(settings),
        "epoch": 3,
        "cur_step": 0,
        "best_valid_score": np.float64(0.25),
        "state_dict": state,
        "other_parameter": {} if whole is None else dict(zip(names, whole, strict=True)),
        "optimizer": optimizer.state_dict(),
    }
    with _in_place():
        torch.save(content, path, pickle_protocol=protocol)


def save_dataloaders(path, settings, user_tokens, item_tokens, user, item):
    """Of training rows in RecBole's numbers."""
    dataset = _Dataset()
    dataset.config = _config_object(settings)
    dataset.inter_feat = _Interaction({"user_id": user, "item_id": item})
    tokens = {"user_id": np.array(user_tokens), "item_id": np.array(item_tokens)}
    dataset.field2id_token = tokens
    dataset.used = np.array([{1, 2}, set()], dtype=object)
    loader = _Holder()
    loader._dataset = dataset
    state = torch.Generator().get_state()
    with _in_place():
        path.write_bytes(pickle.dumps([(loader, state)] * 3))


def write_inter(path, user, item, time):
    """Tokens and times as an atomic file."""
    rows = zip(user, item, time, strict=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(r) for r in rows)]
    path.write_text("\n".join(lines) + "\n")


def split_as_recbole(user, item, time, settings):
    """RecBole's numbering and training split, row by row as its source does it.

    Returns the tokens of users and items by number, and the training rows' numbers.
    """
    numbered = []
    for tokens in (user, item):
        known = {"[PAD]": 0}
        numbered.append(([known.setdefault(token, len(known)) for token in tokens], list(known)))
    (users, user_tokens), (items, item_tokens) = numbered
    arguments = settings["eval_args"]
    if arguments["order"] == "RO":
        torch.manual_seed(settings["seed"])
        order = torch.randperm(len(users)).tolist()
    else:
        times = np.array(time, dtype=np.float64)
        times = ((times - times.min()) / (times.max() - times.min())).astype(np.float32)
        order = sorted(range(len(users)), key=lambda row: times[row])
    ((kind, value),) = arguments["split"].items()
    groups = {}
    for row in order:
        key = users[row] if arguments["group_by"] == "user" or kind == "LS" else 0
        groups.setdefault(key, []).append(row)
    train = []
    for rows in groups.values():
        n = len(rows)
        if kind == "LS":
            out = 2 if value == "valid_and_test" else 1
            train += rows[: n - min(out, n - 1)]
            continue
        counts = [int(share * n) for share in value]
        counts[0] = n - sum(counts[1:])
        for k in range(1, len(counts)):
            if counts[0] > 1 and 0 < value[-k] * n < 1:
                counts[-k] += 1
                counts[0] -= 1
        train += rows[: counts[0]]
    return user_tokens, item_tokens, [users[r] for r in train], [items[r] for r in train]
