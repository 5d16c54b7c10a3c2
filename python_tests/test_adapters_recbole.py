"""RecBole's checkpoints: ids, training rows, and what is written back; nothing else is touched."""

from __future__ import annotations

import zipfile

import fake_recbole
import numpy as np
import pytest
import torch

from ifru_ext import Forget, Objective, unlearn
from ifru_ext.errors import InputError
from ifru_ext.io import recbole

pytest.importorskip("pyarrow")
N_USERS, N_ITEMS, DIM = 12, 15, 6

ARGUMENTS = {
    "random by user": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user"},
    "random": {"split": {"RS": [0.7, 0.1, 0.2]}, "order": "RO", "group_by": None},
    "by time": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user"},
    "last two": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"},
    "last one": {"split": {"LS": "test_only"}, "order": "RO", "group_by": None},
}


def tokens():
    """Distinct pairs in an order in which ids neither ascend nor appear at once."""
    rng = np.random.default_rng(4)
    pairs = rng.permutation([(u, i) for u in range(N_USERS) for i in range(N_ITEMS)])[:90]
    user = [str(7 * (N_USERS - u)) for u, _ in pairs]
    item = [f"i{i:03d}" for _, i in pairs]
    time = [str(880_000_000 + int(t)) for t in rng.integers(0, 5000, len(pairs))]
    return user, item, time


@pytest.fixture
def files(tmp_path):
    def make(model="BPR", arguments="random by user", **options):
        changes = {"eval_args": ARGUMENTS[arguments], **options}
        settings = fake_recbole.config(model, **changes)
        table = tokens()
        split = fake_recbole.split_as_recbole(*table, settings)
        g = torch.Generator().manual_seed(1)
        user, item = (torch.randn(len(ids), DIM, generator=g) / 2 for ids in split[:2])
        fake_recbole.write_inter(tmp_path / "small.inter", *table)
        cached = (torch.zeros_like(user), torch.zeros_like(item)) if model == "LightGCN" else None
        fake_recbole.save_checkpoint(tmp_path / "m.pth", settings, user, item, cached=cached)
        return tmp_path / "m.pth", tmp_path / "small.inter", settings, split, (user, item)

    return make


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_rows_and_ids_are_recboles(files, arguments, tmp_path):
    path, inter, settings, split, (user, item) = files(arguments=arguments)
    user_tokens, item_tokens, users, items = split
    loaders = tmp_path / "loaders.pth"
    rows = torch.tensor(users), torch.tensor(items)
    fake_recbole.save_dataloaders(loaders, settings, user_tokens, item_tokens, *rows)
    read = recbole.read(path, inter=inter)
    saved = recbole.read(path, dataloaders=loaders)
    for got in (read, saved):
        data = got.data
        assert data.user_ids.decode(data.user).tolist() == [user_tokens[u] for u in users]
        assert data.item_ids.decode(data.item).tolist() == [item_tokens[i] for i in items]
        for ids, table, order, weight in (
            (user_tokens, data.user_ids, got.user_order, user),
            (item_tokens, data.item_ids, got.item_order, item),
        ):
            assert table.ids[np.argsort(order.numpy())].tolist() == ids
            own = got.model.user_embedding if weight is user else got.model.item_embedding
            assert torch.equal(own, weight[order])
    assert read.data.fingerprint() == saved.data.fingerprint()
    assert "made again" in read.notes[0]
    assert "saved data loaders" in saved.notes[0]


def test_negatives_are_as_many_as_in_training_and_never_the_padding(files):
    sampling = {"distribution": "popularity", "sample_num": 3, "dynamic": False}
    path, inter, *_ = files(train_neg_sample_args=sampling, weight_decay=0.01)
    read = recbole.read(path, inter=inter)
    data = read.data
    assert data.negative.shape == (len(data), 3)
    padding = data.item_ids.encode(["[PAD]"])[0]
    assert not bool((data.negative == int(padding)).any())
    met = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    drawn = data.user.repeat_interleave(3).tolist(), data.negative.flatten().tolist()
    assert not met & set(zip(*drawn, strict=True))
    assert read.objective == Objective("bpr", l2=0.01 * 3 * len(data))
    assert "3 for each interaction, drawn uniformly with seed 2020" in read.notes[1]
    assert "'popularity'" in read.notes[1]
    other = recbole.read(path, inter=inter, seed=5, negatives=1)
    assert other.data.negative.shape == (len(data), 1)


