"""The README's example runs, and its generated parts are what the JSON says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope: dict[str, object] = {}
    exec(example, scope)
    before, after, summary = capsys.readouterr().out.splitlines()
    assert float(after.split()[-1]) > float(before.split()[-1])
    assert "rows forgotten, residual 0." in summary
    assert scope["model_again"] is scope["model"]


def test_the_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    assert readme.generate(README) == README


def test_every_op_is_listed():
    from ifru_ext import ops

    for name in ops.__all__:
        assert f"| `{name}` |" in README
