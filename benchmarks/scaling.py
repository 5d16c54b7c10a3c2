"""The table and the picture of `ifru bench scale`, for `readme.py`."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from figures import COLOURS, LINE, OURS, STYLE, save_svg
from matplotlib.figure import Figure

from ifru_ext.costs import H100
from ifru_ext.report.text import digits

__all__ = ["scale_picture", "scale_text"]

# Those of the picture, and the colours of their lines.
PHASES = {
    "1 % of the rows": COLOURS[3],
    "propagation, 3 layers": COLOURS[2],
    "Hessian-vector product": COLOURS[1],
    "graph build": COLOURS[4],
    "one user, the median": OURS,
    "one user, 10,000 entries": OURS,
}
DASHED = ("one user, 10,000 entries",)


def scale_text(report: dict[str, Any]) -> str:
    """A row for each phase: its time at each size, its slope, memory, and the model's error.

    Then sizes that no machine here has.
    """
    sections = report["sections"]
    sizes = [f"{section['n_interactions']:.0e}".replace("e+0", "e") for section in sections]
    head = ("ms", *sizes, "slope", "+ MB at the largest", "predicted within, median", "worst")
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for name, slope in report["slopes"].items():
        rows = [row for s in sections for row in s["phases"] if row["name"] == name]
        memory, error = rows[-1]["extra_memory_bytes"], report["errors"][name]
        cells = [digits(row["ms"]) for row in rows]
        cells += ["" if slope is None else f"{slope:.2f}"]
        cells += ["" if memory is None else f"{memory / 1e6:,.0f}"]
        cells += [f"{error[which]:.1f} times" for which in ("median", "worst")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{_notes(report)}\n\n{_predictions(report['predictions'])}"


def _notes(report: dict[str, Any]) -> str:
    e, m, last = report["environment"], report["machine"], report["sections"][-1]
    requests = {row["name"]: row for row in last["phases"] if "n_products" in row}
    median, large = requests["one user, the median"], requests["1 % of the rows"]
    errors = report["errors"].values()
    threads = report["threads"]
    clock = {"wall": "the wall clock", "processor": "processor time"}[report["clock"]]
    return (
        f"Medians of {clock}, float32, d = {report['dim']}, {threads} "
        f"thread{'s' if threads > 1 else ''}; {e['processor']}, {e['isa']}, torch {e['torch']}. "
        "Users and items grow with the rows, n / 50 and n / 200, and so do the heads of their "
        "popularity. Matrix factorisation trained for one epoch; an influence step on the rows of "
        'hop 0, `Pruning()`, from the call to the result, with an anchor of the model. "One user, '
        '10,000 entries": a user whose items have so many interactions at each size; the median '
        f"user's have {median['n_entries']:,} at {last['n_interactions']:.0e} rows, and its "
        "request follows those. What grows with the data for both is the copy of the embeddings, "
        f"when the new model is first read. 1 %: {large['n_forgotten']:,} rows, "
        f"{large['n_products']} products. Slope: the power of the number of rows. The prediction "
        "is that of the bytes, at this machine's own copy, gather and cached gather of "
        f"{m['copy_gb_s']:.0f}, {m['gather_gb_s']:.0f} and {m['cached_gb_s']:.0f} GB/s; over all "
        f"phases and sizes it misses by {max(e['worst'] for e in errors):.1f} times at worst."
    )


def _predictions(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    head = ("form", "machines", "GB each, of 80", "of a product alone", "HVP, ms")
    head += ("propagation, 3 layers, ms", f"{first['n_products']} steps of CG, s")
    lines = [
        f"Predicted, not measured: {first['n_users']:,} users, {first['n_items']:,} items, "
        f"{first['n_interactions']:,} rows, d = {first['dim']}, on {first['machine']} at "
        f"{H100.copy / 1e12:.1f} TB/s:",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
    ]
    for row in rows:
        total = f"{row['total_bytes'] / 1e9:.0f}"
        cells = (
            row["name"],
            str(row["n_machines"]),
            total if row["fits"] else f"**{total}, does not fit**",
            f"{row['product_bytes'] / 1e9:.0f}",
            f"{row['product_ms']:.0f}",
            f"{row['propagation_ms']:.0f}",
            f"{row['solve_seconds']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    exchange = max(row["exchange_ms"] for row in rows)
    return "\n".join(lines) + (
        "\n\nOne such machine holds what a product reads, in either width of ids, but not what a "
        "solve holds as it is written: ids of the data, derivatives in two orders, ten vectors. On "
        "eight each has an eighth of the users with their rows, and all items, whose part of a "
        f"product is added up in {exchange:.1f} ms at NVLink's "
        f"{H100.link / 1e9:.0f} GB/s."
    )


def scale_picture(reports: dict[str, dict[str, Any]]) -> bytes:
    """Time against size on logarithmic axes, with the slopes. SVG; the same report, the same bytes.

    Args:
        reports: "scale".
    """
    report = reports["scale"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, colour in PHASES.items():
            points = [
                (section["n_interactions"], row["ms"])
                for section in report["sections"]
                for row in section["phases"]
                if row["name"] == name
            ]
            slope = report["slopes"][name]
            label = name if slope is None else f"{name}: slope {slope:.2f}"
            x, y = zip(*points, strict=True)
            dashes = "--" if name in DASHED else "-"
            axes.plot(x, y, dashes, marker="o", ms=4, lw=1.4, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("interactions")
        axes.set_ylabel("ms")
        axes.grid(color=LINE, lw=0.6)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
        return save_svg(figure)
