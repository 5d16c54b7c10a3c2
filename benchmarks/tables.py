"""Markdown tables of the reports that `ifru bench` writes, for `readme.py`."""

from __future__ import annotations

from typing import Any

__all__ = ["cg_text", "hvp_text", "propagate_text"]


def hvp_text(report: dict[str, Any]) -> str:
    """Hessian-vector products: the exact one of ours against the strongest form in plain torch.

    Then how many times faster than that form it is into a given `out`, and with bfloat16 features
    besides.
    """
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster")
    head += ("with `out`", "and bfloat16", "than double backward", "Gauss-Newton, ms", "GB/s")
    head += ("relative error", "in bfloat16")
    rows = []
    for section, ours, torch in _compared(report):
        names = "ours, GGN", "ours, out", "ours, bfloat16"
        gauss_newton, reused, stored = (_named(section, name) for name in names)
        rows.append(
            (
                *_start(section, ours, torch),
                *(f"{row['over_torch']:.2f}" for row in (reused, stored)),
                _ratio(ours["over_double_backward"]),
                _digits(gauss_newton["median_ms"]),
                f"{ours['gb_s']:.0f}",
                *(f"{row['relative_error']:.0e}" for row in (ours, stored)),
            )
        )
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def propagate_text(report: dict[str, Any]) -> str:
    """Propagation with three layers: ours against the strongest form in plain torch and COO."""
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster", "than COO")
    head += ("GB/s", "relative error")
    rows = []
    for section, ours, torch in _compared(report):
        # The one of its two forms that it chose; they differ in what they move.
        forms = [_named(section, name) for name in ("ours, gather", "ours, stream")]
        form = min(forms, key=lambda row: abs(row["median_ms"] - ours["median_ms"]))
        rows.append(
            (
                *_start(section, ours, torch),
                _ratio(_named(section, "coo")["median_ms"] / ours["median_ms"]),
                f"{form['gb_s']:.0f}",
                f"{ours['relative_error']:.0e}",
            )
        )
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def cg_text(report: dict[str, Any]) -> str:
    """Twenty iterations of conjugate gradients against the same around the strongest torch form."""
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster", "GB/s")
    head += ("relative error",)
    rows = [
        (*_start(section, ours, torch), f"{ours['gb_s']:.0f}", f"{ours['relative_error']:.0e}")
        for section, ours, torch in _compared(report)
    ]
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def _compared(
    report: dict[str, Any],
) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(section, our row, the strongest torch row)."""
    found = []
    for section in report["sections"]:
        ours = _named(section, "ours")
        found.append((section, ours, _named(section, ours["strongest_torch"])))
    return found


def _named(section: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in section["contenders"] if row["name"] == name)


def _start(section: dict[str, Any], ours: dict[str, Any], torch: dict[str, Any]) -> tuple[str, ...]:
    return (
        section["shape"],
        str(section["dim"]),
        str(section["threads"]),
        _digits(ours["median_ms"]),
        f"`{torch['name']}`",
        _digits(torch["median_ms"]),
        f"**{ours['over_torch']:.2f}**",
    )


def _machine(report: dict[str, Any]) -> str:
    e = report["environment"]
    memory = ", ".join(
        f"{line['copy_gb_s']:.0f} and {line['gather_gb_s']:.0f} GB/s "
        f"({line['threads']} thread{'s' if line['threads'] > 1 else ''}, d = {line['dim']})"
        for line in report["bandwidth"]
    )
    return (
        f"Medians, float32; {e['processor']}, {e['cpus']} cpus, {e['isa']}, torch {e['torch']}. "
        f"Torch's own copy and random row gather reach {memory}. GB/s counts what the algorithm "
        f"moves, part of it from the caches. A call costs {report['call_overhead_us']['raw']:.0f} "
        "µs on a graph of three nodes."
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first column and names to the left, numbers to the right."""
    rule = "|".join("---" if name in ("shape", "strongest in torch") else "---:" for name in head)
    lines = [f"| {' | '.join(head)} |", f"|{rule}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _digits(milliseconds: float) -> str:
    decimals = next((n for n, above in ((0, 100), (1, 10), (2, 1)) if milliseconds >= above), 3)
    return f"{milliseconds:.{decimals}f}"
