"""Hostile and damaged checkpoints: one sentence, and nothing runs."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import tarfile
import zipfile

import fake_recbole
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifru_ext.errors import InputError
from ifru_ext.io import recbole, tensors
from ifru_ext.io.pickles import Inert, StoredTensor, TorchArchive, plain, unpickle


def recboles(module, name):
    return module.startswith("recbole.")


def nothing(module, name):
    return False


def read(content, inert=recboles, **options):
    return unpickle(content, "m.pth", inert, **options)


class Runs:
    """Reduces to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def text(value):
    encoded = value.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded


def by_name(module, name):
    """STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


def sentinel(tmp_path):
    """A command that would leave a file."""
    path = tmp_path / "ran"
    return f"touch {path}", path


def hostile(command):
    """Pickles that would run something, or reach for it, and why each is refused."""
    code = f"__import__('os').system({command!r})"
    call = text(command) + b"\x85R."
    stub = by_name("recbole.config", "Config")
    getter = by_name("builtins", "getattr")
    rebuild = by_name("torch._utils", "_rebuild_tensor_v2")
    two = text("system") + b"\x86R."
    deep = b")" + b"\x85" * 1_000_000
    start, system, damaged = b"\x80\x04", r"asks for (posix|nt)\.system", "got a damaged or another"
    return {
        "os.system": (pickle.dumps(Runs(os.system, command)), system),
        "protocol 0": (pickle.dumps(Runs(os.system, command), protocol=0), system),
        "by name": (start + by_name("posix", "system") + call, system),
        "INST": (b"(S" + repr(command).encode() + b"\niposix\nsystem\n.", system),
        "OBJ": (b"(cposix\nsystem\nS" + repr(command).encode() + b"\no.", system),
        "eval": (pickle.dumps(Runs(eval, code)), r"asks for builtins\.eval"),
        "exec": (pickle.dumps(Runs(exec, code)), r"asks for builtins\.exec"),
        "getattr": (start + getter + by_name("os", "path") + two, r"asks for builtins\.getattr"),
        "getattr of an inert one": (start + getter + stub + two, r"asks for builtins\.getattr"),
        "dotted name": (
            start + by_name("recbole.x", "os.system") + call,
            r"recbole\.x\.os\.system",
        ),
        "dotted name of torch's": (
            start + by_name("torch", "serialization.os.system") + call,
            r"asks for torch\.serialization\.os\.system",
        ),
        "part of what is known": (
            start + by_name("collections", "OrderedDict.fromkeys") + call,
            r"asks for collections\.OrderedDict\.fromkeys",
        ),
        "torch.load": (start + by_name("torch", "load") + call, r"asks for torch\.load"),
        "bytes of an archive": (
            start + by_name("torch.storage", "_load_from_bytes") + call,
            r"asks for torch\.storage\._load_from_bytes",
        ),
        "import of a module": (start + by_name("antigravity", "x") + b".", r"asks for antigravity"),
        "call of an inert object": (start + stub + b")R" + call, "'Inert' object is not callable"),
        "state of an inert class": (start + stub + b"}b.", "got a state for a type"),
        "state of a list": (start + b"]}b.", "got a state for a list"),
        "state of a function": (start + rebuild + b"}b.", "got a state for a function"),
        "extension": (start + b"\x82\x01.", "got the extension 1"),
        "bytearray of 2^62": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 62), "got a bytearray"),
        "text of 2^62": (start + b"\x8d" + struct.pack("<Q", 1 << 62) + b".", damaged),
        "deep key": (start + b"}" + deep + b"Ns.", "text or numbers as keys, got a tuple"),
        "deep member": (start + b"(" + deep + b"\x91.", "text or numbers as keys, got a tuple"),
        "stack underflow": (start + b"R.", damaged),
        "no end": (start + b"N", damaged),
        "empty": (b"", damaged),
        "unknown protocol": (b"\x80\x63N.", damaged),
        "memo of nothing": (start + b"h\x07.", damaged),
    }


NAMES = tuple(hostile(""))
LIVE = ("os.system", "protocol 0", "by name", "INST", "OBJ", "eval", "exec")


@pytest.mark.skipif(os.name != "posix", reason="the payloads are a POSIX shell's")
@pytest.mark.parametrize("name", LIVE)
def test_the_payloads_do_run_where_they_are_unpickled(name, tmp_path):
    command, ran = sentinel(tmp_path)
    pickle.loads(hostile(command)[name][0])
    assert ran.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_is_refused_with_a_sentence(name, tmp_path):
    command, ran = sentinel(tmp_path)
    content, reason = hostile(command)[name]
    with pytest.raises(InputError, match=rf"^m.pth: expected .*{reason}") as error:
        read(content, archived=True)
    assert "\n" not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize("name", [name for name in NAMES if "deep" not in name])
def test_a_hostile_checkpoint_is_refused_with_a_sentence(name, tmp_path):
    command, ran = sentinel(tmp_path)
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", hostile(command)[name][0])
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t1\n")
    with pytest.raises(InputError, match=r"m.pth: expected "):
        recbole.read(path, inter=tmp_path / "x.inter")
    assert not ran.exists()


def test_data_loaders_are_read_by_the_same_list(tmp_path):
    command, ran = sentinel(tmp_path)
    settings_ = fake_recbole.config()
    good, path = tmp_path / "m.pth", tmp_path / "loaders.pth"
    fake_recbole.save_checkpoint(good, settings_, torch.ones(3, 2), torch.ones(3, 2))
    archive = io.BytesIO()
    torch.save(Runs(os.system, command), archive, _use_new_zipfile_serialization=False)
    nested = Runs(torch.storage._load_from_bytes, archive.getvalue())
    for content in (
        *(hostile(command)[name][0] for name in ("os.system", "eval", "dotted name", "extension")),
        pickle.dumps([(nested, None)]),
        pickle.dumps({"a": 1}),
        pickle.dumps([]),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"loaders.pth: expected "):
            recbole.read(good, dataloaders=path)
    assert not ran.exists()


def test_state_dicts_are_read_without_their_pickle(tmp_path):
    command, ran = sentinel(tmp_path)
    path = tmp_path / "m.pth"
    for legacy in (True, False):
        torch.save({"w": Runs(os.system, command)}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match=r"m.pth: expected tensors alone.* nothing was run"):
            tensors.read_tensors(path)
    assert not ran.exists()


def archive_of(tmp_path, **options):
    path = tmp_path / "m.pth"
    fake_recbole.save_checkpoint(
        path, fake_recbole.config(), torch.randn(4, 3), torch.randn(5, 3), **options
    )
    return path


def rewritten(path, change):
    """The archive with other records: {name: content} to {name: content}, and zip's options."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    records, options = change(records)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def without(records, ending):
    return {name: x for name, x in records.items() if not name.endswith(ending)}


