"""The command `ifru`, also `python -m ifru_ext`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_CLI_PACKAGES = ("typer", "click", "rich", "pyarrow", "matplotlib")


def main() -> int:
    """Runs the command line; returns the exit code."""
    try:
        from ifru_ext.cli import run  # noqa: PLC0415 (the package works without the extra)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in _CLI_PACKAGES:
            raise
        print(
            f'ifru: the command line needs {error.name}; pip install "ifru-ext[cli]"',
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
