"""Profiles against what was done, traces against their format, calls captured and made again."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from graphs import make_adjacency
from problems import make_learnable, make_problem
from safetensors.torch import save_file
from test_cli import write_csv
from test_ops import IN_PLACE, OPS, op_arguments

from ifru_ext import Forget, Objective, cg, costs, ops, train, unlearn
from ifru_ext.cli.requests import unlearn_command
from ifru_ext.cli.training import train_command
from ifru_ext.errors import InputError
from ifru_ext.io.versions import ModelStore
from ifru_ext.operators import GaussNewtonOperator
from ifru_ext.phases import count, phase
from ifru_ext.profiling import Profile, profile
from ifru_ext.replay import capture, load_call, replay
from ifru_ext.report.profile_page import render
from ifru_ext.traces import PHASE, read_trace
from ifru_ext.traffic import Access, Size, access_of, argument_names, call_bytes

pytestmark = pytest.mark.cpu("what is tested is the recording, not the kernels")


@pytest.fixture(scope="module")
def trained():
    """(model, data, objective, request): LightGCN at a minimum; the request takes Newton steps."""
    data = make_learnable(1500)
    objective = Objective("bce", l2=0.7, l2_per_sample=0.006)
    model = train(data, objective, dim=6, n_layers=1, epochs=2, polish_rtol=1e-3).model
    return model, data, objective, Forget(users=[3], items=[5])


@pytest.fixture(scope="module")
def profiled(trained):
    """(profile, result of the request)."""
    model, data, objective, request = trained
    with profile(roofline=False) as found:
        result = unlearn(model, data, request, objective=objective)
    return found, result


def phase_of(found, *path):
    return next(p for p in found.phases if p.path == path)


def op_of(found, name):
    return next(op for op in found.ops if op.name == f"ifru_ext::{name}")


# ---- Phases and ops -----------------------------------------------------------------------------


def test_the_phases_are_those_of_the_request(profiled):
    found, result = profiled
    names = [p.path[0] for p in found.phases if len(p.path) == 1]
    assert names == [name for name in result.report.seconds if name != "total"]
    for name in names:
        # Both clocks go around the same block.
        measured = result.report.seconds[name]
        assert phase_of(found, name).seconds == pytest.approx(measured, rel=0.2, abs=5e-3)


def test_what_solvers_count_is_what_the_result_says(profiled):
    found, result = profiled
    solve = phase_of(found, "solve")
    assert result.report.newton_steps > 0
    assert solve.counts["newton_steps"] == result.report.newton_steps
    assert solve.counts["products"] == result.report.solve_matvecs
    assert found.phases[0].counts == solve.counts
    cgs = phase_of(found, "solve", "conjugate gradients")
    assert cgs.counts["products"] == op_of(found, "pointwise_hvp").calls


def test_times_add_up(profiled):
    found, _ = profiled
    whole = found.phases[0]
    assert whole.path == ()
    assert whole.calls == 1
    outer = [p for p in found.phases if len(p.path) == 1]
    inside = sum(p.seconds for p in outer)
    assert whole.own_seconds == pytest.approx(whole.seconds - inside, abs=1e-9)
    assert sum(op.seconds for op in found.ops) == pytest.approx(whole.op_seconds, rel=1e-6)
    for p in found.phases:
        assert 0 <= p.own_seconds <= p.seconds
        assert 0 <= p.op_seconds <= p.seconds
    assert sum(s for p in found.phases for s in p.ops.values()) == pytest.approx(whole.op_seconds)


def test_the_slices_hold_the_time_in_ops(profiled):
    found, _ = profiled
    slices = found.totals.slices
    filled = sum(sum(part.values()) for part in slices) / len(slices)
    assert filled == pytest.approx(found.phases[0].op_seconds / found.seconds, rel=1e-3)
    assert all(0 <= share <= 1 + 1e-6 for part in slices for share in part.values())


def test_memory_is_counted():
    with profile(roofline=False) as found:
        with phase("kept"):
            kept = torch.ones(1000, 100)
        with phase("given back"):
            torch.ones(2000, 100)
    assert phase_of(found, "kept").allocated_bytes == kept.nbytes
    assert phase_of(found, "given back").allocated_bytes == 2 * kept.nbytes
    assert phase_of(found, "kept").peak_bytes == kept.nbytes
    assert found.phases[0].peak_bytes == 3 * kept.nbytes
    assert found.phases[0].allocations == 2


def test_phases_may_be_repeated_and_nested():
    with profile(roofline=False) as found:
        for steps in (2, 3):
            with phase("outer"), phase("inner"):
                count(steps=steps)
        with phase("inner"):
            pass
    assert [p.path for p in found.phases] == [(), ("outer",), ("outer", "inner"), ("inner",)]
    assert phase_of(found, "outer").calls == phase_of(found, "outer", "inner").calls == 2
    assert phase_of(found, "outer").counts == {"steps": 5}
    assert phase_of(found, "inner").counts == {}
    assert [span.path for span in found.totals.spans].count(("outer", "inner")) == 2


def test_without_a_profile_a_phase_is_one_object_that_does_nothing():
    assert phase("a") is phase("b")
    with phase("a") as nothing:
        count(steps=1)
    assert nothing is None


def test_an_error_within_ends_the_profile():
    with pytest.raises(KeyError), profile() as found, phase("a"):
        raise KeyError
    assert phase("a") is phase("b")
    with pytest.raises(InputError, match="expected the work to be done"):
        found.table()


def test_one_profile_at_a_time():
    with (
        profile(roofline=False) as found,
        pytest.raises(InputError, match="expected one at a time"),
        profile(),
    ):
        pass
    assert found.seconds > 0


def test_profiling_changes_no_bit(trained, profiled):
    model, data, objective, request = trained
    again = unlearn(model, data, request, objective=objective)
    assert torch.equal(again.model.embedding, profiled[1].model.embedding)


def test_other_solvers_are_phases_too():
    model, data, objective = make_problem()
    operator = GaussNewtonOperator(model, data, objective)
    with profile(roofline=False) as found:
        result = cg(operator, torch.ones_like(model.embedding))
    counts = phase_of(found, "conjugate gradients").counts
    assert counts == {"iterations": result.num_iters, "products": result.num_matvecs}


# ---- Traces -------------------------------------------------------------------------------------


def test_the_trace_is_chromes(profiled, tmp_path):
    profiled[0].export_trace(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_bytes())
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    for event in complete:
        assert event["dur"] >= 0
        assert {"name", "pid", "tid", "ts"} <= set(event)
    names = [e["name"] for e in complete]
    assert "ifru_ext::pointwise_hvp" in names
    solve = next(e for e in complete if e["name"] == f"{PHASE}solve")
    products = [e for e in complete if e["name"] == "ifru_ext::pointwise_hvp"]
    assert all(
        solve["ts"] <= e["ts"] and e["ts"] + e["dur"] <= solve["ts"] + solve["dur"]
        for e in products
    )
    assert all(e["args"]["bytes"] > 0 for e in products)
    assert "host_name" not in trace
    assert str(tmp_path) not in json.dumps(trace)


def made_up_trace():
    """A phase `a` of 100 us with an op of 40 us that calls one of 10 us; on a GPU 30 us."""

    def event(name, cat, ts, dur, **args):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}

    shapes = {"Input Dims": [[8, 4], [8, 4]], "Input type": ["float", "float"]}
    return {
        "traceEvents": [
            event("aten::empty", "cpu_op", 125.0, 10.0),
            event(f"{PHASE}total", "user_annotation", 0.0, 1000.0),
            event("somebody's range", "user_annotation", 90.0, 200.0),
            event(f"{PHASE}a", "user_annotation", 100.0, 100.0),
            event("ifru_ext::dot", "cpu_op", 120.0, 40.0, **shapes, **{"External id": 7}),
            event("dot_kernel", "kernel", 500.0, 30.0, **{"External id": 7}),
            event("of nobody", "kernel", 600.0, 30.0, **{"External id": 8}),
            {"ph": "M", "name": "process_name", "ts": 0.0, "args": {"name": "python"}},
        ]
    }


def test_times_of_a_trace():
    trace = made_up_trace()
    products = [e for e in trace["traceEvents"] if e["name"] == "ifru_ext::dot"]
    totals = read_trace(trace, [{}, {"steps": 2}])
    whole, a = totals.phases
    assert (whole.seconds, a.seconds, a.begin) == pytest.approx((1e-3, 1e-4, 1e-4))
    assert (whole.own_seconds, a.op_seconds) == pytest.approx((9e-4, 4e-5))
    assert a.counts == whole.counts == {"steps": 2}
    dot, empty = totals.ops
    assert (dot.seconds, empty.seconds) == pytest.approx((3e-5, 1e-5))
    assert dot.device_seconds == pytest.approx(3e-5)
    assert dot.bytes == 2 * 8 * 4 * 4
    assert products[0]["args"]["GB/s"] == round(dot.gb_s, 3)  # the GPU's time, not the launch's
    assert dot.gb_s == pytest.approx(256 / 3e-5 / 1e9)
    assert empty.bytes is None
    assert empty.gb_s is None


def test_bytes_are_those_of_the_op_that_moves_them():
    # Some of torch's ops call others, which do all the work, one of the same name among them.
    x = torch.randn(100_000)
    with profile(roofline=False) as found:
        torch.isfinite(x)
        torch.zeros_like(x)
    moved = {op.name: op.bytes for op in found.ops if op.bytes is not None}
    assert moved["aten::isfinite"] == moved["aten::zero_"] == 0
    assert moved["aten::fill_"] == x.nbytes
    assert moved["aten::abs"] == 2 * x.nbytes


# ---- Bytes --------------------------------------------------------------------------------------


def sizes_of(args):
    tensors = (a if isinstance(a, torch.Tensor) else None for a in args)
    return [None if t is None else Size(tuple(t.shape), t.element_size()) for t in tensors]


@pytest.mark.parametrize("name", OPS)
def test_an_op_moves_at_least_what_it_is_given_and_returns(name):
    # Every argument is read, and every result written; rows of f and z may be read many times.
    args = op_arguments(name, make_adjacency("power_law"), 16, torch.float32)
    out = getattr(ops, name)(*args)
    out = out if isinstance(out, tuple) else (out,)
    optional = ("ridge", "v", "cuts", "alpha", "f", "z")  # small, or only rows that are reached
    named = zip(argument_names(name), args, strict=False)
    least = sum(a.nbytes for n, a in named if isinstance(a, torch.Tensor) and n not in optional)
    assert call_bytes(f"ifru_ext::{name}", sizes_of(args)) >= least + sum(t.nbytes for t in out)


def test_bytes_of_a_product_by_hand():
    # 5 rows, 3 columns, 7 interactions, 4 float32 features.
    f, values = Size((8, 4), 4), Size((7,), 4)
    sizes = [Size((1, 6), 8), Size((7,), 4), Size((2,), 8), None, values, values, f, f, None]
    per_interaction = 2 * 16 + 2 * 16 + 4 + 2 * 4
    rows = 5 * (3 * 16 + 8)
    assert call_bytes("ifru_ext::pointwise_hvp", sizes) == 7 * per_interaction + rows + 3 * 16


def test_a_call_and_the_cost_model_count_the_same():
    s = costs.Sizes(5, 3, 7, 4, gathers=True)
    ids, values, f = Size((7,), 4), Size((7,), 4), Size((8, 4), 4)
    sizes = [ids, ids, f, values, None, None]
    assert call_bytes("ifru_ext::pointwise_derivatives", sizes) == costs.derivatives(s).n_bytes
    iteration = [("dot", [f, f]), ("cg_update", [f] * 4), ("cg_direction", [f, f])]
    moved = sum(call_bytes(f"ifru_ext::{name}", sizes) for name, sizes in iteration)
    assert moved == costs.conjugate_gradients(s, s.n_nodes).n_bytes
    # A triple: three rows and ids; three numbers are written.
    sizes = [ids, ids, ids, f, None]
    assert call_bytes("ifru_ext::pairwise_derivatives", sizes) == 7 * (3 * (16 + 4) + 3 * 4)


def test_bytes_of_torchs_ops():
    x, flags = Size((10, 4), 4), Size((10, 4), 1)
    assert call_bytes("aten::add_", [x, x, None]) == 3 * 160
    assert call_bytes("aten::mul", [x, Size((10, 1), 4)]) == 160 + 40 + 160
    assert call_bytes("aten::where", [flags, x, x]) == 40 + 3 * 160
    assert call_bytes("aten::add", [x, x, None, x]) == 3 * 160  # into `out`
    assert call_bytes("aten::sqrt", [x, x]) == 2 * 160
    assert call_bytes("aten::gt", [x, None]) == 160 + 40
    assert call_bytes("aten::copy_", [x, x, None]) == 2 * 160
    assert call_bytes("aten::index_select", [x, None, Size((3,), 8)]) == 24 + 2 * 48
    assert call_bytes("aten::view", [x, None]) is None
    assert call_bytes("aten::mm", [x, x]) is None
    assert call_bytes("somebody::add", [x, x]) is None


def test_access():
    gather = {name for name in ops.__all__ if access_of(f"ifru_ext::{name}") is Access.GATHER}
    assert set(ops.__all__) - gather == {"dot", "cg_update", "cg_direction"}
    assert access_of("aten::index_select") is Access.GATHER
    assert access_of("aten::copy_") is Access.COPY


# ---- Text and page ------------------------------------------------------------------------------


def test_the_table(profiled):
    found, result = profiled
    lines = found.table().splitlines()
    (solve,) = (line for line in lines if line.startswith("  solve "))
    assert f" {result.report.solve_matvecs} " in solve
    (product,) = (line for line in lines if line.startswith("ifru_ext::pointwise_hvp "))
    assert f" {op_of(found, 'pointwise_hvp').calls} " in product
    assert any(line.startswith("outside of ops") for line in lines)


def test_a_roofline_share_is_by_the_bandwidth_of_its_access(profiled):
    found = Profile(roofline=True)
    found.__dict__.update(profiled[0].__dict__, _roofline=True)
    found.__dict__["bandwidth"] = {"dim": 6, "copy_gb_s": 10.0, "gather_gb_s": 4.0}
    for name, roof in (("pointwise_hvp", 4.0), ("dot", 10.0)):
        op = op_of(found, name)
        assert found.roofline_share(op) == pytest.approx(op.gb_s / roof)
    assert "Memory: copy 10.0 GB/s, random rows of 6 float32 4.0 GB/s." in found.table()
    assert profiled[0].bandwidth is None


class Reader(HTMLParser):
    """Collects tags, their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_complete_in_itself(profiled, tmp_path):
    found, result = profiled
    found.export_html(tmp_path / "p.html", title="<b>a & b</b>")
    page = (tmp_path / "p.html").read_text()
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "b"}
    loading = {"src", "href", "srcset", "xlink:href"}
    assert not any(loading & set(attributes) for _, attributes in reader.tags)
    assert "url(" not in page
    text = "".join(reader.text)
    assert "<b>a & b</b>" in text
    assert "conjugate gradients" in text
    assert str(result.report.solve_matvecs) in text
    assert "prefers-color-scheme: dark" in page
    assert render(found.to_json(), title="<b>a & b</b>") == page


