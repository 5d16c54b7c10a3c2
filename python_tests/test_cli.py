"""The command line as a person meets it: what it prints, writes, refuses, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from problems import make_learnable
from safetensors import safe_open
from safetensors.torch import save_file

import ifru_ext
from ifru_ext import load_model
from ifru_ext._native import native
from ifru_ext.cli import app, demonstration, requests, training
from ifru_ext.demo import DemoSettings
from ifru_ext.solvers import SolveReason
from ifru_ext.unlearning import unlearn


def write_csv(path, data, header="user,item,rating"):
    lines = [header]
    columns = data.user.tolist(), data.item.tolist(), data.label.tolist()
    lines += [f"u{u},i{i},{y:g}" for u, i, y in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def ratings(tmp_path):
    return write_csv(tmp_path / "ratings.csv", make_learnable(2000))


@pytest.fixture
def model(tmp_path, ratings, ifru):
    folder = tmp_path / "model"
    code, _, err = ifru("train", ratings, "--out", folder, "--dim", 8, "--epochs", 2)
    assert code == 0, err
    return folder


def test_info_says_what_is_in_use_and_why(ifru):
    code, out, _ = ifru("info")
    assert code == 0
    for word in (
        "ifru-ext",
        "torch",
        "threads",
        "in use, of baseline",
        "CUDA kernels",
        "CUDA device",
        "train and unlearn compute on the CPU",
    ):
        assert word in " ".join(out.split())
    code, out, _ = ifru("info", "--json")
    values = json.loads(out)
    assert values["isa"] in values["isa_supported"]
    assert values["cuda_kernels"] is native.cuda_loaded
    assert values["cuda_reason"] == native.cuda_reason != ""
    assert "CUDA has a kernel for propagate only" in values["computing"]


def test_help_names_every_command(ifru):
    code, out, _ = ifru("--help")
    assert code == 0
    for command in (
        *("train", "import", "plan", "unlearn", "verify", "influence", "undo", "purge", "info"),
        *("ledger", "demo", "bench"),
    ):
        assert command in out


def test_without_arguments_there_is_help_and_nothing_else(ifru):
    code, out, err = ifru()
    assert code == 2
    assert out.strip() == ifru("--help")[1].strip()
    assert err == ""


def test_version(ifru):
    assert ifru("--version") == (0, f"ifru-ext {ifru_ext.__version__}\n", "")


def test_train_then_unlearn_users_items_and_rows(ifru, tmp_path, ratings, model):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "\n".join(["user,item", *(x.rsplit(",", 1)[0] for x in ratings.read_text().split()[5:9])])
    )
    options = ["--users", "u3, u7", "--users", "u9", "--items", "i5", "--request", rows]
    code, text, err = ifru("unlearn", model, ratings, *options)
    assert code == 0, err
    assert "Forgot" in text
    assert "not a privacy theorem" in " ".join(text.split())
    before, after = load_model(model / "v0001"), load_model(model)
    report = json.loads((model / "latest" / "report.json").read_text())
    assert report["erased_users"] == 3
    assert report["erased_items"] == 1
    named = {tuple(x.split(",")[:2]) for x in ratings.read_text().split()[5:9]}
    pairs = [tuple(x.split(",")[:2]) for x in ratings.read_text().split()[1:]]
    n_rows = sum(pair in named for pair in pairs)  # a pair may stand in several rows
    assert report["request"] == {"interactions": n_rows, "users": 3, "items": 1}
    index = after.user_ids.encode(["u3", "u7", "u9"])
    assert not after.model.user_embedding[torch.from_numpy(index)].any()
    assert before.model.user_embedding[torch.from_numpy(index)].any()
    assert after.user_ids == before.user_ids
    assert after.fingerprint != before.fingerprint


def test_quiet_and_json(ifru, ratings, model):
    request = ["unlearn", model, ratings, "--users", "u3"]
    assert ifru("plan", *request[1:], "--quiet") == (0, "", "")
    code, out, err = ifru(*request, "--json", "--quiet")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["n_forgotten"] > 0
    assert (values["version"], values["residual_all"]) == ("v0002", values["residual"])
    assert values["ledger"] in json.loads(ifru("ledger", "verify", model, "--json")[1]).values()


def test_a_plan_writes_nothing(ifru, tmp_path, ratings, model):
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    code, out, err = ifru("plan", model, ratings, "--users", "u3", "--hops", 0)
    assert (code, err) == (0, "")
    assert "Would forget" in out
    code, out, _ = ifru("plan", model, ratings, "--users", "u3", "--json")
    assert code == 0
    assert json.loads(out)["erased_users"] == 1
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_second_request_goes_by_the_first_one_s_anchor(ifru, tmp_path, ratings, model):
    assert ifru("unlearn", model, ratings, "--users", "u3")[0] == 0
    left = tmp_path / "left.csv"
    lines = ratings.read_text().splitlines()
    left.write_text("\n".join(line for line in lines if not line.startswith("u3,")) + "\n")
    options = ["--hops", 1, "--keep", 0.5, "--erase", "mean", "--method", "influence"]
    reports = []
    for data in (ratings, left):  # with the forgotten rows, and without
        code, _, err = ifru("unlearn", model, data, "--items", "i5", *options)
        assert (code, err) == (0, "")
        reports.append(json.loads((model / "latest" / "report.json").read_text()))
        assert reports[-1]["method"] == "influence"
        assert len(reports[-1]["pruning"]["kept"]) == 2
        assert any("its anchor says so" in reason for reason in reports[-1]["reasons"])
        assert ifru("undo", model)[0] == 0
    assert (model / "v0003/model.safetensors").read_bytes() == (
        model / "v0005/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--keep", 0.5], "--keep: expected together with --hops, got it alone"),
        (["--hops", -1], "hops: expected at least 0, got -1"),
        (["--before", "soon"], "--before: expected a number or a date such as 2020-01-31"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "unlearn"])
def test_options_that_do_not_go_together(ifru, ratings, model, command, options, text):
    code, out, err = ifru(command, model, ratings, "--users", "u3", *options)
    assert (code, out) == (2, "")
    assert text in err


def test_a_residual_that_is_not_reached_is_exit_code_1(ifru, ratings, model):
    options = ["--users", "u3", "--method", "newton", "--rtol", 1e-12]
    code, _, err = ifru("unlearn", model, ratings, *options)
    assert code == 1
    assert "v0002 is not converged: a residual of 1e-12 was asked for, and" in err
    assert json.loads((model / "ledger.jsonl").read_text().splitlines()[-1])["converged"] is False
    assert json.loads((model / "v0002" / "report.json").read_text())["solve_converged"] is False
    assert "Not solved as far as asked" in (model / "v0002" / "report.html").read_text()
    # Once more it is no more converged, and not final.
    code, out, again = ifru("unlearn", model, ratings, *options, "--purge")
    assert code == 1
    assert out.startswith("Nothing to do: v0002 was made by the same request")
    assert err.strip() in again
    assert (model / "v0001").is_dir()
    assert (
        "--rtol: expected a positive number"
        in ifru("unlearn", model, ratings, "--users", "u4", "--rtol", 0)[2]
    )


def test_ids_are_read_as_csv_is(ifru, tmp_path):
    ids = ["plain", "with, comma", " led by a space", 'a "quote"']
    lines = ["user,item,rating"]
    for user in ids:
        quoted = '"' + user.replace('"', '""') + '"'
        lines += [f"{quoted},i{k},{k % 2}" for k in range(8)]
    lines += [f"u{k % 5},i{k % 8},{k % 3 % 2}" for k in range(80)]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "model"
    assert ifru("train", path, "--out", folder, "--dim", 4, "--epochs", 1)[0] == 0
    options = ["--users", 'plain, "with, comma"', "--users", '" led by a space","a ""quote"""']
    code, _, err = ifru("unlearn", folder, path, *options)
    assert code == 0, err
    after = load_model(folder)
    assert not after.model.user_embedding[torch.from_numpy(after.user_ids.encode(ids))].any()
    # The original id of a user who was erased stays: the others keep their numbers.
    assert "plain" in after.user_ids.to_json()


