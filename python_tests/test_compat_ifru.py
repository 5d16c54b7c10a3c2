"""The interface of IFRU's released scripts: a stand-in script, and the released rules by autograd.

The stand-ins are written here from the interface; none of the released code is used.
"""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ifru_ext import (
    BipartiteGraph,
    Forget,
    Interactions,
    LightGCN,
    MatrixFactorization,
    Objective,
    datasets,
    unlearn,
)
from ifru_ext.compat import ifru, scripts
from ifru_ext.compat.ifru import FolderData, influence_unlearn, load_folder, prepare

N_USERS, N_ITEMS, DIM = 40, 30, 4
N_NODES = N_USERS + N_ITEMS
KINDS = ["mf", "lightgcn"]


# ---- The stand-in script --------------------------------------------------------------------


class MF(nn.Module):
    def __init__(self, n_users, n_items, dim):
        super().__init__()
        self.user_embeddings = nn.Embedding(n_users, dim)
        self.item_embeddings = nn.Embedding(n_items, dim)

    def predict(self, users, items):
        with torch.no_grad():
            u = self.user_embeddings(torch.from_numpy(users))
            i = self.item_embeddings(torch.from_numpy(items))
            return (u * i).sum(-1).numpy()


class GCN(nn.Module):
    def __init__(self, dataset, dim, n_layers):
        super().__init__()
        self.dataset, self.n_layers, self.Graph = dataset, n_layers, dataset.Graph
        self.embedding_user = nn.Embedding(dataset.n_users, dim)
        self.embedding_item = nn.Embedding(dataset.n_items, dim)

    def F_computer(self, users_emb, items_emb, graph):  # noqa: N802 (the scripts' own name)
        layers = [torch.cat([users_emb, items_emb])]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(graph, layers[-1]))
        mean = torch.stack(layers, 1).mean(1)
        return mean.split([len(users_emb), len(items_emb)])

    def predict(self, users, items):
        with torch.no_grad():
            u, i = self.F_computer(
                self.embedding_user.weight, self.embedding_item.weight, self.Graph
            )
            return (u[torch.from_numpy(users)] * i[torch.from_numpy(items)]).sum(-1).sigmoid()


def frame(rows, kind=dict):
    columns = {name: np.array(rows[name]) for name in ("user", "item", "label")}
    if kind is dict:
        return columns
    if kind == "DataFrame":
        return pytest.importorskip("pandas").DataFrame(columns)
    table = np.zeros(len(columns["user"]), [("user", int), ("item", int), ("label", float)])
    for name, values in columns.items():
        table[name] = values
    return table


def joined(*frames):
    return {name: np.concatenate([f[name] for f in frames]) for name in frames[0]}


def normalised(rows, n_users=N_USERS, n_nodes=N_NODES):
    """The scripts' graph of the positive rows: sparse COO, symmetric, coalesced."""
    dense = np.zeros((n_nodes, n_nodes))
    positive = rows["label"] > 0
    np.add.at(dense, (rows["user"][positive], rows["item"][positive] + n_users), 1)
    dense += dense.T
    degree = dense.sum(1)
    s = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    return torch.from_numpy(s[:, None] * dense * s).to_sparse().coalesce()


