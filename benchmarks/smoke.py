"""Runs every `ifru bench` on small data and checks what it wrote; by `make bench-smoke`.

Fails where a result is wrong or missing, a command ends otherwise than well, or a table or picture
cannot be made of its report. Times are never looked at.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compare
from readme import GENERATED, PICTURES

from ifru_ext.bench.command import bench
from ifru_ext.bench.contenders import CG, HVP, PROPAGATE, Contender

FOLDER = Path("build/bench-smoke")
PRODUCTS = ("--shapes", "tiny,ml-100k", "--dims", "64", "--repeats", "1")
SCALE = ("--most", "3e5", "--dim", "16", "--repeats", "1")
UNLEARN = ("--data", "tiny/mf", "--seeds", "2", "--sequential", "3")
UNLEARN += ("--models", str(FOLDER / "models"))
N_SHAPES = 2


def check(condition: bool, sentence: str) -> None:
    """Ends the program with a sentence where a result is broken."""
    if not condition:
        sys.exit(f"bench-smoke: expected {sentence}")


def check_products(contenders: Sequence[Contender[Any]]) -> Callable[[dict[str, Any]], None]:
    """Of hvp, propagate and cg: every contender is there, right, and beside the roofline."""

    def checked(report: dict[str, Any]) -> None:
        threads = {line["threads"] for line in report["bandwidth"]}
        sections = report["sections"]
        check(len(sections) == N_SHAPES * len(threads), f"{N_SHAPES} shapes by {threads} threads")
        for section in sections:
            rows = {row["name"]: row for row in section["contenders"]}
            left_out = {row["name"] for row in section["skipped"] if row["reason"]}
            at = f"{report['benchmark']}, {section['shape']}"
            missing = {c.name for c in contenders} - set(rows) - left_out
            check(not missing, f"all contenders of {at}, {missing} are missing")
            check("ours" in rows, f"ours among the rows of {at}")
            for c in contenders:
                if c.name not in rows:
                    continue
                row = rows[c.name]
                error = row["relative_error"]
                check(0 <= error < c.tolerance, f"{at}, {c.name} to be right, off by {error}")
                check(row["calls"] > 0, f"{at}, {c.name} to be called")
                if c.n_bytes is not None:
                    check(row["gather_share"] > 0 and row["copy_share"] > 0, f"shares of {at}")

    return checked


def check_unlearn(report: dict[str, Any]) -> None:
    """Every method of every request has a finite residual and a verdict."""
    check(bool(report["sections"]), "requests in the report of unlearn")
    for section in report["sections"]:
        check(bool(section["methods"]), f"methods for the request {section['request']}")
        for row in section["methods"]:
            if section["request"] == "sequential":
                check(math.isfinite(row["parts_forget"]), "a distance after requests in a row")
                continue
            at = f"{row['method']} on the request {section['request']}"
            check(math.isfinite(row["unlearning"]["residual"]), f"a residual of {at}")
            check(bool(row["verification"]["completeness"]["verdict"]), f"a verdict on {at}")


def check_scale(report: dict[str, Any]) -> None:
    """Every phase has a time, and is as right as `ifru bench scale` itself asks for."""
    sizes = [section["n_interactions"] for section in report["sections"]]
    check(sizes == sorted(set(sizes)) and len(sizes) > 1, f"growing sizes, got {sizes}")
    names = {tuple(row["name"] for row in section["phases"]) for section in report["sections"]}
    check(len(names) == 1, f"the same phases at each size, got {names}")
    for row in (row for section in report["sections"] for row in section["phases"]):
        check(row["calls"] > 0 and row["predicted_ms"] > 0, f"{row['name']} to be measured")
        error = row.get("relative_error", 0.0)
        check(0 <= error < 1e-4, f"{row['name']} to be right, off by {error}")
        check(math.isfinite(row.get("residual", 0.0)), f"a residual of {row['name']}")


# The arguments that make each benchmark small, and what its report has to be.
SMALL: dict[str, tuple[Sequence[str], Callable[[dict[str, Any]], None]]] = {
    "hvp": (PRODUCTS, check_products(HVP)),
    "propagate": (PRODUCTS, check_products(PROPAGATE)),
    "cg": (PRODUCTS, check_products(CG)),
    "scale": (SCALE, check_scale),
    "unlearn": (UNLEARN, check_unlearn),
}


def check_table(name: str, text: str) -> None:
    """A part of the README has tables, and each has a row and as many cells in all of them."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    check(bool(tables), f"a table of {name}")
    for lines in tables:
        check(len(lines) > 2, f"a table of {name} with rows")
        check(len({line.count("|") for line in lines}) == 1, f"a table of {name} with even rows")


def run(name: str) -> dict[str, Any]:
    """One benchmark, checked."""
    arguments, checked = SMALL[name]
    path = FOLDER / f"{name}.json"
    path.unlink(missing_ok=True)  # unlearn adds to what is there
    command = [sys.executable, "-m", "ifru_ext", "bench", name, *arguments, "--json", str(path)]
    done = subprocess.run(command, check=False)
    check(done.returncode == 0, f"ifru bench {name} to end with 0, got {done.returncode}")
    report: dict[str, Any] = json.loads(path.read_bytes())
    check(report["benchmark"] == name, f"the report of {name}, got {report['benchmark']}")
    checked(report)
    if name in GENERATED["README.md"]:
        check_table(name, GENERATED["README.md"][name][1](report))
    check(
        compare.main([str(path), str(path), "--fail-above", "1"]) == 0, f"{name} as fast as itself"
    )
    return report


def main() -> None:
    """All of them."""
    names = [command.name for command in bench.registered_commands]
    unknown = [name for name in names if name not in SMALL]
    check(not unknown, f"small arguments for every benchmark, none are known for {unknown}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    reports = {name: run(str(name)) for name in SMALL}
    for file, (parts, picture) in PICTURES.items():
        drawn = picture({name: reports[name] for name in parts})
        check(b"</svg>" in drawn, f"{file} to be drawn")
    print(f"bench-smoke: {', '.join(reports)} are right")


if __name__ == "__main__":
    main()