def test_the_page_of_next_to_nothing():
    with profile(roofline=False) as found:
        pass
    page = render(json.loads(json.dumps(found.to_json())))
    assert "Outside of ops" in page
    for left, width in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", page):
        assert float(left) + float(width) <= 100.5


def test_json_is_json(profiled):
    values = json.loads(json.dumps(profiled[0].to_json(), allow_nan=False))
    assert values["phases"][0]["path"] == []
    assert {"name", "calls", "seconds", "bytes", "gb_s", "roofline_share"} <= set(values["ops"][0])


# ---- Calls captured and made again --------------------------------------------------------------


def in_place_arguments(name):
    g = torch.Generator().manual_seed(0)
    vectors = [torch.randn(30, 5, generator=g) for _ in range(4)]
    scale = torch.rand(30, generator=g)
    number = torch.tensor(0.3, dtype=torch.float64)
    if name == "dot":
        return vectors[0], vectors[1]
    if name == "cg_direction":
        return vectors[0], vectors[1], number, scale
    return *vectors, number, scale, torch.zeros(2, dtype=torch.float64)


@pytest.fixture
def kept(tmp_path):
    """Captures the k-th of some calls, writes it, reads it."""

    def keep(name, calls, number=1):
        with capture(name, number) as call:
            for arguments, options in calls:
                getattr(ops, name)(*arguments, **options)
        call.save(tmp_path / "call.safetensors")
        return load_call(tmp_path / "call.safetensors")

    return keep