def make_generator(kind="mf", *, n_train=300, n_forgotten=25, seed=0, as_frame=dict):
    """A data generator; the rows of some pairs occur twice, and node 0 of each side has none."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(N_USERS, 3)), rng.normal(size=(N_ITEMS, 3))

    def draw(n):
        user, item = rng.integers(1, N_USERS, n), rng.integers(1, N_ITEMS, n)
        logit = 2 * (taste[0][user] * taste[1][item]).sum(1)
        return {"user": user, "item": item, "label": (rng.random(n) < 1 / (1 + np.exp(-logit))) * 1}

    train = draw(n_train)
    for column in train.values():
        column[20:30] = column[40:50]
    train["label"][-n_forgotten:] = 1 - train["label"][-n_forgotten:]
    kept, forgotten = ({n: c[part] for n, c in train.items()} for part in _ends(n_forgotten))
    frames = {
        "train_normal": kept,
        "train_random": forgotten,
        "valid": draw(200),
        "test": draw(200),
    }
    g = SimpleNamespace(
        n_users=np.int64(N_USERS), n_items=N_ITEMS, n_train=n_train, train=frame(train, as_frame)
    )
    for name, rows in frames.items():
        setattr(g, name, frame(rows, as_frame))
    if kind == "lightgcn":
        g.Graph, g.ChangedGraph, g.path = normalised(train), normalised(kept), ""
        g.changed_data = frame(changed_rows(kept, forgotten), as_frame)
    return g


def _ends(n_forgotten):
    return slice(None, -n_forgotten), slice(-n_forgotten, None)


def changed_rows(kept, forgotten, n_users=N_USERS, n_nodes=N_NODES):
    """Kept rows with an endpoint whose positive degree falls by more than 1 %."""
    both = np.zeros((2, n_nodes))
    for which, rows in enumerate((joined(kept, forgotten), kept)):
        positive = rows["label"] > 0
        np.add.at(both[which], rows["user"][positive], 1)
        np.add.at(both[which], rows["item"][positive] + n_users, 1)
    fell = both[0] - both[1] > 0.01 * both[0]
    where = fell[kept["user"]] | fell[kept["item"] + n_users]
    return {name: column[where] for name, column in kept.items()}


def make_model(kind, generator, seed=0, dtype=torch.float64):
    """A model trained for some steps on all training rows, as a script would."""
    torch.manual_seed(seed)
    sizes = int(generator.n_users), int(generator.n_items)
    model = MF(*sizes, DIM) if kind == "mf" else GCN(generator, DIM, n_layers=2)
    model = model.to(dtype)
    if kind == "lightgcn":
        model.Graph = generator.Graph.to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    user, item, label = tensors(generator.train)
    for _ in range(25):
        optimizer.zero_grad()
        u, i = features(model, *weights(model))
        loss = nn.functional.binary_cross_entropy_with_logits(
            (u[user] * i[item]).sum(1), label.to(dtype)
        )
        loss.backward()
        optimizer.step()
    return model


def weights(model):
    names = ("user_embeddings", "item_embeddings") if isinstance(model, MF) else GCN_NAMES
    return [getattr(model, name).weight for name in names]


GCN_NAMES = ("embedding_user", "embedding_item")


def features(model, u, i, graph=None):
    if isinstance(model, MF):
        return u, i
    return model.F_computer(u, i, model.Graph if graph is None else graph)


def tensors(rows):
    return tuple(torch.from_numpy(np.array(rows[name])) for name in ("user", "item", "label"))


def embedding_of(model):
    return torch.cat([w.detach().clone() for w in weights(model)])


def state_embedding(path, model):
    """What a script would have after loading the file."""
    model.load_state_dict(torch.load(path, weights_only=True))
    return embedding_of(model)


# ---- The released rules, by autograd --------------------------------------------------------


def selected_by_the_rules(g, hop, *, clip):
    """Node ids, with dictionaries and sets."""
    neighbours = {n: {n} for n in range(N_NODES)}
    degree = dict.fromkeys(range(N_NODES), 1)
    for u, i in zip(g.train["user"], g.train["item"], strict=True):
        neighbours[u].add(i + N_USERS)
        neighbours[i + N_USERS].add(u)
        degree[u] += 1
        degree[i + N_USERS] += 1
    score = {}
    for u, i in zip(g.train_random["user"], g.train_random["item"], strict=True):
        for n in (u, i + N_USERS):
            score[n] = score.get(n, 0) + 1 / degree[n]
    for _ in range(1 if clip else hop):
        passed = {}
        for v in sorted(score):
            for w in neighbours[v]:
                passed[w] = passed.get(w, 0) + score[v] / degree[w]
        score = passed
    if clip:
        bound = np.quantile(list(score.values()), 0.4)
        score = {n: value for n, value in score.items() if value > bound}
    return sorted(score)


def area(score, label):
    """AUC by counting pairs."""
    above, below = score[label > 0.5], score[label < 0.5]
    higher = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    return float(higher.mean())


def released(model, g, rows, lr, n_steps):
    """(validation AUC, embedding) of each step, and the last p; float64, double backward."""
    n_users, dim = N_USERS, DIM
    start = embedding_of(model)
    moving = start[rows].clone().requires_grad_()
    ego = start.index_copy(0, rows, moving)
    u, i = ego[:n_users], ego[n_users:]

    def loss(pair, frame, reduction):
        user, item, label = tensors(frame)
        score = (pair[0][user] * pair[1][item]).sum(1)
        return nn.functional.binary_cross_entropy_with_logits(
            score, label.to(score.dtype), reduction=reduction
        )

    (gradient,) = torch.autograd.grad(loss((u, i), g.train, "mean"), moving, create_graph=True)
    old = features(model, u, i)
    total = loss(old, g.train_random, "sum")
    if isinstance(model, GCN):
        new = features(model, u, i, g.ChangedGraph)
        total = total + loss(old, g.changed_data, "sum") - loss(new, g.changed_data, "sum")
    (forget,) = torch.autograd.grad(total, moving, retain_graph=True)
    p = torch.zeros(len(rows), dim, dtype=start.dtype)
    optimizer = torch.optim.Adam([p], lr=lr)
    user, item, label = tensors(g.valid)
    steps, best, waited = [], 0.0, 0
    for _ in range(n_steps):
        (product,) = torch.autograd.grad((gradient * p).sum(), moving, retain_graph=True)
        p.grad = product - forget
        optimizer.step()
        embedding = start.index_copy(0, rows, moving.detach() + p / g.n_train)
        f_u, f_i = features(model, embedding[:n_users], embedding[n_users:])
        steps.append((area((f_u[user] * f_i[item]).sum(1).detach(), label), embedding))
        waited = 0 if steps[-1][0] > best else waited + 1
        best = max(best, steps[-1][0])
        if waited > 10:
            break
    return steps, p


# ---- Reference mode -------------------------------------------------------------------------


@pytest.mark.parametrize("as_frame", [dict, np.ndarray, "DataFrame"])
@pytest.mark.parametrize(("kind", "hop"), [("mf", 0), ("mf", 2), ("lightgcn", 1)])
def test_reference_mode_takes_the_released_steps(tmp_path, capsys, kind, hop, as_frame):
    g = make_generator(kind, as_frame=as_frame)
    model = make_model(kind, g)
    unlearner = influence_unlearn(
        tmp_path / "m.pth", if_epoch=80, if_lr=4.0, k_hop=hop, init_range=0, mode="reference"
    )
    users, items = unlearner.compute_neighbor_influence_clip(g, k_hop=hop)
    rows = torch.from_numpy(np.concatenate([users, items + N_USERS]))
    assert rows.tolist() == selected_by_the_rules(g, hop, clip=kind == "lightgcn")
    steps, p = released(model, g, rows, 4.0, 80)
    best = max(range(len(steps)), key=lambda n: (steps[n][0], -n))
    assert 0 < best < len(steps) - 1 < 79  # some steps are better, and it stops by itself

    assert unlearner.compute_hessian_with_test(model=model, data_generator=g) is None
    assert capsys.readouterr().out.count("step ") == len(steps) == best + 12
    torch.testing.assert_close(unlearner.p, p.reshape(-1, 1))
    assert torch.equal(unlearner.rows, rows)
    torch.testing.assert_close(embedding_of(model), steps[-1][1])
    torch.testing.assert_close(state_embedding(tmp_path / "m.pth", model), steps[best][1])
    if kind == "lightgcn":
        assert model.Graph is g.Graph


def test_the_limit_on_steps_holds(tmp_path, capsys):
    g = make_generator()
    model = make_model("mf", g)
    before = embedding_of(model)
    rows = torch.tensor(selected_by_the_rules(g, 0, clip=False))
    steps, _ = released(model, g, rows, 0.5, 3)
    unlearner = influence_unlearn(tmp_path / "m.pth", 3, 0.5, 0, mode="reference")
    unlearner.compute_hessian_with_test(model, g)
    assert capsys.readouterr().out.count("step ") == 3
    torch.testing.assert_close(embedding_of(model), steps[2][1])
    untouched = torch.ones(N_NODES, dtype=torch.bool)
    untouched[rows] = False
    assert torch.equal(embedding_of(model)[untouched], before[untouched])


def test_an_interrupted_run_keeps_its_best_model(tmp_path, monkeypatch):
    g = make_generator()
    model = make_model("mf", g)
    rows = torch.tensor(selected_by_the_rules(g, 0, clip=False))
    steps, _ = released(model, g, rows, 4.0, 4)

    def stop_at_step_3(text):
        if text.startswith("step 3"):
            raise KeyboardInterrupt

    unlearner = influence_unlearn(tmp_path / "m.pth", 80, 4.0, 0, mode="reference")
    monkeypatch.setattr(builtins, "print", stop_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        unlearner.compute_hessian_with_test(model, g)
    best = max(range(4), key=lambda n: (steps[n][0], -n))
    torch.testing.assert_close(embedding_of(model), steps[3][1])
    torch.testing.assert_close(state_embedding(tmp_path / "m.pth", model), steps[best][1])


def test_steps_that_diverge_are_named(tmp_path, capsys):
    g = make_generator()
    model = make_model("mf", g, dtype=torch.float32)
    unlearner = influence_unlearn(tmp_path / "m.pth", 80, 1e21, 0, mode="reference")
    with pytest.raises(ValueError, match="model: expected finite scores, got NaN or infinity; in"):
        unlearner.compute_hessian_with_test(model, g)
    # What is left is the last model that had an area.
    assert capsys.readouterr().out.count("step ") > 0
    left = embedding_of(model)
    assert bool(torch.isfinite(left).all())
    start = embedding_of(make_model("mf", g, dtype=torch.float32))[unlearner.rows]
    moved = start + unlearner.p.view(-1, DIM) / g.n_train
    torch.testing.assert_close(left[unlearner.rows], moved)


@pytest.mark.parametrize(
    ("hop", "clip"), [(0, False), (1, False), (3, False), (1, True), (3, True)]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_rows_are_those_of_the_rules(hop, clip, seed):
    g = make_generator("lightgcn" if clip else "mf", seed=seed, n_forgotten=8)
    users, items = influence_unlearn("m.pth").compute_neighbor_influence_clip(g, k_hop=hop)
    assert users.dtype == items.dtype == np.int64
    expected = selected_by_the_rules(g, hop, clip=clip)
    assert [*users, *(items + N_USERS)] == expected


# ---- Exact mode -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", [None, Objective("bce", l2=0.4)])
def test_exact_mode_is_the_engine(tmp_path, capsys, kind, dtype, objective):
    g = make_generator(kind)
    model = make_model(kind, g, dtype=dtype)
    before, old_graph = embedding_of(model), getattr(model, "Graph", None)
    user, item, label = tensors(g.train)
    data = Interactions(user, item, label, n_users=N_USERS, n_items=N_ITEMS)
    ours = (
        MatrixFactorization(before[:N_USERS], before[N_USERS:])
        if kind == "mf"
        else LightGCN(
            *before.split([N_USERS, N_ITEMS]), 2, graph=BipartiteGraph.from_interactions(data)
        )
    )
    request = Forget(interactions=range(275, 300))
    result = unlearn(ours, data, request, objective=objective or Objective("bce"))

    unlearner = influence_unlearn(tmp_path / "m.pth", objective=objective)
    assert unlearner.compute_hessian_with_test(model=model, data_generator=g) is None
    out = capsys.readouterr().out
    assert "unlearned 25 of 300 rows" in out
    assert "valid AUC" in out
    after = embedding_of(model)
    assert torch.equal(after, result.model.embedding)
    assert after.dtype == dtype
    assert not torch.equal(after, before)
    rows = unlearner.rows
    assert (after != before).any(1).nonzero()[:, 0].tolist() == rows.tolist()
    assert unlearner.p.shape == (len(rows) * DIM, 1)
    torch.testing.assert_close(before[rows] + unlearner.p.view(-1, DIM) / g.n_train, after[rows])
    assert torch.equal(state_embedding(tmp_path / "m.pth", model), after)
    score = result.model.scores(*tensors(g.test)[:2])
    got = torch.as_tensor(model.predict(g.test["user"], g.test["item"]))
    if kind == "lightgcn":
        score = score.sigmoid()
        assert model.Graph is not old_graph
        assert model.Graph.is_coalesced()
        torch.testing.assert_close(model.Graph.to_dense(), g.ChangedGraph.to_dense().to(dtype))
    torch.testing.assert_close(got, score, rtol=1e-5, atol=1e-6)


def test_a_failed_write_leaves_the_model_whole(tmp_path, monkeypatch):
    g = make_generator("lightgcn")
    model = make_model("lightgcn", g)
    before, graph = embedding_of(model), model.Graph

    def full(path, data):
        raise OSError("no space left")

    monkeypatch.setattr(ifru, "write_atomic", full)
    with pytest.raises(OSError, match="no space left"):
        influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(model, g)
    assert torch.equal(embedding_of(model), before)
    assert model.Graph is graph


def test_training_rows_may_be_in_any_order(tmp_path):
    g = make_generator()
    model, other = make_model("mf", g), make_model("mf", g)
    influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(model, g)
    order = np.random.default_rng(0).permutation(g.n_train)
    g.train = {name: column[order] for name, column in g.train.items()}
    influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(other, g)
    assert torch.equal(embedding_of(model), embedding_of(other))


def test_rows_of_one_class_have_no_area(tmp_path, capsys):
    g = make_generator()
    g.test["label"][np.isin(g.test["user"], g.train_random["user"])] = 1
    influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(make_model("mf", g), g)
    assert "and none)" in capsys.readouterr().out


# ---- What does not fit ----------------------------------------------------------------------


def without(name):
    def change(g, model):
        delattr(g, name)

    return change


def no_label(g, model):
    del g.valid["label"]


def another_row(g, model):
    g.train["label"][3] = 1 - g.train["label"][3]


def fewer_rows(g, model):
    g.train = {name: column[:-1] for name, column in g.train.items()}


def another_count(g, model):
    g.n_train = 299


def foreign_id(g, model):
    g.test["user"][5] = N_USERS


def foreign_label(g, model):
    g.train["label"][3] = g.train_normal["label"][3] = 5


def larger(g, model):
    model.item_embeddings = nn.Embedding(N_ITEMS + 1, DIM)


def biased(g, model):
    plain = model.predict
    model.predict = lambda users, items: plain(users, items) + 0.1 * users


def no_class(g, model):
    g.valid["label"][:] = 0


WRONG = [
    (without("train_random"), "data_generator: expected an attribute train_random, got a Simple"),
    (without("n_train"), "data_generator: expected an attribute n_train"),
    (no_label, "data_generator.valid: expected columns user, item and label, got none named label"),
    (another_row, "data_generator.train: expected the 300 rows of train_normal and train_random"),
    (fewer_rows, "got other ones, 299"),
    (another_count, "data_generator.n_train: expected 300, the rows of train, got 299"),
    (
        foreign_id,
        r"test: user: expected ids in \[0, n_users = 40\), got 40 in row 5",
    ),
    (foreign_label, r"label: expected values in \[0, 1\] for loss 'bce', got 5 in row 3"),
    (larger, "model: expected 40 users and 30 items as in data_generator, got 40 and 31"),
    (biased, "model: expected predict to give the inner products of its embeddings, or their sig"),
    (no_class, "label: expected both classes, got 0 positive of 200"),
]


@pytest.mark.parametrize("mode", ["exact", "reference"])
@pytest.mark.parametrize(("change", "text"), WRONG)
def test_what_does_not_fit_is_named(tmp_path, change, text, mode):
    g = make_generator()
    model = make_model("mf", g)
    change(g, model)
    before = embedding_of(model)
    with pytest.raises(ValueError, match=text):
        influence_unlearn(tmp_path / "m.pth", mode=mode).compute_hessian_with_test(model, g)
    assert torch.equal(embedding_of(model), before)
    assert not (tmp_path / "m.pth").exists()


def test_a_graph_of_other_rows_is_noticed(tmp_path):
    g = make_generator("lightgcn")
    model = make_model("lightgcn", g)
    model.Graph = g.ChangedGraph
    with pytest.raises(ValueError, match="propagated over the positives of train, or"):
        influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(model, g)


def test_folds_of_a_graph_are_refused(tmp_path):
    g = make_generator("lightgcn")
    model = make_model("lightgcn", g)
    model.Graph = [model.Graph]
    with pytest.raises(ValueError, match=r"model\.Graph: expected a sparse COO tensor, got list"):
        influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(model, g)


def test_a_model_without_known_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model: expected embeddings named user_embeddings and"):
        influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(
            nn.Linear(2, 2), make_generator()
        )


def test_a_model_that_cannot_predict_is_refused(tmp_path):
    g = make_generator()
    model = make_model("mf", g)
    mute = nn.Module()
    mute.user_embeddings, mute.item_embeddings = model.user_embeddings, model.item_embeddings
    with pytest.raises(ValueError, match="model: expected an attribute predict, got a Module"):
        influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(mute, g)


def test_changed_data_are_needed_by_the_rules_alone(tmp_path):
    g = make_generator("lightgcn")
    del g.changed_data
    model = make_model("lightgcn", g)
    with pytest.raises(ValueError, match="expected an attribute changed_data"):
        influence_unlearn(tmp_path / "m.pth", mode="reference").compute_hessian_with_test(model, g)
    influence_unlearn(tmp_path / "m.pth").compute_hessian_with_test(model, g)


def test_a_changed_graph_of_other_rows_is_noticed(tmp_path):
    g = make_generator("lightgcn")
    model = make_model("lightgcn", g)
    for wrong, text in ((g.Graph, "expected the normalised positives of"), ([], "sparse COO")):
        g.ChangedGraph = wrong
        with pytest.raises(ValueError, match=rf"data_generator\.ChangedGraph: .*{text}"):
            influence_unlearn(tmp_path / "m.pth", mode="reference").compute_hessian_with_test(
                model, g
            )


def test_no_changed_rows_are_no_term(tmp_path):
    g = make_generator("lightgcn")
    g.changed_data = {name: column[:0] for name, column in g.changed_data.items()}
    model = make_model("lightgcn", g)
    rows = torch.tensor(selected_by_the_rules(g, 1, clip=True))
    steps, _ = released(model, g, rows, 1.0, 2)
    influence_unlearn(tmp_path / "m.pth", 2, 1.0, mode="reference").compute_hessian_with_test(
        model, g
    )
    torch.testing.assert_close(embedding_of(model), steps[-1][1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "released"}, r"mode: expected one of \['exact', 'reference'\], got 'released'"),
        ({"if_epoch": 0}, "if_epoch: expected at least 1, got 0"),
        ({"if_lr": 0}, "if_lr: expected a positive number, got 0"),
        ({"k_hop": -1}, "k_hop: expected at least 0, got -1"),
        (
            {"mode": "reference", "objective": Objective("bce", l2=1.0)},
            "objective: expected None in mode 'reference'",
        ),
    ],
)
def test_wrong_arguments_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        influence_unlearn("m.pth", **options)


def test_the_file_needs_a_folder(tmp_path):
    g = make_generator()
    unlearner = influence_unlearn(tmp_path / "none" / "m.pth")
    with pytest.raises(ValueError, match="save_name: expected a file in an existing folder, got"):
        unlearner.compute_hessian_with_test(make_model("mf", g), g)


def test_lightgcn_has_no_hop_0(tmp_path):
    g = make_generator("lightgcn")
    unlearner = influence_unlearn(tmp_path / "m.pth", k_hop=0, mode="reference")
    with pytest.raises(ValueError, match="k_hop: expected at least 1, got 0"):
        unlearner.compute_hessian_with_test(make_model("lightgcn", g), g)


# ---- The folder -----------------------------------------------------------------------------


def ratings(n=2000):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 60, n), rng.integers(0, 40, n)
    return Interactions(user, item, rng.integers(0, 11, n))


def test_the_folder_is_that_of_the_recipe(tmp_path):
    folder = tmp_path / "Data" / "0.1"
    prepare(ratings(), folder, share=0.1)
    train, valid, test = datasets.core_split(ratings(), threshold=6)
    n_kept = int(0.9 * len(train))
    label = train.label.clone()
    label[n_kept:] = 1 - label[n_kept:]
    data, forget = load_folder(folder)
    assert data.fingerprint() == train.with_labels(label).fingerprint()
    assert forget.resolve(data).nonzero()[:, 0].tolist() == list(range(n_kept, len(train)))
    assert (folder / "test.csv").read_text().splitlines()[0] == "user,item,label"
    generator = FolderData(folder)
    for name, rows in (("valid", valid), ("test", test)):
        for column in ("user", "item", "label"):
            assert getattr(generator, name)[column].tolist() == getattr(rows, column).tolist()
    assert generator.n_train == len(train)
    assert (generator.n_users, generator.n_items) == train.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_a_script_runs_from_its_folder_to_its_file(tmp_path, kind, mode):
    folder, trained, unlearned = tmp_path / "0.1", tmp_path / "m.pth", tmp_path / "u.pth"
    rows = datasets.synthetic(60, 40, 1500, seed=1)
    prepare(rows, folder, threshold=1, share=0.1)
    g = FolderData(folder)
    if kind == "lightgcn":
        sizes = g.n_users, g.n_users + g.n_items
        g.Graph, g.ChangedGraph = (normalised(r, *sizes) for r in (g.train, g.train_normal))
        g.changed_data = changed_rows(g.train_normal, g.train_random, *sizes)
    torch.save(make_model(kind, g, dtype=torch.float32).state_dict(), trained)

    model = make_model(kind, g, seed=1, dtype=torch.float32)
    model.load_state_dict(torch.load(trained, weights_only=True))

    def loss_on_flipped():
        user, item, label = tensors(g.train_random)
        u, i = features(model, *weights(model))
        score = (u[user] * i[item]).sum(1).double()
        loss = nn.functional.binary_cross_entropy_with_logits(score, label.double())
        return float(loss.detach())

    before = loss_on_flipped()
    unlearner = influence_unlearn(
        save_name=unlearned, if_epoch=500, if_lr=10.0, k_hop=1, init_range=0, mode=mode
    )
    unlearner.compute_hessian_with_test(model=model, data_generator=g)
    model.load_state_dict(torch.load(unlearned, weights_only=True))
    assert loss_on_flipped() > 1.2 * before


def test_a_file_of_ratings_is_read(tmp_path):
    rows = ratings()
    table = np.stack([rows.user, rows.item, rows.label], 1).astype(int)
    np.savetxt(tmp_path / "r.csv", table, "%d", ",", header="user,item,rating", comments="")
    for source, folder in ((tmp_path / "r.csv", "a"), (rows, "b")):
        prepare(source, tmp_path / folder, seed=7, core=3)
    files = [
        [(tmp_path / f / n).read_bytes() for n in ("train_random.csv", "test.csv")] for f in "ab"
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0}, "share: expected a number between 0 and 1, got 0"),
        ({"share": 0.9999}, "share: expected one that keeps and forgets some of"),
        (
            {"threshold": 11},
            "threshold: expected one that some of the ratings reach, got 11 for",
        ),
        (
            {"core": 500},
            "expected rows of users and items with 500 rows each for all parts",
        ),
        ({"core": 0}, "core: expected at least 1, got 0"),
        ({"seed": 2**32}, r"seed: expected an integer below 2\*\*32"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_named(tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        prepare(ratings(), tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "valid.csv: expected a readable file, got"),
        ("user,item\n1,2\n", r"expected columns user, item, label, got \['user', 'item'\]"),
        ("user,item,label\n", "expected at least one row, got none"),
        ("user,item,label\n1,x,0\n", "valid.csv: expected numbers, got"),
        (
            "user,item,label\n1,2,0\n1.5,2,0\n",
            "user: expected whole numbers >= 0, got 1.5 in",
        ),
        ("user,item,label\n1,-2,0\n", "item: expected whole numbers >= 0, got -2.0 in line 2"),
    ],
)
def test_a_broken_folder_is_named(tmp_path, content, text):
    prepare(ratings(), tmp_path)
    (tmp_path / "valid.csv").unlink()
    if content is not None:
        (tmp_path / "valid.csv").write_text(content)
    with pytest.raises(ValueError, match=text):
        FolderData(tmp_path)


def test_columns_are_found_by_their_names(tmp_path):
    prepare(ratings(), tmp_path)
    plain = FolderData(tmp_path).valid
    rows = zip(*(plain[name] for name in ("label", "user", "item")), strict=True)
    lines = ["time,label,user,item", *(f"9,{y:g},{u},{i}" for y, u, i in rows)]
    (tmp_path / "valid.csv").write_text("\n".join(lines))
    again = FolderData(tmp_path).valid
    assert {name: column.tolist() for name, column in again.items()} == {
        name: column.tolist() for name, column in plain.items()
    }


def test_propagation_is_told_by_the_data_generator():
    assert scripts.propagates(make_generator("lightgcn"))
    assert not scripts.propagates(make_generator("mf"))
