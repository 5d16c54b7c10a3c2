"""The demo's picture: how far each model is from the retrained one, and what it cost."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ifru_ext.demo import DemoResult

__all__ = ["demo_picture"]

_COLORS = {
    "original": "#b0563b",
    "unlearned": "#2f7f5f",
    "retrained": "#8a8f98",
    "retrained, other seed": "#8a8f98",
}


def demo_picture(result: DemoResult) -> bytes:
    """PNG, 1500 x 600 pixels."""
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        distance_test, distance_forget, cost = figure.subplots(1, 3)
        compared = [row for row in result.rows if row.name != "retrained"]
        names = [row.name for row in compared]
        _bars(distance_test, names, [row.comparison.distance_test for row in compared])
        distance_test.set_title("Distance to the retrained model\non test rows", fontsize=11)
        _bars(distance_forget, names, [row.comparison.distance_forget for row in compared])
        distance_forget.set_title("Distance to the retrained model\non forgotten rows", fontsize=11)
        for axes in (distance_test, distance_forget):
            axes.set_xlabel("mean |difference of probability|")
        distance_forget.set_yticklabels([])  # the names of the panel beside it
        (unlearned,) = (row.seconds for row in result.rows if row.name == "unlearned")
        seconds = [unlearned, result.retraining_seconds]
        _bars(cost, ["unlearned", "retrained"], seconds, unit=" s")
        cost.set_title(f"Time: {result.speed_ratio:.0f} times less\nthan retraining", fontsize=11)
        cost.set_xlabel("seconds")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _bars(axes: Axes, names: list[str], values: list[float], unit: str = "") -> None:
    bars = axes.barh(names, values, color=[_COLORS[name] for name in names], height=0.6)
    axes.bar_label(bars, [f"{value:.2g}{unit}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(*values, 1e-12))
    axes.tick_params(axis="y", length=0)