@pytest.mark.parametrize("name", [*OPS, "dot", *IN_PLACE])
def test_a_replay_has_the_same_bits_and_is_right(kept, name):
    if name in OPS:
        args = op_arguments(name, make_adjacency("isolated"), 7, torch.float32)
    else:
        args = in_place_arguments(name)
    found = replay(kept(name, [(args, {})]), repeats=1)
    assert found.same_bits
    assert found.deterministic
    assert found.relative_error < 1e-5
    assert found.dim == (7 if name in OPS else 5)
    assert found.n_bytes > 0
    assert found.gb_s == pytest.approx(found.n_bytes / found.timing["median_ms"] / 1e6)
    json.dumps(found.to_json())


@pytest.mark.parametrize("name", ["propagate", "pointwise_hvp"])
def test_a_call_that_was_given_memory(kept, name):
    args = op_arguments(name, make_adjacency("isolated"), 7, torch.float64)
    out = torch.empty(make_adjacency("isolated").n_nodes, 7, dtype=torch.float64)
    options = {"out": out, **({"scratch": out.clone()} if name == "propagate" else {})}
    call = kept(name, [(args, options)])
    assert call.overload == "out"
    assert "out" not in call.tensors
    found = replay(call, repeats=1)
    assert found.same_bits
    assert found.relative_error < 1e-12