@pytest.mark.parametrize("power", [True, False])
def test_lightgcns_regulariser_counts_where_it_is_a_square(files, power):
    path, inter, *_ = files("LightGCN", reg_weight=0.01, require_pow=power)
    read = recbole.read(path, inter=inter)
    assert read.model.n_layers == 2
    assert read.objective.l2_per_sample == (0.01 if power else 0.0)
    assert any("left out" in note for note in read.notes) is not power


def records(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_only_numbers_of_what_changed_are_written(files, model, tmp_path):
    path, inter, _, split, (user, item) = files(model)
    read = recbole.read(path, inter=inter)
    padding = read.model.embedding[read.data.user_ids.encode(["[PAD]"])[0]].clone()
    name = split[0][3]
    request = Forget(users=read.data.user_ids.encode([name]))
    new = unlearn(read.model, read.data, request, objective=read.objective).model
    target = tmp_path / "new.pth"
    before = path.read_bytes()
    recbole.write(read, new, path, target)
    assert path.read_bytes() == before
    old_records, new_records = records(path), records(target)
    assert list(old_records) == list(new_records)
    assert old_records["data.pkl"] == new_records["data.pkl"]

    def tensors(file):
        # By the pickle's own order of storages: weights, cached features, then the optimiser's.
        return [
            torch.frombuffer(bytearray(content), dtype=torch.float32)
            for name, content in records(file).items()
            if name.startswith("data/")
        ]

    again = recbole.read(target, dataloaders=save_loaders(files, model, tmp_path))
    wanted = new.embedding.clone()
    for order, offset, weight in (
        (read.user_order, 0, user),
        (read.item_order, new.n_users, item),
    ):
        wanted[offset + int(order.argmin())] = weight[0]
    assert torch.equal(again.model.embedding, wanted)
    assert torch.equal(again.model.user_embedding[read.user_order.argmin()], padding)
    forgotten = int(request.users[0])
    assert not bool(again.model.user_embedding[forgotten].any())

    shapes = [len(user) * DIM, len(item) * DIM]
    found = tensors(target)
    sizes = [x.numel() for x in found]
    features = read.in_order(new.features()[: new.n_users], new.features()[new.n_users :])
    if model == "LightGCN":
        whole = found[sizes.index(sum(shapes))].view(-1, DIM)
        torch.testing.assert_close(whole, torch.cat(features), rtol=1e-6, atol=1e-7)
    moments = [x.view(-1, DIM) for x in found if x.numel() == shapes[0]][1:]
    changed = read.in_order(
        (new.user_embedding != read.model.user_embedding).any(1),
        (new.item_embedding != read.model.item_embedding).any(1),
    )[0]
    changed[0] = False
    assert len(moments) == 2
    assert bool(changed.any())
    for moment in moments:
        assert not bool(moment[changed].any())
        assert bool(moment[~changed].any(1).all())


def save_loaders(files, model, tmp_path):
    _, _, settings, split, _ = files(model)
    target = tmp_path / "again.pth"
    fake_recbole.save_dataloaders(
        target, settings, *split[:2], torch.tensor(split[2]), torch.tensor(split[3])
    )
    return target


def test_what_cannot_be_made_again_is_refused(files, tmp_path):
    for change, text in (
        ({"rm_dup_inter": "first"}, "rm_dup_inter: 'first'; give the dataloaders"),
        ({"user_inter_num_interval": "[5,inf)"}, r"user_inter_num_interval: '\[5,inf\)'"),
        ({"load_col": None}, "load_col with columns of users or items"),
        ({"model": "NeuMF"}, "expected a checkpoint of BPR or LightGCN, got 'NeuMF'"),
    ):
        path, inter, *_ = files(**change)
        with pytest.raises(InputError, match=text):
            recbole.read(path, inter=inter)
    for arguments, text in (
        ({"split": {"TS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user"}, "split: {'TS'"),
        ({"split": {"RS": [0.8, 0.2]}, "order": "XX", "group_by": "user"}, "order: 'XX'"),
    ):
        path, inter, settings, _, weights = files()
        settings["eval_args"] = arguments
        fake_recbole.save_checkpoint(path, settings, *weights)
        with pytest.raises(InputError, match=text):
            recbole.read(path, inter=inter)
    path, inter, *_ = files()
    for options in ({}, {"inter": inter, "dataloaders": path}):
        with pytest.raises(InputError, match="expected one of the two, got both or none"):
            recbole.read(path, **options)
    lines = inter.read_text().splitlines()
    inter.write_text("\n".join(lines[:20]) + "\n")
    with pytest.raises(InputError, match=r"expected the data set of .* the padding among them"):
        recbole.read(path, inter=inter)
    with pytest.raises(InputError, match="cannot be read"):
        recbole.read(tmp_path / "none.pth", inter=inter)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "x"},
        {"seed": -1},
        {"seed": 2**70},
        {"train_neg_sample_args": ["uniform"]},
        {"train_neg_sample_args": {"distribution": "none", "sample_num": "none"}},
        {"weight_decay": "0.1"},
        {"eval_args": 3},
        {"eval_args": {"split": {"RS": ["a"]}, "order": "RO", "group_by": "user"}},
        {"eval_args": {"split": {"RS": [0, 0, 0]}, "order": "RO", "group_by": "user"}},
        {"eval_args": {"split": {}, "order": "RO", "group_by": None}},
        {"USER_ID_FIELD": 7},
        {"field_separator": "; "},
        {"load_col": "*"},
        {"model": ["BPR"]},
        {"normalize_field": "timestamp", "eval_args": ARGUMENTS["by time"]},
    ],
    ids=str,
)
def test_a_configuration_of_other_types_gives_one_sentence(files, change):
    path, inter, settings, _, weights = files()
    settings.update(change)
    fake_recbole.save_checkpoint(path, settings, *weights)
    with pytest.raises(InputError, match=": expected "):
        recbole.read(path, inter=inter)


