# SPDX-License-Identifier: GPL-2.0-only
"""A Finding as JSON for other programs: keys are only added, and the schema number grows when one changes."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.bisect.gitbisect import CommitFacts
from harness.bisect.model import Step
from harness.bisect.report import Evidence, Finding, judge_confidence
from harness.errors import ExitCode
from harness.report.json import dumps

SCHEMA = 1
"""Bumped when a key changes its meaning or goes away; a new key does not bump it."""


def render(finding: Finding, code: ExitCode) -> str:
    """*finding*, with the exit code that it earns, as a JSON document."""
    return dumps(to_plain(finding, code))


def to_plain(finding: Finding, code: ExitCode) -> dict[str, Any]:
    """*finding* as plain values; without `found` and `suspects` the culprit touches none of the paths."""
    state, aim, quarry = finding.state, finding.aim, finding.state.quarry
    confidence, grounds = judge_confidence(finding)
    old, new = aim.terms
    return {
        "schema": SCHEMA,
        "generator": "vfio-harness",
        "id": state.id,
        "repository": quarry.repository,
        "exit_code": int(code),
        "find_fix": aim.find_fix,
        "boot": aim.boot,
        "terms": {"old": old, "new": new},
        "ends": {"old": dataclasses.asdict(quarry.old), "new": dataclasses.asdict(quarry.new)},
        "paths": list(quarry.paths),
        "hunted": list(state.hunted),
        "found": _commit(finding.found) if finding.found else None,
        "suspects": [_commit(suspect) for suspect in finding.suspects],
        "confidence": confidence.value,
        "grounds": list(grounds),
        "failing": _evidence(finding, finding.failing),
        "passing": _evidence(finding, finding.passing),
        "tested": [_step(finding, step) for step in state.tested],
        "host": finding.host,
        "config": finding.config or None,
        "bisect_log": finding.bisect_log,
    }


def _commit(facts: CommitFacts) -> dict[str, Any]:
    return dataclasses.asdict(facts)


def _evidence(finding: Finding, evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return {
        "commit": evidence.step.commit,
        "subject": evidence.step.subject,
        "reason": evidence.reason or evidence.step.why,
        "log": evidence.log,
        "splat": evidence.splat,
        "run": evidence.run_dir or None,
        "again": evidence.again(finding.state.quarry.repository),
    }


def _step(finding: Finding, step: Step) -> dict[str, Any]:
    """A commit with its verdict in git's word; the two ends come first."""
    return {
        "commit": step.commit,
        "subject": step.subject,
        "verdict": finding.aim.word(finding.aim.mark(step.sight)),
        "sight": step.sight.value,
        "why": step.why,
        "flaky": step.flaky,
        "same_as": step.same_as or None,
        "vms": step.vms,
        "seconds": round(step.seconds, 3),
        "build_seconds": round(step.build_seconds, 3),
        "runs": [seen.run_dir for seen in step.observations if seen.run_dir],
    }
