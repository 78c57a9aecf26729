# SPDX-License-Identifier: GPL-2.0-only
"""Outcomes, results and runs: as values, on disk, and judged."""

from __future__ import annotations

from harness.results.codec import result_from_plain, result_to_plain
from harness.results.compare import (
    Change,
    Comparison,
    LostJob,
    Slower,
    compare,
    everything_exists,
    is_complete,
)
from harness.results.fingerprint import fingerprint
from harness.results.history import History
from harness.results.historyfile import consult
from harness.results.judge import VANISHED, Judgement, Requirement, check, exit_code, judge, judgement
from harness.results.model import (
    BOOTS,
    FLAKY,
    KCONFIG_SUITE,
    KERNEL_SUITE,
    QUIET,
    WHOLE_PROGRAM,
    Address,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    Run,
    RunInfo,
    State,
    Verdict,
    settle,
)
from harness.results.owner import owned
from harness.results.past import Background, Past, PastRun
from harness.results.prune import PrunedRun, prune_runs
from harness.results.store import FILE_NAME, RunStore, RunSummary, is_alive, list_runs, load, new_run_id

__all__ = [
    "BOOTS",
    "FILE_NAME",
    "FLAKY",
    "KCONFIG_SUITE",
    "KERNEL_SUITE",
    "QUIET",
    "VANISHED",
    "WHOLE_PROGRAM",
    "Address",
    "Background",
    "Change",
    "Comparison",
    "History",
    "Inputs",
    "JobRecord",
    "Judgement",
    "LostJob",
    "Outcome",
    "Past",
    "PastRun",
    "PrunedRun",
    "Requirement",
    "Result",
    "Run",
    "RunInfo",
    "RunStore",
    "RunSummary",
    "Slower",
    "State",
    "Verdict",
    "check",
    "compare",
    "consult",
    "everything_exists",
    "exit_code",
    "fingerprint",
    "is_alive",
    "is_complete",
    "judge",
    "judgement",
    "list_runs",
    "load",
    "new_run_id",
    "owned",
    "prune_runs",
    "result_from_plain",
    "result_to_plain",
    "settle",
]
