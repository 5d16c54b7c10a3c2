"""The report's page: what it says, what it never does, and ids that would like it otherwise."""

from __future__ import annotations

import dataclasses
import functools
import html.parser
import re
import sys

import pytest
import torch
from problems import make_learnable

from ifru_ext import Forget, IdMap, Interactions, Objective, train, unlearn
from ifru_ext.datasets import train_test_split
from ifru_ext.errors import InputError
from ifru_ext.evidence import AffectedUser, evidence
from ifru_ext.report import jinja, text
from ifru_ext.report.page import render

OBJECTIVE = Objective(loss="bce", l2=0.3, l2_per_sample=0.02)
VOID = {"meta", "br", "img", "link"}


@functools.cache
def solved():
    """(report, evidence with everything in it, evidence with nothing optional, history)."""
    rows = make_learnable()
    items = IdMap([f"film {n:02}" for n in range(rows.n_items)])
    rows = Interactions(rows.user, rows.item, rows.label, n_users=rows.n_users, item_ids=items)
    data, test = train_test_split(rows, test=0.2)
    options = {"kind": "mf", "dim": 4, "epochs": 3, "polish_rtol": 1e-4}
    model = train(data, OBJECTIVE, **options).model
    request = Forget(users=[3, 7], interactions=torch.arange(40))
    result = unlearn(model, data, request, objective=OBJECTIVE)
    retrained = train(result.retained, OBJECTIVE, **options).model
    full = evidence(model, result, evaluation=test, retrained=retrained)
    return result.report, full, evidence(model, result, ids=False), result.solve.history


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page; fails where elements do not nest."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.attributes, self.words, self._open = [], [], [], []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def rendered(**changes):
    report, full, _, history = solved()
    parts = {"report": report, "evidence": full, "history": history, **changes}
    return render(parts.pop("report"), parts.pop("evidence"), parts.pop("history"), **parts)


# ---- What it says -----------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_report_and_evidence():
    report, full, _, _ = solved()
    shown = Page(rendered(title="Request 12", facts={"Version": "v0002"})).text
    for expected in (
        "Request 12",
        "Version v0002",
        f"{report.n_forgotten} of 4,800 training rows",
        "Users, with all their rows 2",
        "Single rows 40",
        f"{full.before.forgotten_loss:.3f} → {full.after.forgotten_loss:.3f}",
        f"{full.retrained.membership:.3f}",
        f"{full.after.utility.auc:.4f}",
        text.share(full.overlap),
        text.share(full.hops[0].share),
        full.affected[0].before[0],
        report.certificate,
        "Solved as far as asked",
        f"{full.n_erased} of these rows belong to users or items that have no row left",
        "still hold what was to be forgotten until they are purged",
    ):
        assert str(expected) in shown, expected
    for reason in report.reasons:
        assert reason[1:] in shown
    for user in full.affected:
        assert f"User {user.user} {user.n_kept} of 10 items kept" in shown


def test_times_and_items_are_named():
    report, *_ = solved()
    report = dataclasses.replace(report, request={"items": 1234, "before": 1704067200})
    shown = Page(rendered(report=report)).text
    assert "Items, with all their rows 1,234" in shown
    assert "The time before which all rows go 1704067200" in shown


def test_what_is_not_known_is_said():
    _, _, bare, _ = solved()
    shown = Page(rendered(evidence=bare)).text
    for expected in (
        "No retrained model is known here",
        "no retrained model known",
        "ifru verify --retrain",
        "No rows were given to measure it on",
        "Lists of single users are left out",
    ):
        assert expected in shown, expected
    assert "film" not in shown
    assert "names users and items" not in shown


def test_an_unfinished_solve_is_not_called_done():
    report, *_ = solved()
    report = dataclasses.replace(report, solve_converged=False)
    shown = Page(rendered(report=report)).text
    assert "Not solved as far as asked" in shown
    assert "Solved as far as asked" not in shown


@pytest.mark.parametrize("history", [(), (3.0,), (3.0, float("nan")), (3.0, 0.0)])
def test_a_history_without_a_line_is_said(history):
    assert "recorded no more than its end" in Page(rendered(history=history)).text


def test_a_tolerance_is_drawn_where_there_was_one():
    report, *_ = solved()
    filtered = dataclasses.replace(report, solve_reason="FILTERED: as far as training had gone")
    assert "asked for: " in Page(rendered()).text
    assert "asked for: " not in Page(rendered(report=filtered)).text


def test_rows_of_erased_users_alone_are_said_to_be():
    _, full, _, _ = solved()
    for n, said in ((0, False), (full.n_forgotten, True)):
        found = Page(rendered(evidence=dataclasses.replace(full, n_erased=n))).text
        assert ("All of these rows belong to users or items" in found) == said
        assert ("no row left. An erased one" in found) == said


