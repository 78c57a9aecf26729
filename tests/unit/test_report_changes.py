# SPDX-License-Identifier: GPL-2.0-only
"""What changed, as the terminal and the JSON report tell it."""

from __future__ import annotations

import json

import pytest
from report_night import night

from harness.report import console, spark
from harness.report import json as json_report
from harness.results import Background, Run


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Background]:
    return night(tmp_path_factory.mktemp("night"))


def test_the_terminal_tells_what_changed(seen: tuple[Run, Background]) -> None:
    """New failures are marked, lost and flaky cases are listed, lost guests are told once, n/a once."""
    told = console.render(*seen, width=140)
    assert "CRASH probes/hotplug/unplug_while_open [7.3.5-cdev-hotplug] new\n" in told
    assert "TIMEOUT probes/dma/pages_are_pinned [7.2.12-group-nvme]\n" in told
    assert "FLAKY probes/interrupts/mask_keeps_the_line_low [7.3.5-group-mixed]\n" in told
    assert "  FAIL: the line is high, want low (not again in a fresh VM)" in told
    assert "  and 7 more of this job for the same reason\n" in told
    assert told.count("NOT APPLICABLE") == 1
    assert "vanished:\n  probes/interrupts/mask_keeps_the_line_low [7.2.12-compat-mixed]: PASS, now" in told
    assert "slower than before:\n  probes/dma/pages_are_pinned [7.3.5-group-iommu-intel]: 1.9 s" in told
    assert "fixed:\n  probes/cdev/open_needs_rawio [7.3.5-compat-hotplug]: FAIL -> PASS" in told
    assert "note: known issue probes/cdev/pasid_zero_is_no_pasid" in told
    assert "to accept that tests are missing: vfio-harness report night11 --accept REASON" in told
    last = " ".join(told.splitlines()[-2:])
    assert last.startswith("BAD: 4 cases failed (3 of them newly), the worst: CRASH")
    assert last.endswith("tests are missing: 1 case vanished and 1 case that ran before is skipped")


@pytest.mark.parametrize("width", [40, 80])
def test_the_width_is_kept(seen: tuple[Run, Background], width: int) -> None:
    """Changes fold as everything else does."""
    for line in console.render(*seen, width=width).splitlines():
        assert len(line) <= width or line.startswith(("  log: ", "  rerun: "))


def test_json_has_the_changes(seen: tuple[Run, Background]) -> None:
    """A program finds every change by kind, and the runs that the jobs were compared with."""
    plain = json.loads(json_report.render(*seen))
    kinds = {kind: len(found) for kind, found in plain["comparison"]["changes"].items()}
    assert kinds == {
        "new_failures": 3, "still_failing": 1, "vanished": 1, "new_skips": 1,
        "slower": 1, "fixed": 1, "other": 8,
    }  # fmt: skip
    assert plain["comparison"]["against"]["7.2.12-group-nvme"] == "night07"
    assert plain["counts"]["FLAKY"] == 1
    assert len(plain["notes"]) == 1


def test_sparks_say_what_they_show() -> None:
    """A picture has a title for those who cannot see it, escaped, and nothing is drawn of nothing."""
    assert "<title>a &lt;b&gt;</title>" in spark.outcomes(["PASS", "FAIL"], "a <b>")
    assert spark.outcomes(["PASS", "FAIL", "FLAKY"], "x").count("<rect") == 3
    assert spark.outcomes([], "x") == spark.durations([1.0], "x") == ""
    assert "<polyline" in spark.durations([0.0, 0.0], "x")