def test_other_data_loaders_give_one_sentence(files, tmp_path):
    path, _, settings, split, _ = files()
    loaders = tmp_path / "loaders.pth"
    users, items = map(torch.tensor, split[2:])
    objects = np.array([{1}] * len(split[0]), dtype=object)
    tries = [
        ((split[0], split[1], users + 99, items), r"user: expected ids in \[0, 13\), got"),
        ((split[0], split[1], users, items[1:]), "item: expected .* values as in user"),
        ((split[0][1:], split[1], users, items), "12"),
        (([*split[0][:-1], split[0][0]], split[1], users, items), "users: expected distinct ids"),
        ((split[0], ["x", *split[1][1:]], users, items), r"items: expected ids among"),
        ((objects, split[1], users, items), "expected a training set with user_id and item_id"),
        ((split[0], split[1], None, items), "expected a training set with user_id and item_id"),
    ]
    for parts, text in tries:
        fake_recbole.save_dataloaders(loaders, settings, *parts)
        with pytest.raises(InputError, match=text):
            recbole.read(path, dataloaders=loaders)


def test_repeated_pairs_are_refused_for_lightgcn(files, tmp_path):
    path, _, settings, split, _ = files("LightGCN")
    loaders = tmp_path / "twice.pth"
    user, item = (torch.tensor([*rows, rows[0]]) for rows in split[2:])
    fake_recbole.save_dataloaders(loaders, settings, *split[:2], user, item)
    with pytest.raises(InputError, match="each pair of user and item once for LightGCN"):
        recbole.read(path, dataloaders=loaders)


def test_another_model_or_source_is_not_written(files, tmp_path):
    path, inter, settings, _, (user, item) = files()
    read = recbole.read(path, inter=inter)
    target = tmp_path / "new.pth"
    with pytest.raises(InputError, match="model: expected one as was read"):
        recbole.write(read, read.model.to(torch.float64), path, target)
    other = tmp_path / "other.pth"
    fake_recbole.save_checkpoint(other, settings, user + 1, item)
    with pytest.raises(InputError, match="source: expected the checkpoint that was read"):
        recbole.write(read, read.model, other, target)
    assert not target.exists()
