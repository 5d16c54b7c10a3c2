"""`python -m ifru_ext`: the command line, and what it says where its packages are missing.

The command `ifru` is `ifru_command.py`: it sets OMP_WAIT_POLICY, which has to happen before this
package imports torch, and then calls `main` here. `python -m ifru_ext` leaves it as it is.
"""

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
