"""Renews docs/report.png and docs/report-phone.png: the page of the demo's request, in Chromium.

MovieLens 100K with 2 % flipped labels, as in `ifru demo`; those rows and three users are forgotten.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from ifru_ext import Forget, unlearn
from ifru_ext.datasets import load, train_test_split
from ifru_ext.demo import DemoSettings
from ifru_ext.evidence import evidence
from ifru_ext.report.page import render

DOCS = Path(__file__).resolve().parent.parent / "docs"
PHONE = (390, 1240)
# A phone's width is less than Chromium's windows may have: there the page is in a frame.
FRAME = '<body style="margin:0"><iframe src="{}" width="{}" height="{}" frameborder="0"></iframe>'


def page() -> str:
    """The report's page, with a retrained model to compare with."""
    settings = DemoSettings()
    ratings = load("ml-100k")
    data, test = train_test_split(
        ratings.with_labels((ratings.label >= 4).float()), seed=settings.seed
    )
    generator = torch.Generator().manual_seed(settings.seed)
    fake = torch.zeros(len(data), dtype=torch.bool)
    drawn = torch.randperm(len(data), generator=generator)[: round(settings.fake * len(data))]
    fake[drawn] = True
    data = data.with_labels(torch.where(fake, 1 - data.label, data.label))
    model = settings.train(data, seed=settings.seed).model
    request = Forget(interactions=fake, users=[3, 50, 400])
    result = unlearn(model, data, request, objective=settings.objective)
    retrained = settings.train(result.retained, seed=settings.seed).model
    found = evidence(model, result, evaluation=test, retrained=retrained)
    return render(
        result.report,
        found,
        result.solve.history,
        title="1,600 fake ratings and three users",
        facts={"Data": "MovieLens 100K, ratings of 4 and 5 against the rest"},
    )


def screenshot(path: Path, out: Path, width: int, height: int) -> None:
    """A picture of a page's top."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("report_page: expected chromium on PATH, found none")
    options = ["--headless=new", "--no-sandbox", "--hide-scrollbars"]
    window = [f"--window-size={width},{height}", f"--screenshot={out}"]
    subprocess.run([chromium, *options, *window, path.as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    out = parser.parse_args().out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        path, frame = Path(folder, "report.html"), Path(folder, "phone.html")
        path.write_text(page())
        frame.write_text(FRAME.format(path.as_uri(), *PHONE))
        screenshot(path, out / "report.png", 1280, 1620)
        screenshot(frame, out / "report-phone.png", 500, PHONE[1])
    with Image.open(out / "report-phone.png") as picture:
        picture.crop((0, 0, *PHONE)).save(out / "report-phone.png")


if __name__ == "__main__":
    main()
