# SPDX-License-Identifier: GPL-2.0-only
"""The Markdown report, as a CI step's summary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_night import night
from report_sample import EMPTY, GOOD, RUN

from harness.report import markdown
from harness.results import Run


def test_a_night(tmp_path: Path) -> None:
    """Verdict, numbers, what changed, the matrix and the failures stand in that order, and it is short."""
    text = markdown.render(*night(tmp_path))
    order = [
        text.index(piece)
        for piece in (
            "## ❌ BAD: 4 cases failed (3 of them newly)",
            "1439 cases: 1 CRASH",
            "3 new failures, 1 still failing, 1 vanished, 1 skipped now, ran before",
            "| debian:7.3 | edu-igb | hotplug | iommu-intel | mixed | nvme |",
            "### Failures",
            "**CRASH** `probes/hotplug/unplug_while_open`",
            "### Could not be run",
            "### Flaky",
            "> known issue probes/cdev/pasid\\_zero\\_is\\_no\\_pasid",
            "<summary>This run</summary>",
        )
    ]
    assert order == sorted(order)
    assert "; the whole run took 34 min 00 s" in text
    assert "**new**" in text
    assert "not applicable" in text
    assert len(text) < 20_000


@pytest.mark.parametrize("run", [RUN, GOOD, EMPTY])
def test_blocks_are_closed(run: Run) -> None:
    """Whatever a guest prints, every fence and every fold that is opened is closed."""
    text = markdown.render(run)
    assert text.count("<details>") == text.count("</details>")
    fences = re.findall(r"^ *(`{3,})", text, re.MULTILINE)
    assert all(opened == closed for opened, closed in zip(fences[::2], fences[1::2], strict=True))


def test_nothing_is_said_of_what_did_not_happen() -> None:
    """A run without a retry has no line about retries, whose text would be empty."""
    assert "unnamed" not in markdown.render(GOOD)


def test_what_a_guest_prints_is_no_markup() -> None:
    """No tag, no link, no mention and no table cell comes from a guest."""
    outside = re.sub(r"(`+).*?\1", "", markdown.render(RUN), flags=re.DOTALL)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
