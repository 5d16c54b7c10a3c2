"""The report's pictures: SVG to be put into a page, which gives them font and colours.

The same input gives the same bytes. Text stays text, colours are CSS variables of the page, so that
a picture follows its dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

__all__ = ["Bar", "bars", "residuals"]

# Matplotlib knows no CSS variables: it draws with stand-ins, colours that nothing else has.
_VARIABLES = {
    name: f"#0102{number:02x}"
    for number, name in enumerate(("ink", "muted", "line", "before", "after", "retrained"))
}
_WIDTH = 4.4  # inches, 72 units each: 317 units, what a phone has room for
# Matplotlib types the keys one by one.
_STYLE: Any = {
    "font.size": 10.5,
    "axes.edgecolor": _VARIABLES["line"],
    "axes.labelcolor": _VARIABLES["muted"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": _VARIABLES["ink"],
    "xtick.color": _VARIABLES["line"],
    "xtick.labelcolor": _VARIABLES["muted"],
    "ytick.color": _VARIABLES["line"],
    "ytick.labelcolor": _VARIABLES["ink"],
    "svg.fonttype": "none",
}
# How many units a character of a value takes at the end of its bar, in shares of the width.
_CHARACTER = 0.03


class Bar(NamedTuple):
    """A bar's name, its length, what stands at its end, and the CSS variable of its colour."""

    name: str
    value: float
    text: str
    colour: str


def residuals(name: str, values: Sequence[float], num_iters: int, tolerance: float | None) -> str:
    """A line that falls: the residual by iteration, on a logarithmic axis.

    Args:
        name: What is shown, for who cannot see it.
        values: Residuals, the first at iteration 0 and the last at `num_iters`.
        num_iters: Iterations, of which not every one needs to have been looked at.
        tolerance: Where the solver was asked to stop, or None.
    """
    points = [
        (num_iters * index / (len(values) - 1), value)
        for index, value in enumerate(values)
        if 0 < value < math.inf
    ]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.semilogy(*zip(*points, strict=True), color=_VARIABLES["after"], lw=1.8, zorder=3)
        axes.scatter(*points[-1], color=_VARIABLES["after"], s=26, zorder=4)
        axes.annotate(
            f"{points[-1][1]:.2g}",
            points[-1],
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
        )
        if tolerance is not None and tolerance > 0:
            axes.axhline(tolerance, color=_VARIABLES["muted"], lw=1, ls=(0, (4, 3)))
            axes.annotate(
                f"asked for: {tolerance:.2g}",
                (0, tolerance),
                xycoords=("axes fraction", "data"),
                xytext=(4, 4),
                textcoords="offset points",
                color=_VARIABLES["muted"],
            )
        axes.grid(axis="y", color=_VARIABLES["line"], lw=0.7)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, 1.16 * num_iters)
        axes.set_xlabel("iteration")
        axes.tick_params(length=0, pad=6)
        return _svg(figure, name)


def bars(
    name: str,
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    end: float | None = None,
    mark: tuple[float, str] | None = None,
) -> str:
    """Lying bars with their values, in groups.

    Args:
        name: What is shown, for who cannot see it.
        groups: Each with its title, which may be empty.
        end: Of the axis; by default what the longest bar needs.
        mark: A value to compare with, as a line, and what it is.
    """
    n_bars = sum(len(part) for _, part in groups)
    n_titles = sum(bool(title) for title, _ in groups)
    height = 0.29 * n_bars + 0.36 * n_titles + (0.42 if mark else 0.16)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots()
        everything = [bar for _, part in groups for bar in part]
        longest = max(1e-300, *(bar.value for bar in everything))
        room = 1 - _CHARACTER * max(len(bar.text) for bar in everything)
        limit = max(end or 0.0, longest / room)
        y, labels = 0.0, []
        for title, part in groups:
            if title:
                axes.text(0, y + 0.25, title, color=_VARIABLES["muted"], va="center")
                y += 1.15
            for bar in part:
                drawn = axes.barh(y, bar.value, height=0.62, color=_VARIABLES[bar.colour])
                axes.bar_label(drawn, [bar.text], padding=5)
                labels.append((y, bar.name))
                y += 1
        if mark is not None:
            axes.vlines(mark[0], -0.5, y - 0.45, color=_VARIABLES["muted"], lw=1, ls=(0, (4, 3)))
            axes.text(mark[0], y - 0.3, mark[1], color=_VARIABLES["muted"], ha="center", va="top")
        axes.set_yticks(*zip(*labels, strict=True))
        axes.set_xticks([])
        axes.set_xlim(0, limit)
        axes.set_ylim(y - 0.4 + (0.7 if mark else 0), -0.45)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=6)
        return _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    """The picture as an element of a page: no prologue, no ids of its own, the page's colours."""
    buffer = io.StringIO()
    # The salt makes the same ids of what is clipped each time, and others in each picture.
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet would be the whole page's.
    text = re.sub(r"\s*<(metadata|style).*?</\1>", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text)
    text = text.replace("xlink:href", "href")
    # The page's font: matplotlib before 3.10 names it together with weight and size.
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;\"]*", _font, text)
    for variable, stand_in in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}"
