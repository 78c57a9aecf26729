# SPDX-License-Identifier: GPL-2.0-only
"""The HTML page: alone, safe, and readable everywhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from report_sample import EMPTY, GOOD, RUN

from harness.report import html
from harness.results import Run

_VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_well_formed(run: Run) -> None:
    """Every element is closed, and ids are unique."""
    page = Page(html.render(run))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched() -> None:
    """The page refers to no other resource, and forbids the browser to load any."""
    source = html.render(RUN)
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "srcset", "action"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", source)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_phone_dark_and_print() -> None:
    """The page fits a phone, follows a dark desktop, and prints."""
    source = html.render(RUN)
    assert 'name="viewport" content="width=device-width' in source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_what_a_guest_prints_cannot_run() -> None:
    """Markup from a guest is shown, not obeyed."""
    page = Page(html.render(RUN))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "</script><script>alert(1)</script>" in page.text


def test_failures_come_first_with_their_evidence() -> None:
    """Before any table stand the failures, worst first, each with reason, rerun, log, splat and output."""
    text = Page(html.render(RUN)).text
    failures = text[text.index("Failures") : text.index("All cases")]
    order = [failures.index(word) for word in ("unplug_while_open", "f.slow", "get_pa_unmapped", "replug")]
    assert order == sorted(order)
    for piece in (
        "errno is 22 (EINVAL), want 2 (ENOENT)",
        "rerun vfio-harness run -k 'get_pa_unmapped and edu'",
        "log runs/20300102-030405-1/vms/0",
        "RIP: 0010:vfio_df_unbind",
        "binding 0000:00:04.0",
    ):
        assert piece in failures


def test_emulation_and_verdict_are_on_top() -> None:
    """The first words are about the accelerator, then the verdict with its grounds."""
    body = html.render(RUN).partition("<body>")[2].removesuffix("</body>\n</html>")
    text = Page(body).text
    assert text.startswith("TCG: emulated without hardware acceleration")
    assert "BAD : 6 cases failed" in text[:200]


def test_every_case_is_on_the_page_and_can_be_filtered() -> None:
    """Each settled case has a row the filter knows, beside the box itself, which hides without scripts."""
    page = Page(html.render(RUN))
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-row" in attributes]
    assert len(rows) == 11
    assert {row["data-job"] for row in rows} == {"7.3.4-cdev-edu", "7.3.4-group-igb"}
    form = next(attributes for tag, attributes in page.tags if tag == "form")
    assert "hidden" in form


def test_a_good_run_shows_no_failures() -> None:
    """Where nothing failed there is no section about it."""
    text = Page(html.render(GOOD)).text
    assert "Failures" not in text
    assert "GOOD" in text
