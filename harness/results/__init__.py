# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes, results and Runs as values, comparisons and verdicts.

The modules that use the disk (store, history, historyfile and prune) are not imported here, so that the
engine loads no database.
"""

from __future__ import annotations

from harness.base.outcome import Outcome
from harness.results.codec import result_from_plain, result_to_plain
from harness.results.compare import (
    Change,
    Comparison,
    LostJob,
    Slower,
    cases_by_job,
    compare,
    is_complete,
)
from harness.results.model import (
    BOOTS,
    FLAKY,
    KCONFIG_SUITE,
    KERNEL_SUITE,
    QUIET,
    WHOLE_PROGRAM,
    Address,
    Dump,
    Inputs,
    JobRecord,
    Result,
    Run,
    RunInfo,
    RunState,
    Verdict,
    settle,
)
from harness.results.owner import is_alive, owned
from harness.results.past import Background, Past, PastRun
from harness.results.verdict import RunVerdict, reach_verdict

__all__ = [
    "BOOTS",
    "FLAKY",
    "KCONFIG_SUITE",
    "KERNEL_SUITE",
    "QUIET",
    "WHOLE_PROGRAM",
    "Address",
    "Background",
    "Change",
    "Comparison",
    "Dump",
    "Inputs",
    "JobRecord",
    "LostJob",
    "Outcome",
    "Past",
    "PastRun",
    "Result",
    "Run",
    "RunInfo",
    "RunState",
    "RunVerdict",
    "Slower",
    "Verdict",
    "cases_by_job",
    "compare",
    "is_alive",
    "is_complete",
    "owned",
    "reach_verdict",
    "result_from_plain",
    "result_to_plain",
    "settle",
]
