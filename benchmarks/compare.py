"""Compares two reports of one benchmark: which rows became slower, beyond what runs differ by.

python benchmarks/compare.py before.json after.json --fail-above 1.2

A row is what one contender, method or step took in one section; sections are matched by what was
measured (data, sizes, threads, request), never by order. A ratio above 1 is slower. A difference
counts where the ranges between the quartiles do not overlap; of single times, each does. Exits with
1 where a row is slower by more than `--fail-above`, and with 2 where reports cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

# What says which measurement a section or a row of one of its lists is.
KEYS = ("shape", "data", "model", "case", "request", "flipped", "n_users", "n_items")
KEYS += ("n_interactions", "dim", "threads", "step", "op", "name", "method")
# A row's time and its quartiles, by how many milliseconds. One request's is the processor's time,
# the median of at most three runs, whose quartiles are not kept.
TIMES = (
    ("median_ms", "q1_ms", "q3_ms", 1.0),
    ("cpu_seconds", "cpu_seconds", "cpu_seconds", 1e3),
)
# Differences of these make times of two reports hard to compare.
ENVIRONMENT = ("processor", "cpus", "threads", "isa", "torch", "machine", "omp_wait_policy", "gpu")


class ReportError(ValueError):
    """Two files that are not reports of one benchmark."""


class Row(NamedTuple):
    """A time in milliseconds, with its quartiles where there were several calls."""

    median: float
    q1: float
    q3: float


class Difference(NamedTuple):
    """One measurement in both reports."""

    name: str
    before: Row
    after: Row

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median

    @property
    def verdict(self) -> str:
        """Whether the times differ by more than their quartiles."""
        if self.after.q1 > self.before.q3:
            return "slower"
        return "faster" if self.after.q3 < self.before.q1 else "same"


def times_of(report: dict[str, Any]) -> dict[str, Row]:
    """Every time of a report, by what was measured.

    Raises:
        ReportError: Two have the same name.
    """
    found: dict[str, Row] = {}
    for section in report["sections"]:
        lists = (value for value in section.values() if isinstance(value, list))
        for row in (row for rows in lists for row in rows if isinstance(row, dict)):
            for median, low, high, unit in TIMES:
                if row.get(median) is None:
                    continue
                name = ", ".join(_labels(section) + _labels(row))
                if name in found:
                    raise ReportError(f"compare: expected one row of each name, got {name}")
                quartiles = (row.get(key, row[median]) for key in (low, high))
                found[name] = Row(unit * row[median], *(unit * value for value in quartiles))
                break
    return found


def _labels(part: dict[str, Any]) -> list[str]:
    return [f"{key} {part[key]}" for key in KEYS if key in part]


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[Difference], list[str]]:
    """The measurements in both reports, and the names of those in one of them only.

    Raises:
        ReportError: They are of different benchmarks, or have no measurement in common.
    """
    if before["benchmark"] != after["benchmark"]:
        kinds = f"{before['benchmark']} and {after['benchmark']}"
        raise ReportError(f"compare: expected two reports of one benchmark, got {kinds}")
    old, new = times_of(before), times_of(after)
    both = [Difference(name, old[name], new[name]) for name in old if name in new]
    if not both:
        raise ReportError("compare: expected reports with a measurement in common, got none")
    return both, [name for name in (*old, *new) if (name in old) != (name in new)]


def environment_warning(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """One sentence that names what differs between the machines, or None."""
    one, other = (_environment(report) for report in (before, after))
    parts = [
        f"{k} {one.get(k)} and {other.get(k)}" for k in ENVIRONMENT if one.get(k) != other.get(k)
    ]
    if not parts:
        return None
    return f"Times of different environments say little about the code: {', '.join(parts)}."


def _environment(report: dict[str, Any]) -> dict[str, Any]:
    """Of the report, or of its first section, where each has its own."""
    return dict(report.get("environment") or report["sections"][0].get("environment", {}))


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_bytes())
        if {"benchmark", "sections"} <= set(report):
            return dict(report)
    except (OSError, ValueError, TypeError):
        pass
    raise ReportError(f"compare: expected the JSON of a benchmark, got {path}")


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--fail-above", type=float, default=math.inf, metavar="RATIO")
    options = parser.parse_args(arguments)
    try:
        before, after = (_read(path) for path in (options.before, options.after))
        differences, alone = compare(before, after)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    warning = environment_warning(before, after)
    if warning is not None:
        print(warning, file=sys.stderr)
    print(f"{'before, ms':>12} {'spread':>7} {'after, ms':>12} {'spread':>7} {'ratio':>6}")
    for d in differences:
        cells = "".join(f"{r.median:12.4g} {_spread(r):>7} " for r in (d.before, d.after))
        print(f"{cells}{d.ratio:6.2f} {d.verdict:<6} {d.name}")
    for name in alone:
        print(f"in one report only: {name}")
    failed = [d for d in differences if d.verdict == "slower" and d.ratio > options.fail_above]
    counts = [sum(d.verdict == verdict for d in differences) for verdict in ("slower", "faster")]
    print(f"{len(differences)} measurements, {counts[0]} slower, {counts[1]} faster.")
    if failed:
        print(f"{len(failed)} slower by more than {options.fail_above:g} times.", file=sys.stderr)
    return int(bool(failed))


def _spread(row: Row) -> str:
    """Between the quartiles, as a share of the median."""
    return f"{(row.q3 - row.q1) / row.median:.0%}" if row.q3 > row.q1 else ""


if __name__ == "__main__":
    sys.exit(main())