def test_nothing_affected_and_nothing_unseen_is_said():
    _, full, _, _ = solved()
    alone = dataclasses.replace(
        full,
        before=dataclasses.replace(full.before, unseen_loss=None, membership=None),
        after=dataclasses.replace(full.after, unseen_loss=None, membership=None),
        retrained=None,
        n_unseen=0,
        n_ranked=0,
        overlap=None,
        affected=(),
    )
    shown = Page(rendered(evidence=alone)).text
    assert "There was no never-seen row to compare with" in shown
    assert "No user who still has rows would be recommended anything else" in shown


# ---- What it never does -----------------------------------------------------------------------


def test_the_page_is_complete_in_itself():
    found = Page(rendered())
    assert not {"script", "link", "iframe", "object", "img", "form", "base"} & {*found.elements}
    (policy,) = (v for _, n, v in found.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in found.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("href", "src", "xlink:href"):
            assert value[0] == "#"
            assert value[1:] in ids
        for target in re.findall(r"url\(([^)]*)\)", value or ""):
            assert target[0] == "#"
            assert target[1:] in ids
    assert not re.search(r"https?:|@import|url\((?!#)", rendered())


def test_pictures_take_the_page_s_colours_and_font():
    source = rendered()
    pictures = re.findall(r"<svg.*?</svg>", source, re.S)
    assert len(pictures) == 5
    used = set(re.findall(r"var\((--\w+)\)", source))
    assert used <= set(re.findall(r"(--[\w-]+):", source)) | {"--good-ink", "--bad-ink"}
    for picture in pictures:
        assert 'role="img" aria-label="' in picture
        assert "font-family" not in picture
        assert not re.search(r"#[0-9a-f]{6}\b", picture)


def test_the_same_input_gives_the_same_bytes():
    first = rendered()
    jinja.template.cache_clear()
    assert rendered() == first


# ---- Hostile ids ------------------------------------------------------------------------------

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "quote": "' onmouseover='alert(1)",
    "entity": "&lt;b&gt; &amp; &#60;",
    "comment": "--><!--",
    "template": "{{ 7 * 7 }}{% raw %}",
    "style": "</style></svg></title><b>",
    "direction": "abc\u202e\u2066fdp.exe",
    "lines": "a\nb\r\u2028c\td\0e",
    "half of a pair": "a\ud800b",
    "unseen": "a\u200bb\u00adc\ufeff",
}


def with_ids(hostile):
    _, full, _, _ = solved()
    user = AffectedUser(user=hostile, before=(hostile, 7), after=(7, hostile + "2"), n_kept=1)
    return dataclasses.replace(full, affected=(user,))


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_ids_are_text(hostile):
    source = rendered(evidence=with_ids(hostile), title=hostile, facts={hostile: hostile})
    harmless = Page(rendered(evidence=with_ids("x"), title="x", facts={"x": "x"}))
    found = Page(source)
    assert found.elements == harmless.elements
    assert len(found.attributes) == len(harmless.attributes)
    shown = " ".join(found.words)
    assert shown.count(text.shown(hostile)) >= 6
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u2028\u202a-\u202e\u2066-\u2069\ud800]", source)
    source.encode()


def test_long_ids_are_cut():
    source = rendered(evidence=with_ids("9" * 10_000))
    assert "9" * 49 not in source
    assert "9" * 48 + "… (10,000 characters)" in source


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Doe, Jane", "Doe, Jane"),
        (17, "17"),
        ("é漢字🎬", "é漢字🎬"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\ud83d", "⟨U+D83D⟩"),
        ("a\u00a0b\n", "a⟨U+00A0⟩b⟨U+000A⟩"),
        ("x" * 48, "x" * 48),
        ("x" * 49, "x" * 48 + "… (49 characters)"),
    ],
)
def test_shown(value, expected):
    assert text.shown(value) == expected


# ---- Numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (text.number, 1234567, "1,234,567"),
        (text.number, 0.0, "0"),
        (text.number, 0.0005891, "0.000589"),
        (text.number, 0.00005891, "5.9 \u00d7 10⁻⁵"),
        (text.number, -2.5e7, "-2.5 \u00d7 10⁷"),
        (text.number, 12345.6, "12,346"),
        (text.number, None, "\u2013"),
        (text.number, float("inf"), "\u2013"),
        (text.number, float("nan"), "\u2013"),
        (text.share, None, "\u2013"),
        (text.share, 0.0, "0 %"),
        (text.share, 1.0, "100 %"),
        (text.share, 0.0222, "2.22 %"),
        (text.share, 1e-9, "< 0.1 %"),
        (text.share, 0.99999, "> 99.9 %"),
        (text.share, 1.5, "150 %"),
        (text.seconds, 0.0123, "12.3 ms"),
        (text.seconds, 0.99949, "999 ms"),
        (text.seconds, 1.0, "1 s"),
        (text.seconds, 3600.0, "3,600 s"),
    ],
)
def test_numbers(function, value, expected):
    assert function(value) == expected


def test_decimals():
    assert text.number(0.5, 3) == "0.500"


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(monkeypatch, missing):
    jinja.template.cache_clear()
    monkeypatch.delitem(sys.modules, "ifru_ext.report.figures", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=f"needs {missing}, which is not installed: pip install"):
        rendered()