def test_of_several_calls_the_one_asked_for(kept):
    calls = [((torch.full((4,), float(k)), torch.ones(4)), {}) for k in (1, 2, 3)]
    call = kept("dot", calls, number=2)
    assert torch.equal(call.tensors["x"], torch.full((4,), 2.0))


def test_an_argument_given_twice_is_kept_once(kept):
    x = torch.arange(6.0)
    call = kept("dot", [((x, x), {})])
    assert set(call.tensors) == {"x"}
    assert call.same == {"y": "x"}
    assert replay(call, repeats=1).same_bits


def test_changed_arguments_are_kept_as_they_were(kept):
    args = in_place_arguments("cg_update")
    x = args[0].clone()
    call = kept("cg_update", [(args, {})])
    assert torch.equal(call.tensors["x"], x)
    assert not torch.equal(args[0], x)
    replay(call, repeats=3)
    assert torch.equal(call.tensors["x"], x)


def test_a_call_within_a_solve(trained, tmp_path):
    model, data, objective, request = trained
    with capture("pointwise_hvp", 4) as call:
        result = unlearn(model, data, request, objective=objective)
    assert torch.equal(
        result.model.embedding, unlearn(model, data, request, objective=objective).model.embedding
    )
    call.save(tmp_path / "call.safetensors")
    found = replay(load_call(tmp_path / "call.safetensors"), repeats=1)
    assert found.same_bits
    assert found.relative_error < 1e-5