def test_the_defaults_are_the_demo_s(ifru, tmp_path, ratings):
    assert ifru("train", ratings, "--out", tmp_path / "m")[0] == 0
    stored, defaults = load_model(tmp_path / "m"), DemoSettings()
    assert stored.objective == defaults.objective
    assert (stored.model.dim, stored.model.n_layers) == (defaults.dim, defaults.n_layers)


def test_demo_on_a_file_writes_everything(ifru, tmp_path, ratings):
    folder = tmp_path / "demo"
    code, out, err = ifru("demo", "--data", ratings, "--out", folder)
    assert code == 0, err
    for word in ("original", "unlearned", "retrained", "retrained, other seed", "times less time"):
        assert word in out
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["demo.png", "model.json", "model.safetensors", "report.json"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        "original",
        "unlearned",
        "retrained",
        "retrained, other seed",
    ]
    assert report["rows"][2]["distance_test"] == 0
    assert report["unlearning"]["erased_users"] == 3
    assert load_model(folder).model.n_users == 120


def test_demo_without_network_says_so_in_one_line_and_goes_on(ifru, tmp_path, monkeypatch):
    from ifru_ext import datasets

    def unavailable(name):
        raise datasets.DatasetUnavailable(f"{name} cannot be downloaded (no network)")

    monkeypatch.setattr(demonstration.datasets, "load", unavailable)
    small = datasets.synthetic(200, 150, 5000, seed=0)
    monkeypatch.setattr(demonstration.datasets, "synthetic", lambda: small)
    code, out, err = ifru("demo", "--out", tmp_path / "demo")
    assert code == 0
    assert err.strip().count("\n") == 0
    assert "running on synthetic data instead" in err
    assert "retrained" in out


