"""The command line as a person meets it: what it prints, writes, refuses, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from problems import make_learnable
from safetensors import safe_open
from safetensors.torch import save_file

from ifru_ext import load_model
from ifru_ext.__main__ import main


@pytest.fixture
def ifru(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, standard output, error output)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["ifru", *map(str, args)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


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
    ):
        assert word in out
    code, out, _ = ifru("info", "--json")
    values = json.loads(out)
    assert values["isa"] in values["isa_supported"]
    assert values["cuda_kernels"] is (torch.version.cuda is not None) or values["cuda_reason"]


def test_help_names_every_command(ifru):
    code, out, _ = ifru("--help")
    assert code == 0
    for command in ("info", "demo", "train", "unlearn"):
        assert command in out


def test_train_then_unlearn_users_items_and_rows(ifru, tmp_path, ratings, model):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "\n".join(["user,item", *(x.rsplit(",", 1)[0] for x in ratings.read_text().split()[5:9])])
    )
    out = tmp_path / "out"
    code, text, err = ifru(
        "unlearn",
        model,
        ratings,
        "--users",
        "u3, u7",
        "--items",
        "i5",
        "--rows",
        rows,
        "--out",
        out,
    )
    assert code == 0, err
    assert "Forgot" in text
    assert "not a privacy theorem" in " ".join(text.split())
    before, after = load_model(model), load_model(out)
    report = json.loads((out / "report.json").read_text())
    assert report["erased_users"] == 2
    assert report["erased_items"] == 1
    assert (
        report["request"] == {"interactions": 4, "users": 2, "items": 1}
        or report["request"]["users"] == 2
    )
    index = after.user_ids.encode(["u3", "u7"])
    assert not after.model.user_embedding[torch.from_numpy(index)].any()
    assert before.model.user_embedding[torch.from_numpy(index)].any()
    assert after.user_ids == before.user_ids
    assert after.fingerprint != before.fingerprint


def test_json_output_is_json(ifru, tmp_path, ratings, model):
    code, out, _ = ifru(
        "unlearn", model, ratings, "--users", "u3", "--out", tmp_path / "o", "--json"
    )
    assert code == 0
    assert json.loads(out)["n_forgotten"] > 0


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
    from ifru_ext import cli, datasets

    def unavailable(name):
        raise datasets.DatasetUnavailable(f"{name} cannot be downloaded (no network)")

    monkeypatch.setattr(cli.datasets, "load", unavailable)
    small = datasets.synthetic(200, 150, 5000, seed=0)
    monkeypatch.setattr(cli.datasets, "synthetic", lambda: small)
    code, out, err = ifru("demo", "--out", tmp_path / "demo")
    assert code == 0
    assert err.strip().count("\n") == 0
    assert "running on synthetic data instead" in err
    assert "retrained" in out


def bad(lines):
    """A ratings file with one thing wrong."""
    return lambda tmp_path, ratings: (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")


BAD_TRAINING = {
    "missing file": (None, ["no-such-file.csv"], "expected a file"),
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
    "bad option": (["user,item,rating", "a,b,1"], ["--dim", "0"], "dim: expected at least 1"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
@pytest.mark.parametrize("command", ["train", "demo"])
def test_bad_training_data(ifru, tmp_path, monkeypatch, command, case):
    lines, options, text = BAD_TRAINING[case]
    if command == "demo" and "--dim" in options:
        options, text = [], "label: expected both positive and negative rows"
    monkeypatch.chdir(tmp_path)
    path = options.pop(0) if lines is None and options else "bad.csv"
    if lines is not None:
        (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    source = [path] if command == "train" else ["--data", path]
    code, out, err = ifru(command, *source, "--out", tmp_path / "out", *options)
    refused(code, out, err, text, tmp_path / "out")


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
    "nothing": ([], "forget: expected at least one of interactions, users, items and before"),
    "everything": (
        ["--users", ",".join(f"u{k}" for k in range(120))],
        "forget selects every interaction",
    ),
    "no timestamps": (["--before", "3"], "expected data with timestamps"),
    "absent rows": (["--rows", "rows.csv"], "that are not in them"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(ifru, tmp_path, monkeypatch, ratings, model, case):
    options, text = BAD_REQUESTS[case]
    monkeypatch.chdir(tmp_path)
    data = make_learnable(2000)
    present = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    absent = next((u, i) for u in range(120) for i in range(80) if (u, i) not in present)
    (tmp_path / "rows.csv").write_text(f"user,item\nu{absent[0]},i{absent[1]}\n")
    result = ifru("unlearn", model, ratings, *options, "--out", tmp_path / "out")
    refused(*result, text, tmp_path / "out")


def test_a_model_with_nan_is_refused(ifru, tmp_path, ratings, model):
    path = model / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    tensors["user_embedding"][4, 1] = float("nan")
    save_file(tensors, path, metadata=metadata)
    result = ifru("unlearn", model, ratings, "--users", "u3", "--out", tmp_path / "out")
    refused(*result, "expected finite values, got NaN or infinity in row 4", tmp_path / "out")


def test_model_and_data_of_different_sizes_are_refused(ifru, tmp_path, model):
    other = write_csv(tmp_path / "other.csv", make_learnable(1500))
    result = ifru("unlearn", model, other, "--users", "u3", "--out", tmp_path / "out")
    refused(
        *result, "data: expected the interactions that the model was made from", tmp_path / "out"
    )
    (tmp_path / "more.csv").write_text("user,item,rating\nnobody,i1,1\nu1,i1,0\n")
    result = ifru(
        "unlearn", model, tmp_path / "more.csv", "--users", "u1", "--out", tmp_path / "out"
    )
    refused(*result, "got unknown ['nobody']", tmp_path / "out")


def test_an_unwritable_folder_is_one_sentence(ifru, tmp_path, ratings):
    (tmp_path / "file").write_text("")
    code, _, err = ifru("train", ratings, "--out", tmp_path / "file", "--dim", 2, "--epochs", 1)
    assert code == 2
    assert err.strip().count("\n") == 0


def test_usage_errors_exit_with_2(ifru):
    assert ifru("demo", "--no-such-option")[0] == 2
    assert ifru("fly")[0] == 2


def test_interruption_exits_with_3(ifru, monkeypatch, ratings, tmp_path):
    from ifru_ext import cli

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    code, _, err = ifru("train", ratings, "--out", tmp_path / "out")
    assert code == 3
    assert "interrupted; no file was left half-written" in err
    assert not (tmp_path / "out").exists()


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
