"""A profile as one web page, complete in itself: a time line, the phases, the ops.

It fetches nothing and runs nothing. The same profile gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ifru_ext.report.jinja import template
from ifru_ext.traces import Kind

__all__ = ["render"]

_KINDS = {
    Kind.SPARSE: "sparse products of this package",
    Kind.VECTOR: "its vector ops",
    Kind.TORCH: "torch's ops",
}
_MOST_SPANS = 40
_SHORTEST_SPAN = 0.002  # of the whole: what is shorter would be less than a pixel of a phone
_MOST_OPS = 20
_HEIGHT = 100.0  # units of the strip; its width is the number of slices
_MOST_NAMES = 1
_LEAST = 1 << 16  # bytes of a call: the time of a smaller one is the call's, not the memory's


def render(profile: Mapping[str, Any], *, title: str = "Profile") -> str:
    """The page.

    Args:
        profile: `ifru_ext.profiling.Profile.to_json()`.
        title: Of the page.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        InputError: Jinja2 is not installed.
    """
    phases, ops, whole = profile["phases"], profile["ops"], profile["seconds"]
    shown = ops[:_MOST_OPS]
    rest = ops[_MOST_OPS:]
    page: str = template("profile.html.j2").render(
        title=title,
        profile=profile,
        whole=phases[0],
        kinds=_KINDS,
        strip=_strip(profile["slices"]),
        n_slices=len(profile["slices"]),
        height=_HEIGHT,
        spans=_spans(profile["timeline"], whole),
        counted=list(dict.fromkeys(name for phase in phases for name in phase["counts"])),
        phases=[(phase, _busiest(phase)) for phase in phases],
        ops=shown,
        rest={key: sum(op[key] for op in rest) for key in ("calls", "seconds")} if rest else None,
        n_rest=len(rest),
        outside=max(0.0, whole - phases[0]["op_seconds"]),
        roofs=_roofs(shown, profile["bandwidth"]),
        in_ours=sum(op["seconds"] for op in ops if op["kind"] != Kind.TORCH),
        percent=lambda part, of: f"{100 * part / of:.1f} %" if of > 0 else "",
    )
    return page


def _strip(slices: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """For each kind an area as the path of an SVG: the kinds stand on each other, columns touch."""
    below = [0.0] * len(slices)
    found = []
    for kind in _KINDS:
        parts = []
        for column, part in enumerate(slices):
            top = below[column] + _HEIGHT * min(1.0, part[kind])
            if top - below[column] > 0.05:
                y = _HEIGHT - top
                parts.append(f"M{column} {y:.1f}h1v{top - below[column]:.1f}h-1z")
            below[column] = top
        found.append((kind, "".join(parts)))
    return found


def _spans(timeline: Sequence[Mapping[str, Any]], whole: float) -> list[dict[str, Any]]:
    """The longest phases, in the order in which they began: place and width in per cent."""
    long = [span for span in timeline if span["seconds"] >= _SHORTEST_SPAN * whole]
    chosen = sorted(long, key=lambda span: -span["seconds"])[:_MOST_SPANS]
    return [
        {
            "name": span["path"][-1],
            "depth": len(span["path"]) - 1,
            "left": f"{100 * span['begin'] / whole:.2f}",
            "width": f"{100 * span['seconds'] / whole:.2f}",
            "seconds": span["seconds"],
        }
        for span in sorted(chosen, key=lambda span: (span["begin"], len(span["path"])))
    ]


def _busiest(phase: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The ops of most time in a phase itself."""
    ops = sorted(phase["ops"].items(), key=lambda item: -item[1])
    return [item for item in ops[:_MOST_NAMES] if item[1] >= 0.05 * phase["seconds"]]


def _roofs(
    ops: Sequence[Mapping[str, Any]], bandwidth: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Bars of GB/s, each with a mark at what the memory gives, in per cent of the longest."""
    known = [op for op in ops if op["gb_s"] is not None and op["bytes"] >= _LEAST * op["calls"]]
    roofs = [bandwidth[f"{op['access']}_gb_s"] if bandwidth else 0.0 for op in known]
    limit = max([*(op["gb_s"] for op in known), *roofs], default=0.0)
    return [
        {
            "op": op,
            "kind": op["kind"],
            "width": f"{100 * op['gb_s'] / limit:.2f}",
            "mark": f"{100 * roof / limit:.2f}" if roof else None,
        }
        for op, roof in zip(known, roofs, strict=True)
    ]
