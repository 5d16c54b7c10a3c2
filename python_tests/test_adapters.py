"""Live modules, state dicts and named tensors: read, and written back where they came from."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from problems import autograd_objective, make_learnable
from safetensors.torch import load_file, save_file

from ifru_ext import (
    BiasedMatrixFactorization,
    Forget,
    Interactions,
    MatrixFactorization,
    Objective,
    unlearn,
)
from ifru_ext.errors import InputError
from ifru_ext.io import lenskit, lightgcn_pytorch, pyg, tensors
from ifru_ext.io.imported import with_sampled_negatives

N_USERS, N_ITEMS, DIM = 14, 11, 5


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 2


def positives():
    g = torch.Generator().manual_seed(8)
    pairs = torch.randperm(N_USERS * N_ITEMS, generator=g)[:60]
    return Interactions(pairs // N_ITEMS, pairs % N_ITEMS, n_users=N_USERS, n_items=N_ITEMS)


# ---- Sampled negatives ------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_negatives_are_drawn_among_the_items_not_met(loss):
    data = positives()
    got, note = with_sampled_negatives(data, Objective(loss), 2, 3, never=4)
    again, _ = with_sampled_negatives(data, Objective(loss), 2, 3, never=4)
    assert got.fingerprint() == again.fingerprint()
    assert "2 for each interaction, drawn uniformly with seed 3" in note
    met = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    if loss == "bpr":
        assert len(got) == len(data)
        user, drawn = data.user.repeat_interleave(2), got.negative.flatten()
    else:
        assert len(got) == 3 * len(data)
        assert got.n_positive == len(data)
        user, drawn = got.user[len(data) :], got.item[len(data) :]
    assert not met & set(zip(user.tolist(), drawn.tolist(), strict=True))
    assert 4 not in drawn.tolist()
    assert len(set(drawn.tolist())) > 5


# ---- PyTorch Geometric ------------------------------------------------------------------------


class PyGLightGCN(torch.nn.Module):
    """The attributes of torch_geometric.nn.LightGCN, and its sum in dense algebra."""

    def __init__(self, n_nodes, alpha, normalize=True):
        super().__init__()
        self.embedding = torch.nn.Embedding(n_nodes, DIM, _weight=random(n_nodes, DIM))
        self.register_buffer("alpha", torch.tensor(alpha))
        layers = [torch.nn.Identity() for _ in alpha[1:]]
        for layer in layers:
            layer.normalize = normalize
        self.convs = torch.nn.ModuleList(layers)

    @torch.no_grad()
    def scores(self, edge_index):
        n = len(self.embedding.weight)
        a = torch.zeros(n, n).index_put_(tuple(edge_index), torch.ones(1), accumulate=True)
        root = torch.where(a.sum(0) > 0, a.sum(0).rsqrt(), 0.0)
        x, total = self.embedding.weight, 0
        for weight in self.alpha:
            total, x = total + weight * x, root[:, None] * a * root @ x
        return total[:N_USERS] @ total[N_USERS:].T


def both_ways(data):
    ends = torch.stack([data.user, data.item + data.n_users])
    return torch.cat([ends.flip(0), ends], 1)


def all_scores(model):
    features = model.features()
    return features[: model.n_users] @ features[model.n_users :].T


@pytest.mark.parametrize("loss", ["bpr", "bce"])
@pytest.mark.parametrize("alpha", [[1 / 3] * 3, [0.7, 0.3], [1.0]])
def test_a_module_of_pyg_is_read_and_written(loss, alpha):
    data = positives()
    module, edge_index = PyGLightGCN(data.n_nodes, alpha), both_ways(data)
    read = pyg.read(module, edge_index, N_USERS, objective=Objective(loss), negatives=2, seed=7)
    assert read.model.alpha.tolist() == pytest.approx(alpha)
    torch.testing.assert_close(all_scores(read.model), module.scores(edge_index))
    request = Forget(users=[3])
    result = unlearn(read.model, read.data, request, objective=read.objective, damping=1.0)
    new_edges = pyg.write(read, result.model, module)
    assert not bool((new_edges == 3).any())
    torch.testing.assert_close(all_scores(result.model), module.scores(new_edges))
    expected = both_ways(result.retained.subset(result.retained.positive))
    assert sorted(zip(*new_edges.tolist(), strict=True)) == sorted(
        zip(*expected.tolist(), strict=True)
    )


def test_rows_that_were_kept_are_taken_as_they_are():
    data, _ = with_sampled_negatives(positives(), Objective("bce"), 1, 0)
    module = PyGLightGCN(data.n_nodes, [0.5, 0.5])
    options = {"objective": Objective("bce"), "data": data}
    read = pyg.read(module, both_ways(positives()), N_USERS, **options)
    assert read.data is data
    assert read.notes == ()
    fewer = data.subset(torch.arange(1, len(data)))
    with pytest.raises(InputError, match="data: expected rows whose positives are the edges"):
        pyg.read(module, both_ways(positives()), N_USERS, **{**options, "data": fewer})


def test_other_modules_and_edges_are_refused():
    data = positives()
    module, edges = PyGLightGCN(data.n_nodes, [0.5, 0.5]), both_ways(data)
    one_way = torch.cat([edges, edges[:, :1]], 1)
    tries = [
        ((torch.nn.Linear(2, 2), edges, N_USERS), "module: expected a torch_geometric.nn.LightGCN"),
        ((PyGLightGCN(25, [0.5, 0.5], False), edges, N_USERS), "normalise, got some with"),
        (
            (module, edges[:, : len(data)], N_USERS),
            "edge_index: expected each edge in both directions",
        ),
        ((module, one_way, N_USERS), "edge_index: expected each edge in both directions"),
        ((module, edges, N_USERS + 3), "edge_index: expected edges between a user and an item"),
        ((module, edges, data.n_nodes), "n_users: expected fewer than the 25 nodes, got 25"),
        ((module, edges[0], N_USERS), r"edge_index: expected a tensor \[2, E\]"),
        ((module, edges + 20, N_USERS), r"edge_index: expected ids in \[0, N = 25\)"),
    ]
    for args, text in tries:
        with pytest.raises(InputError, match=text):
            pyg.read(*args)
    read = pyg.read(module, edges, N_USERS)
    with pytest.raises(InputError, match=r"module: expected embeddings of shape \[25, 5\]"):
        pyg.write(read, read.model, PyGLightGCN(26, [0.5, 0.5]))
    with pytest.raises(InputError, match="model: expected a LightGCN, got one without a graph"):
        pyg.edge_index_of(MatrixFactorization(random(2, 2), random(2, 2)))


# ---- LightGCN-PyTorch -------------------------------------------------------------------------


def lightgcn_files(folder, data):
    state = {
        "embedding_user.weight": random(N_USERS, DIM, seed=1),
        "embedding_item.weight": random(N_ITEMS, DIM, seed=2),
    }
    torch.save(state, folder / "lgn.pth.tar", _use_new_zipfile_serialization=False)
    lines = []
    for user in range(N_USERS):
        items = data.item[data.user == user].tolist()
        lines.append(" ".join(map(str, [user, *items])))
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    return state, folder / "lgn.pth.tar", folder / "train.txt"


@pytest.mark.parametrize("n_layers", [3, None])
def test_a_state_dict_of_lightgcn_pytorch_is_read_and_written(tmp_path, n_layers):
    data = positives()
    data = data.subset(data.user != 2)  # a line with a user alone
    state, path, train = lightgcn_files(tmp_path, data)
    read = lightgcn_pytorch.read(path, train, n_layers=n_layers, weight_decay=0.01)
    assert read.model.kind == ("mf" if n_layers is None else "lightgcn")
    assert torch.equal(read.model.user_embedding, state["embedding_user.weight"])
    pairs = sorted(zip(data.user.tolist(), data.item.tolist(), strict=True))
    assert sorted(zip(read.data.user.tolist(), read.data.item.tolist(), strict=True)) == pairs
    assert read.objective == Objective("bpr", l2_per_sample=0.01)
    # Each user that has any counts as much as another.
    total = torch.zeros(N_USERS).index_add(0, read.data.user, read.data.weight)
    expected = torch.full((N_USERS,), len(data) / (N_USERS - 1))
    expected[2] = 0
    torch.testing.assert_close(total, expected)

    new = unlearn(
        read.model, read.data, Forget(users=[5]), objective=read.objective, damping=1.0
    ).model
    target = tmp_path / "new.pth.tar"
    lightgcn_pytorch.write(read, new, path, target)
    got = torch.load(target, weights_only=True)
    assert list(got) == list(state)
    assert torch.equal(got["embedding_user.weight"], new.user_embedding)
    assert torch.equal(got["embedding_item.weight"], new.item_embedding)
    assert not bool(got["embedding_user.weight"][5].any())


def test_other_lines_are_refused(tmp_path):
    _, path, train = lightgcn_files(tmp_path, positives())
    for content, text in (
        ("0 1 2\n1 x\n", "train.txt: line 2: expected ids from 0, got others"),
        ("0 -1\n", "train.txt: line 1: expected ids from 0"),
        (f"{10**18 - 1} 0\n", r"train.txt: user: expected ids in \[0, n_users = 14\)"),
        ("0 99\n", r"train.txt: item: expected ids in \[0, n_items = 11\).* the rows of .*lgn"),
        ("0\n1\n", "train.txt: expected lines 'user item item ...', got none"),
        ("0 \u00e9\n", "train.txt: cannot be read"),
    ):
        train.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=text):
            lightgcn_pytorch.read(path, train)
    torch.save({name: torch.tensor(1.0) for name in torch.load(path)}, path)
    with pytest.raises(InputError, match=r"embedding_user\.weight: expected shape \[rows, d\]"):
        lightgcn_pytorch.read(path, train)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"expected a tensor 'embedding_user\.weight'"):
        lightgcn_pytorch.read(path, train)


# ---- LensKit ----------------------------------------------------------------------------------


def flexmf(loss, *, biases=True, layers=0, **config):
    """The attributes of a FlexMF scorer, and the data set it was trained on."""
    rng = np.random.default_rng(3)
    users, items = rng.permutation(500)[:N_USERS], rng.permutation(900)[:N_ITEMS]

    def embedding(rows, dim, seed):
        return torch.nn.Embedding(rows, dim, _weight=random(rows, dim, seed=seed))

    model = types.SimpleNamespace(
        u_embed=embedding(N_USERS, DIM, 1),
        i_embed=embedding(N_ITEMS, DIM, 2),
        u_bias=embedding(N_USERS, 1, 3) if biases else None,
        i_bias=embedding(N_ITEMS, 1, 4),
        layers=layers,
    )
    scorer = types.SimpleNamespace(
        model=model,
        users=types.SimpleNamespace(ids=lambda: users),
        items=types.SimpleNamespace(ids=lambda: items),
        config=types.SimpleNamespace(loss=loss, reg_method="L2", **config),
    )
    if loss is None:
        scorer.global_bias = 3.25
    data = positives()

    def matrix(*, format, layout, field):
        assert (format, layout) == ("scipy", "coo")
        values = 1.0 + 4 * rng.random(len(data)) if field == "rating" else np.ones(len(data))
        row, col = data.user.numpy().astype(np.int32), data.item.numpy().astype(np.int32)
        return types.SimpleNamespace(row=row, col=col, data=values, shape=(N_USERS, N_ITEMS))

    return scorer, types.SimpleNamespace(interaction_matrix=matrix)


def flexmf_scores(scorer):
    """By the ids in ascending order."""
    m = scorer.model
    score = m.u_embed.weight @ m.i_embed.weight.T + m.i_bias.weight[:, 0]
    if m.u_bias is not None:
        score = score + m.u_bias.weight
    score = score + getattr(scorer, "global_bias", 0.0)
    users, items = np.argsort(scorer.users.ids()), np.argsort(scorer.items.ids())
    return score[torch.from_numpy(users)][:, torch.from_numpy(items)].detach()


@pytest.mark.parametrize(
    ("loss", "ours", "biases"),
    [(None, "mse", True), ("logistic", "bce", True), ("pairwise", "bpr", False)],
)
def test_a_scorer_of_lenskit_is_read_and_written(loss, ours, biases):
    options = {} if loss is None else {"negative_count": 2, "positive_weight": 1.5}
    scorer, dataset = flexmf(loss, biases=biases, **options)
    read = lenskit.read(scorer, dataset, seed=4)
    assert read.objective == Objective(ours)
    torch.testing.assert_close(all_scores(read.model), flexmf_scores(scorer))
    ids = read.data.user_ids.decode(read.data.user)[: len(positives())]
    assert ids.tolist() == scorer.users.ids()[positives().user.numpy()].tolist()
    if ours == "bce":
        assert set(read.data.weight[read.data.positive].tolist()) == {1.5}
        assert set(read.data.weight[~read.data.positive].tolist()) == {1.0}
    result = unlearn(
        read.model, read.data, Forget(users=[5]), objective=read.objective, damping=1.0
    )
    lenskit.write(read, result.model, scorer)
    torch.testing.assert_close(all_scores(result.model), flexmf_scores(scorer))
    assert (scorer.model.u_bias is None) is not biases
    gone = int(np.argsort(scorer.users.ids())[5])
    assert not bool(scorer.model.u_embed.weight[gone].any())


def test_other_scorers_are_refused():
    for change, text in (
        ({"loss": "warp"}, "scorer: expected loss 'logistic' or 'pairwise', got 'warp'"),
        ({"loss": "pairwise", "layers": 3}, "without convolution_layers, got 3"),
    ):
        with pytest.raises(InputError, match=text):
            lenskit.read(*flexmf(**change))
    scorer, dataset = flexmf(None)
    with pytest.raises(InputError, match="expected a trained FlexMF scorer of LensKit, got object"):
        lenskit.read(object(), dataset)
    read = lenskit.read(scorer, dataset)
    other = flexmf(None)[0]
    other.model.u_embed = torch.nn.Embedding(3, DIM)
    with pytest.raises(InputError, match=r"scorer: expected parameters of shape \[14, 5\]"):
        lenskit.write(read, read.model, other)
    scorer.users = types.SimpleNamespace(ids=lambda: np.arange(5))
    with pytest.raises(InputError, match="dataset: expected the one that the scorer was trained"):
        lenskit.read(scorer, dataset)


# ---- Named tensors ----------------------------------------------------------------------------

NAMES = {"user": "net.P", "item": "net.Q", "user_bias": "net.b", "item_bias": "net.c"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", ["mf", "biased", "lightgcn"])
def test_named_tensors_are_read_and_written(tmp_path, kind, suffix):
    data = make_learnable(500)
    state = {
        "net.P": random(data.n_users, DIM, seed=1),
        "net.Q": random(data.n_items, DIM, seed=2),
        "net.b": random(data.n_users, 1, seed=3),
        "net.c": random(data.n_items, seed=4),
        "mu": torch.tensor([0.25]),
        "other": torch.arange(3),
    }
    path, target = tmp_path / f"m{suffix}", tmp_path / f"n{suffix}"
    if suffix == ".pt":
        moments = {"exp_avg": random(data.n_users, DIM)}
        torch.save({"epoch": 3, "optimizer": moments, "state_dict": state}, path)
    else:
        save_file(state, path)
    names = dict(NAMES) if kind == "biased" else {k: NAMES[k] for k in ("user", "item")}
    more = {"mf": {}, "biased": {"global_bias": "mu"}, "lightgcn": {"n_layers": 2}}[kind]
    objective = Objective("bce", l2=0.2)
    read = tensors.read(path, data, objective, **names, **more)
    p, q = state["net.P"], state["net.Q"]
    wanted = p @ q.T
    if kind == "biased":
        wanted = wanted + state["net.b"] + state["net.c"] + 0.25
        assert isinstance(read.model, BiasedMatrixFactorization)
    if kind == "lightgcn":
        embedding = torch.cat([p, q]).double()
        value = autograd_objective(read.model, data, objective, embedding)
        assert objective.value(read.model, data) == pytest.approx(float(value), rel=1e-5)
    else:
        torch.testing.assert_close(all_scores(read.model), wanted)
    new = unlearn(read.model, data, Forget(users=[3]), objective=objective, damping=1.0).model
    tensors.write(read, new, path, target, **names)
    got = load_file(target) if suffix == ".safetensors" else torch.load(target, weights_only=True)
    if suffix == ".pt":
        # Where its readers look for it, without moments that know the forgotten rows.
        assert set(got) == {"epoch", "state_dict"}
        assert got["epoch"] == 3
        got = got["state_dict"]
    assert set(got) == set(state)
    assert torch.equal(got["other"], state["other"])
    assert {name: x.shape for name, x in got.items()} == {n: x.shape for n, x in state.items()}
    again = tensors.read(target, data, objective, **names, **more)
    assert torch.equal(again.model.embedding, new.embedding)
    assert not torch.equal(got["net.P"], p)


def test_other_tensors_are_refused(tmp_path):
    data, path = positives(), tmp_path / "m.safetensors"
    save_file({"u": random(N_USERS, DIM), "i": random(N_ITEMS, DIM)}, path)
    objective = Objective("mse")
    names = {"user": "u", "item": "i"}
    tries = [
        ({}, r"expected a tensor 'user_embedding', got \['i', 'u'\]"),
        ({**names, "n_layers": 1, "global_bias": 0.5}, "n_layers: expected None together with"),
        ({"user": "i", "item": "u"}, "data: expected 11 users and 14 items as in the model"),
        ({**names, "user_bias": "u"}, r"user_bias: expected shape \[14\]"),
        ({**names, "global_bias": "u"}, r"global_bias: expected one number, got 'u' of shape"),
    ]
    for options, text in tries:
        with pytest.raises(InputError, match=text):
            tensors.read(path, data, objective, **options)
    read = tensors.read(path, data, objective, **names)
    other = tmp_path / "o.safetensors"
    save_file({"u": random(3, DIM), "i": random(N_ITEMS, DIM)}, other)
    with pytest.raises(InputError, match=r"u: expected \[3, 5\] as in"):
        tensors.write(read, read.model, other, other, **names)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a readable file of tensors"):
        tensors.read_tensors(path)
    with pytest.raises(InputError, match="is not a readable file of tensors"):
        tensors.read_tensors(tmp_path / "none.pt")
    sparse = {"u": torch.eye(N_USERS).to_sparse(), "i": torch.ones(N_ITEMS, N_USERS)}
    torch.save(sparse, tmp_path / "sparse.pt")
    with pytest.raises(InputError, match="user_embedding: expected a dense tensor, got"):
        tensors.read(tmp_path / "sparse.pt", data, objective, **names)
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="expected named tensors, got none"):
        tensors.read_tensors(tmp_path / "list.pt")
