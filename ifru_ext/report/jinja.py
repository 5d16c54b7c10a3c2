"""The templates of the pages, which need packages that are not always installed."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ifru_ext.errors import InputError
from ifru_ext.report import text

__all__ = ["module", "template"]


def module(name: str) -> Any:
    """A module by name.

    Raises:
        InputError: It, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the report's page needs {error.name}, which is not installed: "
            'pip install "ifru-ext[cli]"'
        ) from None


@functools.cache
def template(name: str) -> Any:
    """A template of Jinja's, in which everything is shown as text.

    Raises:
        InputError: Jinja2 is not installed.
    """
    jinja2 = module("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ifru_ext.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {
            "number": text.number,
            "seconds": text.seconds,
            "share": text.share,
            "shown": text.shown,
        }
    )
    return environment.get_template(name)
