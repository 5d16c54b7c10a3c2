"""Markdown tables of the reports that `ifru bench` writes, for `readme.py`."""

from __future__ import annotations

from typing import Any

from ifru_ext.report.text import digits

__all__ = ["cg_text", "compat_text", "hvp_text", "peers_text", "propagate_text", "unlearn_text"]


def hvp_text(report: dict[str, Any]) -> str:
    """Hessian-vector products: the exact one of ours against the strongest form in plain torch.

    Then how many times faster than that form it is into a given `out`, and with bfloat16 features
    besides.
    """
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster")
    head += ("with `out`", "and bfloat16", "than double backward", "Gauss-Newton, ms")
    head += (*_ROOFLINE, "relative error", "in bfloat16")
    rows = []
    for section, ours, torch in _compared(report):
        names = "ours, GGN", "ours, out", "ours, bfloat16"
        gauss_newton, reused, stored = (_named(section, name) for name in names)
        rows.append(
            (
                *_start(section, ours, torch),
                *(f"{row['over_torch']:.2f}" for row in (reused, stored)),
                _ratio(ours["over_double_backward"]),
                digits(gauss_newton["median_ms"]),
                *_roofline(ours),
                *(f"{row['relative_error']:.0e}" for row in (ours, stored)),
            )
        )
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def propagate_text(report: dict[str, Any]) -> str:
    """Propagation with three layers: ours against the strongest form in plain torch and COO."""
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster", "than COO")
    head += (*_ROOFLINE, "relative error")
    rows = []
    for section, ours, torch in _compared(report):
        rows.append(
            (
                *_start(section, ours, torch),
                _ratio(_named(section, "coo")["median_ms"] / ours["median_ms"]),
                *_roofline(ours),
                f"{ours['relative_error']:.0e}",
            )
        )
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def cg_text(report: dict[str, Any]) -> str:
    """Twenty iterations of conjugate gradients against the same around the strongest torch form."""
    head = ("shape", "d", "threads", "ms", "strongest in torch", "ms", "times faster")
    head += (*_ROOFLINE, "relative error")
    rows = [
        (*_start(section, ours, torch), *_roofline(ours), f"{ours['relative_error']:.0e}")
        for section, ours, torch in _compared(report)
    ]
    return f"{_table(head, rows)}\n\n{_machine(report)}"


def peers_text(report: dict[str, Any]) -> str:
    """Other libraries' products and solves: processor time, and how many times more than ours."""
    peers = ("double_backward", "curvlinops", "dattri", "pyDVL")
    head = ("shape", "d", "threads", "product", "ours, ms", *peers)
    rows, left_out = [], []
    for section in report["sections"]:
        for product in dict.fromkeys(row["product"] for row in section["contenders"]):
            timed = [row for row in section["contenders"] if row["product"] == product]
            # The faster one, where a library has several ways.
            fastest = [
                min(found, key=lambda row: row["cpu_ms"]) if found else None
                for name in peers
                for found in [[row for row in timed if row["name"].split(",")[0] == name]]
            ]
            rows.append(
                (
                    section["shape"],
                    str(section["dim"]),
                    str(section["threads"]),
                    "HVP" if product == "hessian" else "inverse HVP",
                    digits(timed[0]["cpu_ms"]),
                    *("" if r is None else _slower(r) for r in fastest),
                )
            )
        left_out += [
            f"{skipped['name']} on {section['shape']}: {skipped['reason']}."
            for skipped in section["skipped"]
        ]
    e = report["environment"]
    versions = ", ".join(f"{n} {e[n]}" for n in ("curvlinops-for-pytorch", "dattri", "pyDVL"))
    notes = (
        "Milliseconds of processor time, and how many times more than ours. One product or one "
        "solve with the exact Hessian of matrix factorisation, binary cross-entropy of all rows at "
        "once; solves by conjugate gradients to a relative residual of 1e-4, with a damping that "
        f"makes the matrix positive definite. {versions}, torch {e['torch']}, each at its fastest "
        "setting (`benchmarks/peers.py`); medians, float32, interleaved."
    )
    return "\n\n".join([_table(head, rows), " ".join([notes, *left_out])])


def _slower(row: dict[str, Any]) -> str:
    return f"{digits(row['cpu_ms'])} (**{_ratio(row['times_slower'])}**)"


# Utility beyond this below retraining counts as lost.
_LOST = 0.001


