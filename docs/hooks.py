"""What mkdocs cannot do by itself: formulas as MathML, and the reference from the code.

Formulas become MathML while the site is built, so that a page needs no script for them. The
reference of the commands is read off the commands that `--help` describes, that of Python off the
docstrings.
"""

from __future__ import annotations

import html
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import typer.main
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# The modules of each chapter; the others are no part of what is public.
PYTHON = {
    "Data and models": (
        "interactions ids io.reading io.mapped datasets graph models objective io.store"
    ),
    "Training and unlearning": "train forget unlearning planning costs pruning anchored influence",
    "Verification and reports": "verify evidence report.unlearning report.page",
    "Stores and requests": "io.versions io.requests io.ledger io.forgotten io.delta",
    "Models of other libraries": (
        "compat.ifru compat.folder io.imported io.recbole io.pyg io.lightgcn_pytorch io.lenskit "
        "io.tensors"
    ),
    "Several processes": (
        "distributed.group distributed.layout distributed.data distributed.model "
        "distributed.linearization distributed.removal distributed.unlearning distributed.together "
        "distributed.columns distributed.checkpoint"
    ),
    "Linear algebra": "operators solvers preconditioners lanczos newton comparison",
    "Ops": "ops functional reference adjacency triples reordering",
    "Profiling": "profiling phases replay traces traffic",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the reference to the navigation."""
    python = [{title: page_of(title)} for title in PYTHON]
    config.nav.append({"Reference": [{"Commands": "reference/commands.md"}, {"Python": python}]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the reference."""
    pages = {"reference/commands.md": commands_page()}
    pages.update((page_of(title), python_page(title, modules)) for title, modules in PYTHON.items())
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas to MathML."""
    content = re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, content, flags=re.S)
    return re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, content, flags=re.S)


def block(match: re.Match[str]) -> str:
    r"""A displayed formula, its \tag at the right."""
    formula, _, number = html.unescape(match[1]).partition(r"\tag")
    number = number.strip().replace("{", "(").replace("}", ")")
    return f'<div class="formula">{convert(formula, display="block")}<span>{number}</span></div>'


def inline(match: re.Match[str]) -> str:
    return convert(html.unescape(match[1]))


# ---- Python -----------------------------------------------------------------------------------


def page_of(title: str) -> str:
    return f"reference/{title.lower().replace(' ', '-')}.md"


def python_page(title: str, modules: str) -> str:
    parts = [f"# {title}\n"]
    for module in modules.split():
        name = f"ifru_ext.{module}"
        parts.append(f"## {name}\n\n::: {name}\n    options:\n      heading_level: 3\n")
    return "\n".join(parts)


# ---- Commands ---------------------------------------------------------------------------------


def commands_page() -> str:
    """All commands, as `--help` has them."""
    module = importlib.import_module("ifru_ext.cli.app")
    importlib.import_module("ifru_ext.cli")  # registers them
    root = typer.main.get_command(module.app)
    parts = ["# Commands", text_of(root.help), text_of(root.epilog)]
    for path, command in commands("ifru", root):
        context = typer.Context(command, info_name=path)
        words = " ".join(command.collect_usage_pieces(context))
        parts += [f"## {path}", text_of(command.help), f"```text\n{path} {words}\n```"]
        parts.append(table(parameter.get_help_record(context) for parameter in command.params))
    return "\n\n".join(parts)


def commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Name and command of all that do something, in the order of the help."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from commands(f"{path} {name}", command)
        else:
            yield f"{path} {name}", command


def text_of(help_text: str | None) -> str:
    """The help as Markdown: examples are commands."""
    paragraphs = re.split(r"\n\s*\n", (help_text or "").replace("\b", "").strip())
    found = []
    for paragraph in paragraphs:
        text = " ".join(paragraph.split())
        if text.startswith("Example: "):
            found.append(f"```sh\n{text.removeprefix('Example: ')}\n```")
        else:
            found.append(escaped(text))
    return "\n\n".join(found)


def table(records: Iterable[tuple[str, str] | None]) -> str:
    """The parameters that are not hidden."""
    lines = [f"| `{name}` | {escaped(text)} |" for name, text in filter(None, records)]
    return "\n".join(["| argument or option | meaning |", "|---|---|", *lines])


def escaped(text: str) -> str:
    """Text that is no Markdown, for a paragraph or a cell of a table."""
    parts = re.split(r"(`[^`]*`)", text)  # code is meant as such
    parts[::2] = (re.sub(r"([\\*_{}\[\]<>|#])", r"\\\1", part) for part in parts[::2])
    return "".join(parts)