# Lines of the file, None for no file; options; what the sentence says.
BAD_TRAINING = {
    "missing file": (None, [], "expected a file"),
    "missing column": (
        ["person,item,rating", "a,b,1"],
        [],
        "user: expected a column 'user'",
    ),
    "missing named column": (
        ["user,item,rating", "a,b,1"],
        ["--label-column", "stars"],
        "label: expected a column 'stars'",
    ),
    "non-numeric label": (
        ["user,item,rating", "a,b,1", "a,c,good"],
        [],
        "line 3: column 'rating': expected a finite number",
    ),
    "label outside [0, 1]": (
        ["user,item,rating", "a,b,1", "a,c,5"],
        [],
        "label: expected values in [0, 1]",
    ),
    "empty": ([""], [], "empty file"),
    "no rows": (["user,item,rating"], [], "got only a header"),
    "seed": (["user,item,rating", "a,b,1"], ["--seed", "-1"], "seed: expected at least 0, got -1"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
@pytest.mark.parametrize("command", ["train", "demo"])
def test_bad_training_data(ifru, tmp_path, monkeypatch, command, case):
    lines, options, text = BAD_TRAINING[case]
    monkeypatch.chdir(tmp_path)
    if lines is not None:
        (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    source = ["bad.csv"] if command == "train" else ["--data", "bad.csv"]
    code, out, err = ifru(command, *source, "--out", tmp_path / "out", *options)
    refused(code, out, err, text, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--dim", "0"], "dim: expected at least 1, got 0"),
        (["--seed", str(2**63)], "seed: expected an integer below 2**63"),
        (["--l2", "0", "--l2-per-sample", "0"], "--no-polish trains without"),
        (["--loss", "mse", "--learning-rate", "1e20"], "training diverged in epoch"),
    ],
)
def test_bad_options_of_training(ifru, tmp_path, ratings, options, text):
    folder = tmp_path / "made" / "out"
    result = ifru("train", ratings, "--out", folder, *options)
    refused(*result, text, tmp_path / "made")


def test_demo_needs_both_labels(ifru, tmp_path):
    (tmp_path / "one.csv").write_text("user,item,rating\na,b,1\n")
    result = ifru("demo", "--data", tmp_path / "one.csv", "--out", tmp_path / "out")
    refused(*result, "label: expected both positive and negative rows", tmp_path / "out")


def refused(code, out, err, text, folder):
    """One sentence, exit code 2, and nothing written."""
    assert code == 2, (out, err)
    assert text in " ".join(err.split()), err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0, err
    assert out == ""
    assert not folder.exists()


BAD_REQUESTS = {
    "unknown user": (["--users", "u9999"], "--users: expected ids among the 120 known ones"),
    "unknown item": (["--items", "x"], "--items: expected ids among the 80 known ones"),
    "nothing": ([], "request: expected at least one of --request, --users, --items and --before"),
    "everything": (
        ["--users", ",".join(f"u{k}" for k in range(120))],
        "forget selects every interaction",
    ),
    "an open quote": (["--users", '"u1'], "--users: expected ids separated by commas"),
    "no timestamps": (["--before", "3"], "expected data with timestamps"),
    "absent rows": (["--request", "rows.csv"], "that are not in them"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(ifru, tmp_path, monkeypatch, ratings, model, case):
    options, text = BAD_REQUESTS[case]
    monkeypatch.chdir(tmp_path)
    data = make_learnable(2000)
    present = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    absent = next((u, i) for u in range(120) for i in range(80) if (u, i) not in present)
    (tmp_path / "rows.csv").write_text(f"user,item\nu{absent[0]},i{absent[1]}\n")
    unchanged(model, *ifru("unlearn", model, ratings, *options), text)


def unchanged(model, code, out, err, text):
    """One sentence, exit code 2, and the store as `train` left it."""
    refused(code, out, err, text, model / "v0002")
    assert os.readlink(model / "latest") == "v0001"
    assert (model / "ledger.jsonl").read_text().count("\n") == 1


def test_a_model_with_nan_is_refused(ifru, tmp_path, ratings, model):
    path = model / "v0001" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    tensors["user_embedding"][4, 1] = float("nan")
    save_file(tensors, path, metadata=metadata)
    text = "expected the file that the ledger names, got another: it was changed"
    unchanged(model, *ifru("unlearn", model, ratings, "--users", "u3"), text)
    text = "expected finite values, got NaN or infinity in row 4"
    refused(*ifru("import", path.parent, "--out", tmp_path / "n"), text, tmp_path / "n")


def test_model_and_data_of_different_sizes_are_refused(ifru, tmp_path, model):
    other = write_csv(tmp_path / "other.csv", make_learnable(1500))
    text = "data: expected the interactions that the model was made from"
    unchanged(model, *ifru("unlearn", model, other, "--users", "u3"), text)
    more = tmp_path / "more.csv"
    more.write_text("user,item,rating\nnobody,i1,1\nu1,i1,0\n")
    text = "got unknown ['nobody']"
    unchanged(model, *ifru("unlearn", model, more, "--users", "u1"), text)


@pytest.mark.parametrize("command", ["train", "demo"])
@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_an_unusable_folder_is_refused_before_any_work(
    ifru, tmp_path, monkeypatch, ratings, command, name
):
    for module, work in ((training, "train"), (demonstration, "run_demo")):
        monkeypatch.setattr(module, work, lambda *args, **options: pytest.fail("worked"))
    (tmp_path / "file").write_text("")
    arguments = {"train": [ratings], "demo": ["--data", ratings]}[command]
    code, out, err = ifru(command, *arguments, "--out", tmp_path / name)
    assert code == 2
    assert "expected a folder that can be written to, got" in err
    assert err.strip().count("\n") == 0
    assert (out, (tmp_path / "file").read_text()) == ("", "")


def test_training_goes_into_a_store_or_a_new_folder_only(ifru, tmp_path, ratings, model):
    folder = tmp_path / "used"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    code, _, err = ifru("train", ratings, "--out", folder)
    assert code == 2
    assert "expected a store or a new or empty folder, got one with ['notes.txt']" in err
    assert os.listdir(folder) == ["notes.txt"]
    assert ifru("train", ratings, "--out", model, "--dim", 2, "--epochs", 1)[0] == 0
    assert (load_model(model / "v0001").model.dim, load_model(model).model.dim) == (8, 2)


def test_a_full_disk_after_the_model_says_so(ifru, tmp_path, monkeypatch, ratings):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(demonstration, "write_atomic", full)
    code, out, err = ifru("demo", "--data", ratings, "--out", tmp_path / "m")
    assert code == 2
    assert "the model is written, but report.json is not (No space left on device)" in err
    assert err.strip().count("\n") == 0
    assert out == ""
    assert load_model(tmp_path / "m").model.dim == DemoSettings().dim


def test_a_model_of_a_failed_solve_is_not_written(ifru, monkeypatch, ratings, model):
    import dataclasses

    def failing(*args, **options):
        result = unlearn(*args, **options)
        reason = f"{SolveReason.NONFINITE.name}: {SolveReason.NONFINITE.value}"
        report = dataclasses.replace(result.report, solve_reason=reason, residual=float("nan"))
        return dataclasses.replace(result, report=report)

    monkeypatch.setattr(requests, "unlearn", failing)
    result = ifru("unlearn", model, ratings, "--users", "u3")
    assert result == (1, "", "the solve met a NaN or infinity; nothing was written\n")
    assert not (model / "v0002").exists()


@pytest.mark.parametrize(
    ("error", "expected_code", "text"),
    [
        (MemoryError(), 2, "error: the memory is not enough"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "error: the memory is not enough",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 2, "error: f: Permission denied"),
        (ValueError("some defect"), 70, "ValueError: some defect"),
        (RuntimeError("some defect"), 70, "RuntimeError: some defect"),
    ],
)
def test_what_becomes_of_other_errors(
    ifru, tmp_path, monkeypatch, ratings, error, expected_code, text
):
    def failing(*args, **options):
        raise error

    monkeypatch.setattr(training, "train", failing)
    code, out, err = ifru("train", ratings, "--out", tmp_path / "out")
    assert code == expected_code
    assert text in err
    assert ("Traceback" in err) is (code == 70)
    assert err.strip().count("\n") == 0 or code == 70
    assert out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--version"]])
def test_a_reader_that_goes_away_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        answer = subprocess.run(
            [sys.executable, "-m", "ifru_ext", *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (answer.returncode, answer.stderr) == (141, "")


def test_json_has_no_nan():
    values = {"a": float("nan"), "b": [1.0, float("inf")], "c": ("x", None, 2)}
    assert json.loads(app.as_json_bytes(values)) == {
        "a": None,
        "b": [1.0, None],
        "c": ["x", None, 2],
    }


def test_usage_errors_exit_with_2(ifru):
    assert ifru("demo", "--no-such-option")[0] == 2
    assert ifru("fly")[0] == 2


def test_interruption_exits_with_3(ifru, monkeypatch, ratings, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = ifru("train", ratings, "--out", tmp_path / "out")
    assert code == 3
    assert "interrupted; no model was written" in err
    assert not (tmp_path / "out").exists()


def test_interruption_while_importing_is_no_traceback():
    script = (
        "import signal, sys, ifru_command;"
        "hook = lambda event, args: event == 'import' and args[0] == 'torch'"
        " and signal.raise_signal(signal.SIGINT);"
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.addaudithook(hook);"
        "sys.exit(ifru_command.main())"
    )
    command = [sys.executable, "-c", script, "info"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    text = "interrupted; nothing was changed\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "", text)


def test_interruption_of_a_request_says_what_is_on_disk(ifru, monkeypatch, ratings, model):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests, "unlearn", interrupted)
    code, _, err = ifru("unlearn", model, ratings, "--users", "u3")
    assert code == 3
    text = f"interrupted; nothing was changed: v0001 is the latest version of {model}\n"
    assert err == text
    assert load_model(model).model.dim == 8


def test_without_the_extra_the_command_says_what_to_install():
    # A fresh interpreter in which typer cannot be imported.
    script = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['ifru', 'info'];"
        "from ifru_ext.__main__ import main; sys.exit(main())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert 'pip install "ifru-ext[cli]"' in answer.stderr
    assert "Traceback" not in answer.stderr
