"""The README's example runs, its generated parts are what the JSON says, and that is enough."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import torch
from demo_bounds import check_demo

from ifru_ext.demo import DemoSettings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(capsys):
    scope: dict[str, object] = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(example, scope)
    before, after, summary = capsys.readouterr().out.splitlines()
    assert float(after.split()[-1]) > float(before.split()[-1])
    assert "rows forgotten, residual 0." in summary
    assert len(scope["effects"]) == len(scope["data"])
    assert "Request 12" in scope["page"]
    assert torch.equal(scope["model_again"].embedding, scope["model"].embedding)


def test_the_generated_parts_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    readme = importlib.import_module("readme")
    for file in readme.GENERATED:
        assert readme.generate(file) == (ROOT / file).read_text(), file


def test_the_pictures_are_drawn_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    readme = importlib.import_module("readme")
    for file in readme.PICTURES:
        assert f"]({file})" in README
        picture = readme.draw(file)
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert picture == readme.draw(file)
        ElementTree.parse(ROOT / file)


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_demo_reaches_what_it_has_to():
    check_demo(result("demo.json"))


def test_the_demo_has_the_settings_that_were_chosen():
    chosen, settings = result("demo_settings.json")["chosen"], DemoSettings()
    assert chosen == {"l2": settings.l2, "l2_per_sample": settings.l2_per_sample}
    shown = result("demo.json")["settings"]
    assert (shown["l2"], shown["l2_per_sample"]) == (settings.l2, settings.l2_per_sample)


def test_every_op_is_listed():
    from ifru_ext import ops

    for name in ops.__all__:
        assert f"| `{name}` |" in README
