"""Renews docs/profile.png: the page of a profile of the demo's model forgetting three users.

MovieLens 100K, as in `ifru demo`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from report_page import DOCS, screenshot

from ifru_ext import Forget, unlearn
from ifru_ext.datasets import load
from ifru_ext.demo import DemoSettings
from ifru_ext.profiling import Profile, profile


def profiled() -> Profile:
    """The second of two requests: the first one meets memory and code for the first time."""
    settings, ratings = DemoSettings(), load("ml-100k")
    data = ratings.with_labels((ratings.label >= 4).float())
    model = settings.train(data, seed=settings.seed).model
    request = Forget(users=[3, 50, 400])
    for _ in range(2):
        with profile() as found:
            unlearn(model, data, request, objective=settings.objective)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS / "profile.png", help="the picture")
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "profile.html")
        profiled().export_html(path, title="Three users of MovieLens 100K")
        screenshot(path, out, 1280, 2240)


if __name__ == "__main__":
    main()