CHANGES = {
    "compressed": (
        lambda r: ({**r, "m/data/0": bytes(10**6)}, {"compression": zipfile.ZIP_DEFLATED}),
        "uncompressed",
    ),
    "outside": (lambda r: ({**r, "../../etc/x": b""}, {}), "one folder with data.pkl in it"),
    "absolute": (lambda r: ({**r, "/etc/x": b""}, {}), "one folder with data.pkl in it"),
    "two folders": (lambda r: ({**r, "n/data.pkl": b"N."}, {}), "one folder with data.pkl in it"),
    "no pickle": (lambda r: (without(r, "data.pkl"), {}), "one folder with data.pkl in it"),
    "no record": (lambda r: (without(r, "data/0"), {}), "expected a record 'data/0', got none"),
    "short record": (
        lambda r: ({**r, "m/data/0": r["m/data/0"][:-4]}, {}),
        "expected a record data/0 that holds its tensor",
    ),
    "big-endian": (lambda r: ({**r, "m/byteorder": b"big"}, {}), "little-endian"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_archives_are_refused(name, tmp_path):
    path = archive_of(tmp_path)
    change, expected = CHANGES[name]
    rewritten(path, change)
    with pytest.raises(InputError, match=expected):
        read_all(path)


def read_all(path):
    archive = TorchArchive(path, lambda m, n: recboles(m, n) or m == "yaml.loader")
    states = archive.content["state_dict"].values()
    return [archive.tensor(stored) for stored in states]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "m.pth"
    legacy, tar = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    for content in (legacy.getvalue(), tar.getvalue(), b"", b"PK\x03\x04", bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"expected a zip archive as torch\.save has written"):
            read_all(path)
    with pytest.raises(InputError, match=r"none.pth: cannot be read \(No such file"):
        read_all(tmp_path / "none.pth")


def test_a_truncated_archive_is_refused(tmp_path):
    path = archive_of(tmp_path)
    whole = path.read_bytes()
    for end in (*range(0, len(whole), 211), len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError):
            read_all(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255), more=st.binary(max_size=4))
def test_damage_gives_a_sentence_or_changes_nothing_that_is_read(tmp_path, at, bits, more):
    path = tmp_path / "fuzz.pth"
    if not path.exists():
        torch.manual_seed(0)
        archive_of(tmp_path).rename(path)
    whole = bytearray(path.read_bytes())
    place = int(at * len(whole))
    whole[place] ^= bits
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(bytes(whole[: place + 1]) + more + bytes(whole[place + 1 :]))
    try:
        got = read_all(damaged)
    except InputError:
        return
    assert all(torch.equal(a, b) for a, b in zip(got, read_all(path), strict=True))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_plain_data_or_a_sentence(content):
    with contextlib.suppress(InputError):  # and no other
        read(b"\x80\x04" + content, archived=True)


def tensor_pickle(numel, offset, shape, stride):
    """A data.pkl with one tensor of float32."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            named = ("storage", torch.FloatStorage, "0", "cpu", numel)
            return named if isinstance(obj, Storage) else None

    file = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    args = Storage(), offset, shape, stride, False, collections.OrderedDict()
    Pickler(file, protocol=2).dump(Runs(rebuild, *args))
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (1, (2, 3), (3, 1)),
        (0, (2, 3), (4, 1)),
        (0, (10**12,), (0,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 3), (1,)),
        (2**80, (1,), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(offset, shape, stride):
    good = read(tensor_pickle(6, 0, (2, 3), (3, 1)), archived=True)
    assert good == StoredTensor("0", torch.float32, 0, (2, 3), (3, 1))
    with pytest.raises(InputError, match="expected a tensor within its storage, got"):
        read(tensor_pickle(6, offset, shape, stride), archived=True)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_data_tensors_and_arrays_are_what_they_were(protocol):
    value = {
        "text": "a\u00e4", "bytes": b"\x00\xff", "none": None, "list": [1, -2.5, True, 10**20],
        "set": {1, 2}, "tuple": (1, (2, "x")), "number": np.float64(0.5), "count": np.int64(-3),
    }  # fmt: skip
    got = read(pickle.dumps(value, protocol=protocol), nothing)
    assert got == value
    arrays = {
        "ids": np.array(["[PAD]", "b"]), "f": np.arange(6.0).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
    }  # fmt: skip
    got = read(pickle.dumps(arrays, protocol=min(protocol, 4)), nothing)
    for name, array in arrays.items():
        assert np.array_equal(plain(got[name]), array)
    x = torch.arange(12.0).view(3, 4)
    pair = {"whole": x, "part": x[1:, ::2], "ids": torch.tensor([3, 5]), "one": torch.tensor(2.0)}
    got = read(pickle.dumps(pair, protocol=protocol), nothing)
    for name, tensor in pair.items():
        assert torch.equal(got[name].tensor(), tensor)


def test_classes_on_the_list_stay_inert(tmp_path):
    content = TorchArchive(archive_of(tmp_path), lambda m, n: recboles(m, n) or m == "yaml.loader")
    held = content.content["config"]
    assert isinstance(held, Inert)
    assert held.name == "recbole.config.configurator.Config"
    assert held.state["final_config_dict"]["model"] == "BPR"
    with pytest.raises(InputError, match=r"asks for yaml\.loader\.FullLoader"):
        TorchArchive(archive_of(tmp_path), recboles)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_changed_archive_is_whole_for_zip_and_torch(tmp_path, protocol):
    path, target = tmp_path / "a.pth", tmp_path / "b.pth"
    base = torch.randn(5, 4)
    values = {"whole": base, "part": base[1:3, 1:], "other": torch.arange(3), "empty": base[:0]}
    torch.save(values, path, pickle_protocol=protocol)
    archive = TorchArchive(path, nothing)
    stored = archive.content
    new = -torch.ones(2, 3)
    archive.write(target, [(stored["part"], new), (stored["empty"], base[:0])])
    got = torch.load(target, weights_only=protocol == 2)
    expected = base.clone()
    expected[1:3, 1:] = new
    assert torch.equal(got["whole"], expected)
    assert torch.equal(got["part"], new)
    assert torch.equal(got["other"], values["other"])
    with zipfile.ZipFile(target) as z:
        assert z.testzip() is None
    with pytest.raises(InputError, match=r"expected a tensor of shape \[3, 2\], got \[2, 3\]"):
        archive.write(target, [(stored["part"], new.T)])
    before, after = path.read_bytes(), target.read_bytes()
    assert len(before) == len(after)
    # 12 floats at most, and the checksum where zip keeps it: after the record and in its directory.
    assert 0 < sum(a != b for a, b in zip(before, after, strict=True)) <= 4 * 6 + 2 * 4


def test_archives_without_descriptors_are_changed_too(tmp_path):
    path, target = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"w": torch.zeros(4)}, path)
    rewritten(path, lambda records: (records, {}))
    archive = TorchArchive(path, nothing)
    archive.write(target, [(archive.content["w"], torch.ones(4))])
    with zipfile.ZipFile(target) as z:
        assert z.testzip() is None
    assert torch.equal(torch.load(target, weights_only=True)["w"], torch.ones(4))


def test_numbers_that_share_a_place_are_read_and_not_written(tmp_path):
    path = tmp_path / "m.pth"
    torch.save({"w": torch.arange(6.0)[1:2].expand(3), "t": torch.ones(3, 2).T}, path)
    archive = TorchArchive(path, lambda module, name: False)
    wide, turned = archive.content["w"], archive.content["t"]
    assert archive.tensor(wide).tolist() == [1.0] * 3
    assert not turned.overlaps
    with pytest.raises(InputError, match=r"m\.pth: expected a tensor with a place for each number"):
        archive.write(tmp_path / "n.pth", [(wide, torch.zeros(3))])
    assert not (tmp_path / "n.pth").exists()
