"""Pictures of the reports that `ifru bench` writes, for `readme.py`: SVG on white.

White, as README is read on light pages and dark ones; letters are drawn, so that no font is needed.
The same reports give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator, StrMethodFormatter

__all__ = [
    "COLOURS",
    "INK",
    "LINE",
    "MUTED",
    "STYLE",
    "roofline_picture",
    "save_svg",
    "speedup_picture",
]

OURS, SLOWER, INK, MUTED, LINE = "#2f7f5f", "#c9b8a8", "#24292f", "#6b7280", "#d9dce1"
COLOURS = (OURS, "#3b6fb0", "#8a5fb0", "#b0563b", "#b08f3b")  # of lines
STYLE: Any = {
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "figure.facecolor": "white",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "ifru-ext",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
}
DIM = 64
_TITLES = {
    "hvp": "Hessian-vector product",
    "propagate": "Propagation, 3 layers",
    "cg": "Conjugate gradients, 20 iterations",
}


def save_svg(figure: Figure) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def speedup_picture(reports: dict[str, dict[str, Any]]) -> bytes:
    """How many times faster ours is, on one thread: bars by shape, a panel for each benchmark.

    Against the strongest form in plain torch; against what IFRU's and LightGCN's released codes use
    besides, double backward and sparse COO.

    Args:
        reports: "hvp", "propagate" and "cg".
    """
    others: dict[str, tuple[str, Callable[[dict[str, Any]], float | None]]] = {
        "hvp": ("double backward", lambda s: _row(s, "ours")["over_double_backward"]),
        "propagate": ("torch.sparse, COO", lambda s: _ratio(s, "coo")),
        "cg": ("", lambda s: None),
    }
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        for axes, (name, (label, other)) in zip(figure.subplots(1, 3), others.items(), strict=True):
            sections = _sections(reports[name], threads=1)
            axes.set_title(_TITLES[name])
            offset = 0.19 if label else 0.0
            _bars(axes, sections, lambda s: _row(s, "ours")["over_torch"], -offset, OURS, bold=True)
            if label:
                _bars(axes, sections, other, offset, SLOWER)
            axes.axvline(1, color=INK, lw=0.8)
            axes.set_yticks(range(len(sections)), [s["shape"] for s in sections])
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_xlim(0.7, 400 if label else 4)
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks([1, 10, 100] if label else [1, 2])
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
            handles = [Patch(color=OURS, label="than the strongest plain torch")]
            if label:
                handles.append(Patch(color=SLOWER, label=f"than {label}"))
            axes.legend(
                handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.1), fontsize=8.5
            )
        figure.suptitle(
            f"Times faster, one thread, d = {DIM} (left of 1: slower)", x=0.008, ha="left", size=9.5
        )
        return save_svg(figure)


def roofline_picture(reports: dict[str, dict[str, Any]]) -> bytes:
    """GB/s of ours and of torch's strongest form against what torch itself copies and gathers.

    By the size of the features: within the caches, above the lines; beyond, towards the gather.

    Args:
        reports: "hvp", "propagate" and "cg".
    """
    series = (
        ("hvp", "HVP", "o", OURS),
        ("propagate", "propagation", "s", COLOURS[1]),
        ("cg", "CG", "^", COLOURS[2]),
    )
    threads = sorted({s["threads"] for s in reports["hvp"]["sections"]})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        panels = figure.subplots(1, len(threads), sharey=True, squeeze=False)[0]
        for axes, n_threads in zip(panels, threads, strict=True):
            axes.set_title(f"{n_threads} thread{'s' if n_threads > 1 else ''}, d = {DIM}", pad=18)
            for name, label, marker, colour in series:
                sections = _sections(reports[name], n_threads)
                _line(axes, sections, lambda _: "ours", f"{label}, ours", marker, colour)
                if name != "cg":  # of torch's solver no bytes are counted
                    text = f"{label}, plain torch"
                    _line(axes, sections, _strongest, text, marker, colour, hollow=True)
            for kind, dashes in (("copy", (5, 2)), ("gather", (1.5, 1.5))):
                values = [_bandwidth(report, n_threads, kind) for report in reports.values()]
                value = sorted(values)[len(values) // 2]
                axes.axhline(value, color=INK, lw=1, ls=(0, dashes), zorder=1)
                text = "torch's copy" if kind == "copy" else "torch's gather of random rows"
                axes.annotate(
                    f"{text}: {value:.0f} GB/s",
                    (0, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 3),
                    textcoords="offset points",
                    size=8.5,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
            axes.set_yticks([5, 10, 20, 50, 100, 200])
            axes.margins(y=0.12)
            axes.grid(axis="y", color=LINE, lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, which="both")
            axes.set_xlabel("features, MB")
            for section in _sections(reports["hvp"], n_threads):
                axes.annotate(
                    section["shape"],
                    (_megabytes(section), 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    color=MUTED,
                    size=8.5,
                )
        panels[0].set_ylabel("GB/s, caches not credited")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8.5)
        return save_svg(figure)


def _sections(report: dict[str, Any], threads: int) -> list[dict[str, Any]]:
    """Of the width that is drawn, by the size of the features."""
    found = [s for s in report["sections"] if (s["dim"], s["threads"]) == (DIM, threads)]
    return sorted(found, key=_megabytes)


def _megabytes(section: dict[str, Any]) -> float:
    return float((section["n_users"] + section["n_items"]) * section["dim"] * 4 / 1e6)


def _row(section: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in section["contenders"] if row["name"] == name)


def _strongest(section: dict[str, Any]) -> str:
    return str(_row(section, "ours")["strongest_torch"])


def _ratio(section: dict[str, Any], other: str) -> float:
    return float(_row(section, other)["median_ms"] / _row(section, "ours")["median_ms"])


def _bandwidth(report: dict[str, Any], threads: int, kind: str) -> float:
    lines = report["bandwidth"]
    (line,) = (b for b in lines if (b["threads"], b["dim"]) == (threads, DIM))
    return float(line[f"{kind}_gb_s"])


def _bars(
    axes: Axes,
    sections: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float | None],
    offset: float,
    colour: str,
    *,
    bold: bool = False,
) -> None:
    """From 1 to how many times faster, with the number at the end."""
    for y, section in enumerate(sections):
        ratio = value(section)
        if ratio is None:
            continue
        axes.barh(y + offset, ratio - 1, left=1, height=0.36, color=colour)
        axes.annotate(
            f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}" if bold else f"{ratio:.1f}",
            (max(ratio, 1), y + offset),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            weight="bold" if bold else "normal",
        )


def _line(
    axes: Axes,
    sections: Sequence[dict[str, Any]],
    name: Callable[[dict[str, Any]], str],
    label: str,
    marker: str,
    colour: str,
    *,
    hollow: bool = False,
) -> None:
    """GB/s of one contender over the shapes."""
    points = [(_megabytes(s), _row(s, name(s))["gb_s"]) for s in sections]
    axes.plot(
        *zip(*points, strict=True),
        marker=marker,
        color=colour,
        label=label,
        lw=1,
        ms=5,
        ls="--" if hollow else "-",
        markerfacecolor="white" if hollow else colour,
        zorder=3,
    )
