"""Writes the generated parts of README.md and gpu.md, and their pictures, from JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from figures import roofline_picture, speedup_picture
from kernels import kernels_text
from scaling import scale_picture, scale_text
from tables import cg_text, compat_text, hvp_text, peers_text, propagate_text, unlearn_text

ROOT = Path(__file__).resolve().parent.parent


def demo_text(report: dict[str, Any]) -> str:
    """The demo's table and the sentences around it."""
    unlearning, environment = report["unlearning"], report["environment"]
    fake = report["fake_distance"]
    seconds = {row["name"]: row["seconds"] for row in report["rows"]}
    lines = [
        f"{report['n_train']:,} training rows, {report['n_fake']:,} of them with flipped labels; "
        f"{unlearning['n_forgotten']:,} rows are forgotten, among them all of "
        f"{unlearning['erased_users']} users. LightGCN, 2 layers, d = {report['settings']['dim']}.",
        "",
        "| model | test AUC | loss on forgotten rows | mean \\|Δp\\|, forgotten rows "
        "| mean \\|Δp\\|, test rows | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']} | {row['test_auc']:.4f} | {row['forget_loss']:.4f} "
        f"| {row['distance_forget']:.5f} | {row['distance_test']:.5f} | {row['seconds']:.2f} |"
        for row in report["rows"]
    ]
    lines += [
        "",
        "Δp is the difference of the predicted probability to the retrained model. On the fake "
        f"rows alone it was {fake['original']:.4f} and is {fake['unlearned']:.4f}. "
        f"The solve took {unlearning['solve_iterations']} iterations; the step left a residual "
        f"of {unlearning['residual']:.2f}. Unlearning ({seconds['unlearned']:.2g} s, the median of "
        f"three runs) took {report['speed_ratio']:.0f} times less time than retraining "
        f"({report['retraining_seconds']:.2g} s, the median of the two) with the same compiled ops "
        f"({environment['threads']} threads, {environment['isa']}).",
    ]
    return "\n".join(lines)


GENERATED = {
    "README.md": {
        "demo": ("benchmarks/results/demo.json", demo_text),
        "hvp": ("benchmarks/results/hvp.json", hvp_text),
        "propagate": ("benchmarks/results/propagate.json", propagate_text),
        "cg": ("benchmarks/results/cg.json", cg_text),
        "peers": ("benchmarks/results/peers.json", peers_text),
        "scale": ("benchmarks/results/scale.json", scale_text),
        "unlearn": ("benchmarks/results/unlearn.json", unlearn_text),
        "compat": ("benchmarks/results/compat.json", compat_text),
    },
    "benchmarks/gpu.md": {"kernels": ("csrc/kernels/cuda/budget.json", kernels_text)},
}
PICTURES = {
    "docs/speedup.svg": (("hvp", "propagate", "cg"), speedup_picture),
    "docs/roofline.svg": (("hvp", "propagate", "cg"), roofline_picture),
    "docs/scale.svg": (("scale",), scale_picture),
}


def draw(file: str) -> bytes:
    """A picture, made anew."""
    names, picture = PICTURES[file]
    results = ROOT / "benchmarks" / "results"
    return picture({name: json.loads((results / f"{name}.json").read_text()) for name in names})


def generate(file: str) -> str:
    """The text of a file with every generated part made anew."""
    text = (ROOT / file).read_text()
    for name, (path, render) in GENERATED[file].items():
        body = render(json.loads((ROOT / path).read_text()))
        pattern = rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)"
        text, count = re.subn(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{file}: expected one part named {name}, got {count}")
    return text


if __name__ == "__main__":
    for file in GENERATED:
        (ROOT / file).write_text(generate(file))
    for file in PICTURES:
        (ROOT / file).write_bytes(draw(file))