def test_a_wrong_bit_is_noticed(kept):
    args = op_arguments("pointwise_hvp", make_adjacency("isolated"), 7, torch.float32)
    call = kept("pointwise_hvp", [(args, {})])
    call.tensors["curvature"][0] *= 2
    assert not replay(call, repeats=1).same_bits


def test_what_was_not_called_cannot_be_saved(tmp_path):
    with capture("dot", 2) as call:
        ops.dot(torch.ones(3), torch.ones(3))
    with pytest.raises(InputError, match="expected at least 2 calls of dot, got fewer"):
        call.save(tmp_path / "call.safetensors")
    with pytest.raises(InputError, match="op: expected one of"), capture("relu"):
        pass


def test_other_files_are_refused(tmp_path, kept):
    text, other = tmp_path / "a.txt", tmp_path / "b.safetensors"
    text.write_text("no")
    save_file({"x": torch.ones(2)}, other)
    wrong = tmp_path / "c.safetensors"
    about = {"format": 1, "op": "dot", "number": 1, "overload": "default", "digest": ""}
    save_file({"x": torch.ones(2)}, wrong, {"ifru_ext.call": json.dumps(about)})
    for path in (text, other, wrong):
        with pytest.raises(InputError, match="expected a call that `ifru profile --capture` kept"):
            load_call(path)
    with pytest.raises(InputError, match="expected 'cpu' or 'cuda'"):
        replay(kept("dot", [((torch.ones(3), torch.ones(3)), {})]), device="gpu")