def unlearn_text(report: dict[str, Any]) -> str:
    """Every request by `method="auto"`: what is left to retraining, and how many times faster.

    Then the requests in a row, and the sentences around.
    """
    head = ("data, model", "request", "loss on forgotten rows", "&#124;Δp&#124; there")
    head += ("on test rows", "MIA", "test AUC", "NDCG@20", "residual", "ms", "times faster")
    head += ("verdict", "one influence step")
    rows, sequential = [], []
    newton: dict[str, list[dict[str, Any]]] = {}
    for section in report["sections"]:
        name = f"{section['data']}, {section['model']}"
        newton.setdefault(name, []).extend(
            m for m in section["methods"] if m["method"] == "newton" and "verification" in m
        )
        row = next(m for m in section["methods"] if m["method"] == "auto")
        if section["request"] == "sequential":
            sequential.append(_in_a_row(name, section, row))
            continue
        request = f"{section['request']}{' flipped' * section['flipped']}"
        rows.append((name, request, *_cells(row), _one_step(section, row)))
    notes = [_by_newton(name, found) for name, found in newton.items() if found] + sequential
    return "\n\n".join(
        part for part in (_table(head, rows), "\n".join(notes), _unlearn_notes(report)) if part
    )


def _by_newton(name: str, rows: list[dict[str, Any]]) -> str:
    """The worst of all requests by `method="newton"`."""
    residual = max(row["unlearning"]["residual"] for row in rows)
    forget, test = (
        max(
            row["verification"]["unlearned"][key] / row["verification"]["original"][key]
            for row in rows
        )
        for key in ("distance_forget", "distance_test")
    )
    faster = [row["times_faster_cpu"] for row in rows]
    return (
        f'- {name}, `method="newton"`: residual at most {residual:.0e}; of the original\'s |Δp| at '
        f"most {100 * forget:.2g} % is left on the forgotten rows and {100 * test:.2g} % on the "
        f"test rows ({len(rows)} requests, {_ratio(min(faster))} to {_ratio(max(faster))} times "
        "faster)."
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Before, after, retrained; and what a person waits."""
    before, after, target = (
        row["verification"][name] for name in ("original", "unlearned", "retrained")
    )
    residual = row["unlearning"]["residual"]
    verdict = row["verification"]["completeness"]["verdict"].replace("_", "-")
    return (
        _three(before, after, target, "forget_loss", 2),
        _three(before, after, target, "distance_forget", 4),
        _three(before, after, target, "distance_test", 4),
        _three(before, after, target, "membership", 2),
        _utility(after, target, "test_auc"),
        _utility(after, target, "ndcg"),
        f"{residual:.0e}" if residual < 0.01 else f"{residual:.2f}",
        f"{1e3 * row['cpu_seconds']:.0f}",
        _faster(row),
        verdict if verdict == "complete" else f"**{verdict}**",
    )


def _faster(row: dict[str, Any]) -> str:
    """Bold where retraining is not slower."""
    text = _ratio(row["times_faster_cpu"])
    return text if row["times_faster_cpu"] > 1 else f"**{text}**"


def _one_step(section: dict[str, Any], row: dict[str, Any]) -> str:
    """Distance on the forgotten rows and times faster, where Newton's steps were taken instead."""
    step = next((m for m in section["methods"] if m["method"] == "influence"), None)
    if step is None or row["unlearning"]["method"] == "influence":
        return ""
    left = step["verification"]["unlearned"]["distance_forget"]
    return f"{left:.4f}, {_ratio(step['times_faster_cpu'])} times"


def _three(
    before: dict[str, Any], after: dict[str, Any], target: dict[str, Any], key: str, decimals: int
) -> str:
    return " → ".join(f"{q[key]:.{decimals}f}" for q in (before, after)) + (
        f" ({target[key]:.{decimals}f})"
    )


def _utility(after: dict[str, Any], target: dict[str, Any], key: str) -> str:
    """The value, and its difference to retraining: bold where it is lost."""
    if after[key] is None or target[key] is None:
        return ""
    difference = after[key] - target[key]
    text = f"{difference:+.4f}"
    return f"{after[key]:.4f}, {f'**{text}**' if difference < -_LOST else text}"


def _in_a_row(name: str, section: dict[str, Any], row: dict[str, Any]) -> str:
    ratio = row["parts_forget"] / row["combined_forget"]
    return (
        f"- {name}: {section['n_parts']} requests in a row end {row['parts_forget']:.4f} from the "
        f"retrained models on the forgotten rows, one request for all {row['combined_forget']:.4f} "
        f"({ratio:.2f} times; the original {row['original_forget']:.4f})."
    )


def _unlearn_notes(report: dict[str, Any]) -> str:
    e = report["sections"][0]["environment"]
    seeds = sorted({section["seeds"] for section in report["sections"]})
    return (
        f"Before → after (retrained, mean of {' or '.join(map(str, seeds))}; its distances are "
        "those of the retrained models to each other). Utility with its difference to the "
        f"retrained models', bold where more than {_LOST} is lost. ms: processor time from the "
        "request to the written model; times faster: than retraining with the same ops, likewise. "
        "One influence step: distance on the forgotten rows, where Newton's steps are the default. "
        "float32, "
        f"{e['threads']} thread{'s' if e['threads'] > 1 else ''}, {e['isa']}, torch {e['torch']}, "
        "on a machine that did other work too."
    )


def compat_text(report: dict[str, Any]) -> str:
    """The drop-in for the released scripts: both modes beside the original and retrained models."""
    head = ("model", "seed", "validation AUC", "test AUC", "loss on forgotten rows")
    head += ("&#124;Δp&#124; there", "on test rows", "s", "times faster")
    rows = []
    for model in report["models"]:
        seed, slow = str(model["seed"]), model["autograd"]["cpu_seconds"]
        rows.append(("original", seed, *_quality(model["original"]), "", ""))
        for name, key in (
            ("released rules, autograd", "autograd"),
            ('`mode="reference"`', "reference"),
            ('`mode="exact"`', "exact"),
        ):
            seconds = model[key]["cpu_seconds"]
            cells = f"{seconds:.2f}", _ratio(slow / seconds) if key != "autograd" else ""
            rows.append((name, seed, *_quality(model[key]["quality"]), *cells))
    rows += [("retrained", "", *_quality(quality), "", "") for quality in report["retrained"]]
    n_users, n_items, n_rows = report["shape"]
    steps = sorted({model["reference"]["steps"] for model in report["models"]})
    whole = min(
        (model["autograd"]["cpu_seconds"] + report["mask_seconds"]) / model["exact"]["cpu_seconds"]
        for model in report["models"]
    )
    e = report["environment"]
    notes = (
        f"Book-Crossing by the scripts' recipe ({n_users:,} by {n_items:,}, {n_rows:,} rows, "
        f"{report['n_forgotten']:,} flipped and forgotten), matrix factorisation, d = "
        f"{report['dim']}, Adam's step {report['learning_rate']:g}; "
        f"{' or '.join(map(str, steps))} steps. Seconds of processor time, from the script's "
        "objects to the written file and the printed areas; times faster than the released rules "
        "with the product by autograd and this package's evaluation. The scripts also make their "
        f"evaluation masks row by row, in {report['mask_seconds']:.0f} s: with these, exact mode "
        f"is at least {_ratio(whole)} times faster. Distances to the retrained models. Medians of "
        f"{report['models'][0]['reference']['runs']} runs in turns, float32, "
        f"{e['threads']} thread{'s' if e['threads'] > 1 else ''}, {e['isa']}, torch {e['torch']}, "
        "on a machine that did other work too."
    )
    return f"{_table(head, rows)}\n\n{notes}"


def _quality(quality: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{quality['valid_auc']:.4f}",
        f"{quality['test_auc']:.4f}",
        f"{quality['forget_loss']:.2f}",
        f"{quality['distance_forget']:.4f}",
        f"{quality['distance_test']:.4f}",
    )


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
        digits(ours["median_ms"]),
        f"`{torch['name']}`",
        digits(torch["median_ms"]),
        f"**{ours['over_torch']:.2f}**",
    )


