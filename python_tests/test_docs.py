"""The documentation's commands exist, its examples run, and its reference leaves nothing out."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main

import ifru_ext
import ifru_ext.cli
from ifru_ext.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in (*PAGES, ROOT / "README.md")]


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


def commands(name):
    """The words after `ifru` of each command line in a page's shell examples."""
    for line in "".join(blocks(name, "sh")).replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "ifru":
            yield words[1 : words.index(">")] if ">" in words else words[1:]


def problem_with(words):
    """What is wrong with a command line; None if nothing is."""
    command = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        default = getattr(command, "default", None)  # a command that need not be named
        if default is not None and words and words[0] not in command.commands:
            words.insert(0, default)
        if words[:1] == [] or words[0] not in command.commands:
            return f"no command {words[:1]}"
        command = command.commands[words.pop(0)]
    takes = {opt: p for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    n_arguments = 0
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            n_arguments += 1
        elif word not in takes:
            return f"no option {word}"
        elif not takes[word].is_flag and not words:
            return f"no value of {word}"
        elif not takes[word].is_flag:
            words.pop(0)
    known = [p for p in command.params if p.param_type_name == "argument"]
    needed = sum(p.required for p in known)
    if not needed <= n_arguments <= len(known):
        return f"{n_arguments} arguments"
    return None


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_those_of_the_command_line(name):
    for words in commands(name):
        assert problem_with(words) is None, words


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unlearn model data.csv --user 3", "no option --user"),
        ("forget model", "no command ['forget']"),
        ("undo", "0 arguments"),
        ("ledger verify model --head", "no value of --head"),
        ("ledger verify model --json", None),
    ],
)
def test_a_wrong_command_would_be_noticed(line, problem):
    assert problem_with(line.split()) == problem


def test_the_pages_show_most_commands():
    shown = {words[0] for name in NAMES for words in commands(name)}
    assert shown >= {"train", "plan", "unlearn", "verify", "influence", "undo", "purge", "ledger"}


RUNNING = [name for name in NAMES if "docs" in name and "synthetic(" in (ROOT / name).read_text()]


@pytest.mark.parametrize("name", RUNNING)
def test_examples_that_need_no_file_run(name):
    for example in blocks(name, "python"):
        exec(example, {})


@pytest.mark.parametrize("name", NAMES)
def test_examples_import_what_there_is(name):
    for example in blocks(name, "python"):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ifru_ext"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_links_lead_to_pages():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if not target.startswith("http") and "reference/" not in target:  # made by hooks.py
                file, _, anchor = target.partition("#")
                found = (page.parent / file).resolve() if file else page
                assert found.is_file(), (page, target)
                headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M) if anchor else []
                slugs = [re.sub(r"[^\w]+", "-", h.lower()).strip("-") for h in headings]
                assert not anchor or anchor in slugs, (page, target)


def test_the_reference_has_modules_that_there_are_and_all_public_names():
    tree = ast.parse((ROOT / "docs" / "hooks.py").read_text())
    (chapters,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PYTHON"
    )
    modules = {f"ifru_ext.{m}" for names in chapters.values() for m in names.split()}
    for name in modules:
        importlib.import_module(name)
    for name in set(ifru_ext.__all__) - {"native", "profiling"}:
        assert getattr(ifru_ext, name).__module__ in modules, name
