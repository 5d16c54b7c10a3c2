"""Checkpoints that RecBole trains: read, a user unlearned, written, and scored again by RecBole.

Run by `make adapters` where RecBole is installed; takes its copy of MovieLens 100K.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed

from ifru_ext import Forget, unlearn
from ifru_ext.io import recbole as adapter

INTER = Path(recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
CASES = {
    "BPR, random split by user": ("BPR", {}),
    "BPR, random split": ("BPR", {"eval_args": {"group_by": None, "order": "RO"}}),
    "BPR, last by time": ("BPR", {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO"}}),
    "LightGCN": ("LightGCN", {"require_pow": True, "reg_weight": 1e-3}),
}


def settings(name, options, folder):
    common = {
        "epochs": 3,
        "eval_step": 3,
        "embedding_size": 16,
        "learning_rate": 0.01,
        "checkpoint_dir": folder,
        "use_gpu": False,
        "show_progress": False,
        "save_dataloaders": True,
        "state": "ERROR",
    }
    arguments = sys.argv
    sys.argv = arguments[:1]  # RecBole reads them
    config = Config(model=name, dataset="ml-100k", config_dict={**common, **options})
    sys.argv = arguments
    return config


def trained(config):
    """As RecBole's run_recbole does it, without its reports: the checkpoint and the data."""
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, valid, _ = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train, valid, saved=True, verbose=False)
    return trainer.saved_model_file, train._dataset


def loaded(config, path, dataset):
    """A model of RecBole's, from a checkpoint."""
    checkpoint = torch.load(path, weights_only=False)
    model = get_model(config["model"])(config, dataset)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint["other_parameter"])
    model.eval()
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.resume_checkpoint(path)  # with the optimiser
    return model, trainer.optimizer


@torch.no_grad()
def check_scores(model, ours, got, label):
    """RecBole's scores of all items for some users, two ways, against ours."""
    users = torch.arange(0, ours.model.n_users, 37)
    rows = ours.user_order[users], ours.item_order
    wanted = got.features()[: got.n_users][users] @ got.features()[got.n_users :].T
    cached = model.full_sort_predict(Interaction({"user_id": rows[0]})).view(len(users), -1)
    pairs = Interaction(
        {
            "user_id": rows[0].repeat_interleave(len(rows[1])),
            "item_id": rows[1].repeat(len(rows[0])),
        }
    )
    plain = model.predict(pairs).view(len(users), -1)
    real = rows[1] > 0  # RecBole's padding row stays as it was
    for scores in (cached[:, rows[1]], plain):
        difference = (scores - wanted)[:, real][rows[0] > 0].abs().max()
        assert difference < 2e-5, (label, float(difference))
    return float(difference)


def round_trip(label, name, options):
    with tempfile.TemporaryDirectory() as folder:
        config = settings(name, options, folder)
        path, dataset = trained(config)
        read = adapter.read(path, inter=INTER)
        (loaders,) = glob.glob(f"{folder}/*dataloader.pth")
        saved = adapter.read(path, dataloaders=loaders)
        order = read.user_order, read.item_order
        rows = order[0][read.data.user], order[1][read.data.item]
        for got, theirs in zip(rows, ("user_id", "item_id"), strict=True):
            assert torch.equal(got, dataset.inter_feat[theirs]), (label, theirs)
        assert read.data.fingerprint() == saved.data.fingerprint()
        assert torch.equal(read.model.embedding, saved.model.embedding)
        assert list(read.data.user_ids.decode(order[0].argsort())) == list(
            dataset.field2id_token["user_id"]
        )
        check_scores(loaded(config, path, dataset)[0], read, read.model, label)

        user = int(read.data.user_ids.encode(["196"])[0])
        request = Forget(users=[user])
        result = unlearn(read.model, read.data, request, objective=read.objective)
        target = Path(folder) / "unlearned.pth"
        adapter.write(read, result.model, path, target)
        kept = ~request.resolve(read.data)
        retained = dataset.copy(dataset.inter_feat[kept])
        model, optimizer = loaded(config, target, retained)
        difference = check_scores(model, read, result.model, label)
        theirs = int(read.user_order[user])
        assert not bool(model.user_embedding.weight[theirs].any())
        for parameter, state in optimizer.state.items():
            old = torch.load(path, weights_only=False)["state_dict"]
            old = old["user_embedding.weight" if len(parameter) == read.model.n_users else _ITEM]
            changed = (parameter.detach() != old).any(1)
            assert bool(changed.any())
            assert not bool(state["exp_avg"][changed].any() or state["exp_avg_sq"][changed].any())
        print(
            f"recbole {recbole.__version__}, {label}: {len(read.data)} rows as RecBole's, "
            f"{int((~kept).sum())} forgotten, method {result.report.method}, "
            f"scores off by {difference:.1e} at most"
        )
        for note in read.notes:
            print(f"    {note}")


_ITEM = "item_embedding.weight"

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    # RecBole's own torch.load asks for it.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    np.random.seed(0)  # noqa: NPY002 (RecBole draws with it)
    for label, (name, options) in CASES.items():
        round_trip(label, name, options)