_ROOFLINE = ("GB/s", "of gather", "of copy")


def _roofline(row: dict[str, Any]) -> tuple[str, ...]:
    """GB/s, and its shares of what torch itself gathers and copies."""
    shares = (f"{100 * row[f'{name}_share']:.0f} %" for name in ("gather", "copy"))
    return f"{row['gb_s']:.0f}", *shares


def _machine(report: dict[str, Any]) -> str:
    e = report["environment"]
    memory = ", ".join(
        f"{line['copy_gb_s']:.0f} and {line['gather_gb_s']:.0f} GB/s "
        f"({line['threads']} thread{'s' if line['threads'] > 1 else ''}, d = {line['dim']})"
        for line in report["bandwidth"]
    )
    return (
        f"Medians, float32; {e['processor']}, {e['cpus']} cpus, {e['isa']}, torch {e['torch']}. "
        f"Torch's own copy and random row gather reach {memory}; the shares are of these. GB/s "
        "counts what the algorithm moves as if there were no caches: above 100 % they served a "
        f"part. A call costs {report['call_overhead_us']['raw']:.0f} µs on a graph of three nodes."
    )


_LEFT = ("shape", "product", "strongest in torch", "data, model", "request", "verdict", "model")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first column and names to the left, numbers to the right."""
    rule = "|".join("---" if name in _LEFT else "---:" for name in head)
    lines = [f"| {' | '.join(head)} |", f"|{rule}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
