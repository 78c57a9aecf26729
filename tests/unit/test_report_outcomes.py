# SPDX-License-Identifier: GPL-2.0-only
"""Every outcome and every verdict through every report: no table lacks one."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from typing import cast

import pytest
from report_sample import RUN, result

from harness.report import compared, looks, view
from harness.report.files import FORMATS
from harness.results import FLAKY, Outcome, Past, Verdict, result_from_plain, result_to_plain

LABELS = [*(outcome.value for outcome in Outcome), FLAKY]
TONES = {"good", "none", "known", "flaky", "infra", "bad"}


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_every_outcome(form: str, outcome: Outcome) -> None:
    """A run whose one case has this outcome is reported, with the outcome by name."""
    run = dataclasses.replace(RUN, results=(result("probes/a/b", outcome),))
    told = FORMATS[form](run, view.NOTHING)
    assert outcome.value in told or (form == "junit" and outcome is Outcome.PASS)


@pytest.mark.parametrize("outcome", Outcome)
def test_junit_passes_a_pass_only(outcome: Outcome) -> None:
    """A testcase without an element counts as passed."""
    run = dataclasses.replace(RUN, jobs=RUN.jobs[:1], results=(result("probes/a/b", outcome),))
    (case,) = ET.fromstring(FORMATS["junit"](run, view.NOTHING)).iter("testcase")
    marks = [child.tag for child in case if child.tag in ("skipped", "failure", "error")]
    assert len(marks) == (outcome is not Outcome.PASS)
    assert (marks == ["skipped"]) == (outcome in (Outcome.SKIP, Outcome.XFAIL))


def test_junit_knows_no_other_outcome() -> None:
    """An outcome without an entry is an error of ours, never a passed testcase."""
    unknown = cast(
        Outcome, SimpleNamespace(value="NEW", meaning="", severity=0, is_failure=False, is_infra=False)
    )
    run = dataclasses.replace(RUN, jobs=RUN.jobs[:1], results=(result("probes/a/b", unknown),))
    with pytest.raises(KeyError):
        FORMATS["junit"](run, view.NOTHING)


def test_the_tables_have_every_label() -> None:
    """Looks, symbols and columns, and nothing beside the outcomes and FLAKY."""
    for table in (looks.LABELS, looks.SYMBOLS):
        assert list(table) == LABELS
    assert sorted(view.COLUMNS) == sorted(LABELS)
    assert {look.tone for look in looks.LABELS.values()} == TONES
    assert {looks.verdict_look(verdict).tone for verdict in Verdict} <= TONES
    assert len({verdict.exit_code for verdict in Verdict}) == len(Verdict)


@pytest.mark.parametrize("outcome", Outcome)
def test_results_keep_every_outcome(outcome: Outcome) -> None:
    """To plain values and back, and in the history of a case."""
    made = result("probes/a/b", outcome, stopped_by=outcome)
    assert result_from_plain(json.loads(json.dumps(result_to_plain(made)))) == made
    past = Past(
        run="r",
        started=RUN.info.started,
        accel="tcg",
        job="j",
        series="s",
        kernel="k",
        case=made,
        fingerprint="",
    )
    assert outcome.symbol in compared.render_history("probes/a/b", [past], detailed=True)
    assert outcome.symbol in compared.legend()