# ---- The commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    data = write_csv(folder / "ratings.csv", make_learnable(1500), header="who,what,stars")
    columns = {"user_column": "who", "item_column": "what", "label_column": "stars"}
    train_command(data, folder / "model", **columns, dim=6, epochs=2, quiet=True)
    unlearn_command(folder / "model", data, users=["u3"], quiet=True)
    return folder


@pytest.fixture
def work(made, tmp_path):
    """(data, store)."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "ratings.csv", tmp_path / "model"


def files_of(store):
    return {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_the_command_profiles_and_leaves_the_store(work, ifru, tmp_path):
    data, store = work
    before = files_of(store)
    files = ["--html", tmp_path / "p.html", "--trace", tmp_path / "t.json"]
    code, out, err = ifru(
        *("profile", store, data, "--users", "u7", "--rtol", "0.1", "--no-roofline", "--json"),
        *files,
    )
    assert code == 0, err
    values = json.loads(out)
    names = [p["path"][0] for p in values["phases"] if len(p["path"]) == 1]
    assert names[:2] == ["reading the model", "reading the data"]
    assert {"solve", "certificate", "evidence", "report", "writing"} <= set(names)
    assert files_of(store) == before
    assert read_trace(json.loads((tmp_path / "t.json").read_bytes())).phases[0].seconds > 0
    assert "reading the data" in (tmp_path / "p.html").read_text()


def test_nothing_to_do_is_said(work, ifru):
    data, store = work
    code, out, err = ifru("profile", store, data, "--users", "u3", "--no-roofline")
    assert code == 0
    assert "nothing was to be done" in err
    assert "reading the data" in out


def test_capturing_and_replaying(work, ifru, tmp_path):
    data, store = work
    version = store.joinpath("latest").resolve().name
    file = tmp_path / "call.safetensors"
    options = ["--capture", "pointwise_derivatives:2", "--to", file]
    code, out, err = ifru("profile", store, data, "--users", "u7", *options)
    assert code == 0, err
    assert str(file) in out
    with ModelStore.open(store) as opened:
        assert opened.current == version
    code, out, err = ifru("profile", "replay", file, "--threads", "1", "--no-roofline", "--json")
    assert code == 0, err
    values = json.loads(out)
    assert values["op"] == "pointwise_derivatives"
    assert values["same_bits"]
    code, out, err = ifru(
        "profile", "replay", file, "--no-roofline", "--no-check", "--repeats", "1"
    )
    assert code == 0, err
    assert "Same bits as captured" in out
    assert "twin" not in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--capture", "relu", "--to", "x"], "--capture: expected one of cg_direction"),
        (["--capture", "dot:0", "--to", "x"], "--capture: expected OP or OP:K"),
        (["--capture", "dot"], "--capture, --to: expected both or none"),
        (["--capture", "dot", "--to", "x", "--html", "y"], "expected no --trace and no --html"),
        (["--html", "nowhere/p.html"], "--html: expected a file in a folder"),
        (["--html", "p", "--trace", "./p"], "--trace, --html: expected two files, got p for both"),
        (["--threads", "0"], "--threads: expected 1 to"),
    ],
)
def test_wrong_options(work, ifru, monkeypatch, options, text):
    data, store = work
    monkeypatch.chdir(store.parent)
    code, _, err = ifru("profile", store, data, "--users", "u7", *options)
    assert code == 2
    assert text in err


def test_the_help_names_both(ifru):
    code, out, _ = ifru("profile", "--help")
    assert code == 0
    assert "request" in out
    assert "replay" in out
