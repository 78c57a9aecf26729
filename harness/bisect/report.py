# SPDX-License-Identifier: GPL-2.0-only
"""The result of a bisect for the terminal, a mailing list and other programs: pure functions over a Report.

The keys of `bisect --json` (schema 2; keys are only added, and the schema number grows when one changes):

  schema, generator, id, repository, exit_code   which bisect, and how it ended
  find_fix, boot, terms, ends, paths             what was asked for; terms and ends have the keys old and new
  cases                 the cases that every step ran; empty with boot
  found                 the first new commit: commit, author, date, subject, parents, files; or null
  suspects the commits that may be the first new one, each like found, if no more can be tested.
                        With neither found nor suspects, it touches none of the paths.
  confidence, grounds   high, medium or low, and why
  failing, passing      the commit on either side: commit, subject, reason, log, splat, run, rerun; or null
  tested                every commit, the ends first: commit, subject, verdict (git's word), status, why,
                        flaky, same_as, vms, seconds, build_seconds, runs
  host                  QEMU and accelerator
  config, bisect_log    the path of the .config, and `git bisect log`
"""

from __future__ import annotations

import dataclasses
import enum
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import ExitCode
from harness.base.values import dumps
from harness.base.words import count_of
from harness.bisect.git import CommitFacts
from harness.bisect.state import BisectState, GitVerdict, Rules, Status, Step

SCHEMA = 2
"""Version of the JSON document: raise it when a key changes its meaning or goes away."""

_OUTPUT_LINES = 40
"""How many lines of a case's output, and of a splat, a mail shows."""


class Confidence(enum.Enum):
    """How reliable a result is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence that one step left."""

    step: Step
    reason: str = ""
    log: str = ""
    splat: str = ""
    machine: tuple[str, ...] = ()
    """The options of QEMU that describe the machine."""
    run_dir: str = ""
    command: str = ""
    """The command that runs it again, without the tree."""

    def rerun(self, repository: str) -> str:
        """Return the command that runs it again."""
        return f"{self.command} --tree {shlex.quote(f'{repository}@{self.step.commit[:12]}')}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a bisect and everything that its reports show."""

    state: BisectState
    found: CommitFacts | None = None
    """The first new commit."""
    suspects: tuple[CommitFacts, ...] = ()
    """The commits that may be the first new one, if no more of them can be tested."""
    parent_tested: bool = False
    """Whether the commit before it, among those that touch the paths, was tested."""
    failing: Evidence | None = None
    """The first failing commit; with --find-fix the last."""
    passing: Evidence | None = None
    """The last passing commit; with --find-fix the first."""
    symbols: tuple[str, ...] = ()
    """The lines of .config about VFIO and IOMMUs."""
    config: str = ""
    """The path of the .config."""
    host: str = ""
    """QEMU and accelerator."""
    user: str = ""
    to: tuple[str, ...] = ()
    """The author of the commit and the maintainers of its files, as the tree's get_maintainer.pl has them."""
    cc: tuple[str, ...] = ()
    """Their mailing lists."""
    promises: tuple[str, ...] = ()
    """What the cases promise."""
    bisect_log: str = ""

    @property
    def rules(self) -> Rules:
        return self.state.rules

    @property
    def exit_code(self) -> ExitCode:
        """0 if the commit was found, else a code for what hid it: the paths, the host or the kernels."""
        if self.found is not None:
            return ExitCode.GOOD
        if not self.suspects:
            return ExitCode.USAGE
        suspects = {suspect.commit for suspect in self.suspects}
        untested = [s for s in self.state.steps if s.commit in suspects and s.status is Status.UNTESTED]
        return ExitCode.INFRA if untested else ExitCode.KERNEL


def confidence(report: Report) -> tuple[Confidence, tuple[str, ...]]:
    """Return how reliable the result is, and why."""
    tested, rules = report.state.tested, report.rules
    fails = [
        step
        for step in tested
        if not step.same_as
        and (step.status is Status.FAILS or (step.status is Status.NO_BOOT and rules.boot))
    ]
    flaky = [step for step in tested if step.flaky]
    skipped = [step for step in tested if rules.verdict(step.status) is GitVerdict.SKIP]
    grounds = []
    if fails:
        confirmed = sum(1 for step in fails if step.vms >= 2)
        grounds.append(f"{confirmed} of {len(fails)} failing commits failed on a second VM too")
    if report.passing is not None:
        grounds.append(_neighbour(report, report.passing.step))
    if flaky:
        grounds.append(f"flaky: VMs disagreed about {', '.join(step.commit[:12] for step in flaky)}")
    if skipped:
        grounds.append(f"{count_of(len(skipped), 'commit')} could not be tested")
    sides = (report.failing, report.passing)
    if not report.found or any(side is not None and side.step.flaky for side in sides):
        return Confidence.LOW, tuple(grounds)
    level = Confidence.MEDIUM if flaky or not report.parent_tested else Confidence.HIGH
    return level, tuple(grounds)


def _neighbour(report: Report, passing: Step) -> str:
    """How well the passing side was tested, and whether it is next to the first new commit."""
    how = f"on {count_of(passing.vms, 'VM')}"
    if passing.same_as:
        how = f"as the same image at {passing.same_as[:12]}"
    old = report.failing.step if report.rules.find_fix and report.failing else passing
    before = "the commit before it"
    if not report.parent_tested:
        before = f"{old.commit[:12]}, not the commit before it,"
    return f"it passed {how}, and {before} did not" if report.rules.find_fix else f"{before} passed {how}"


def summary(report: Report) -> str:
    """Return what the terminal shows at the end."""
    lines: list[str] = []
    old, new = report.rules.terms
    if report.found is not None:
        found = report.found
        lines += [f"first {new} commit: {_title(found)}", f"  author: {found.author}"]
        lines += [f"  date:   {found.date}", *_indented(found.files)]
    elif report.suspects:
        lines.append(f"the first {new} commit is one of these; the others cannot be tested:")
        lines += [f"  {_title(suspect)}" for suspect in report.suspects]
    else:
        lines.append(
            f"the last commit that touches {' '.join(report.state.request.paths)} is still {old}: "
            f"the first {new} commit touches none of these paths; leave them out"
        )
    for title, side in (("fails", report.failing), ("passes", report.passing)):
        if side is not None:
            lines += ["", f"{title} at {side.step.commit[:12]} {side.step.subject}"]
            lines += _indented([side.reason or side.step.why, *_output(side), *_first_lines(side.splat)])
            lines += [f"  rerun: {side.rerun(report.state.request.repository)}"]
    return "\n".join([*lines, "", f"confidence: {_grounds(report)}"])


def _grounds(report: Report) -> str:
    level, grounds = confidence(report)
    return f"{level.value}: {'; '.join(grounds)}"


def mail(report: Report) -> str:
    """Return a mail for the mailing list; empty when no commit was found."""
    if report.found is None or report.failing is None:
        return ""
    parts = [
        *_opening(report, report.found),
        "",
        *_proof(report, report.failing),
        "",
        *_reproducer(report, report.failing),
        "",
        *_trailers(report, report.found),
        "",
        report.bisect_log.rstrip("\n"),
    ]
    return "\n".join(parts) + "\n"


def _opening(report: Report, found: CommitFacts) -> list[str]:
    request, rules, cases = report.state.request, report.rules, report.state.cases
    works = "works" if rules.boot else "passes"
    what = "booting"
    if not rules.boot:
        what = cases[0] + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")
    commit = f'{found.commit[:12]} ("{found.subject}")'
    subject = f"[REGRESSION] {what} fails since {commit}"
    body = f"{what} {works} at {request.old.public} and fails at {request.new.public}."
    if rules.find_fix:
        subject = f"{what} works since {commit}"
        body = f"{what} fails at {request.old.public} and {works} at {request.new.public}."
    body = f"{body} git bisect names"
    heads = [f"{head}: {', '.join(names)}" for head, names in (("To", report.to), ("Cc", report.cc)) if names]
    lines = [*heads, f"Subject: {subject}", "", "Hi,", "", *textwrap.wrap(body, 72), ""]
    return [*lines, f"  {commit}", f"  by {found.author}"]


def _proof(report: Report, failing: Evidence) -> list[str]:
    lines = [line for promise in report.promises for line in textwrap.wrap(promise, 72)]
    lines += [""] if lines else []
    # A splat tells more than the output around it.
    output = ["", *_first_lines(failing.splat)] if failing.splat else _output(failing)[-_OUTPUT_LINES:]
    lines += ["Output at this commit:", "", *_indented([failing.reason or failing.step.why, *output]), ""]
    return [*lines, *textwrap.wrap(f"Confidence: {_grounds(report)}.", 72)]


def _reproducer(report: Report, failing: Evidence) -> list[str]:
    name = Path(report.state.request.repository).name
    lines = [f"To reproduce ({report.host}):" if report.host else "To reproduce:", ""]
    lines += [f"  {failing.rerun(name)}    # fails"]
    lines += [f"  {report.passing.rerun(name)}    # passes"] if report.passing is not None else []
    if failing.machine:
        lines += ["", "The machine:", "", *_indented(failing.machine)]
    if report.symbols:
        lines += ["", "The configuration is based on tinyconfig. Its VFIO and IOMMU options:", ""]
        lines += _indented(report.symbols)
    attached = "The whole .config is attached, git bisect log is below."
    return [*lines, "", attached] if report.config else lines


def _trailers(report: Report, found: CommitFacts) -> list[str]:
    if report.rules.find_fix:
        return [f"#regzbot fix: {found.subject}"]
    lines = [f"Reported-by: {report.user}"] if report.user else []
    lines.append(f'Fixes: {found.commit[:12]} ("{found.subject}")')
    return [*lines, "", f"#regzbot introduced: {found.commit}"]


def _title(facts: CommitFacts) -> str:
    return f"{facts.commit} {facts.subject}"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]


def _output(side: Evidence) -> list[str]:
    """Return the case's output without its reason, and without Python's tracebacks, which are in its log."""
    kept: list[str] = []
    inside = False
    for line in side.log.splitlines():
        if line.startswith(("Traceback (most recent call last)", "The above exception was")):
            inside = True
        elif not inside and line.strip() and line.removeprefix("why: ") not in side.reason:
            kept.append(line)
        elif inside and line.strip() and not line.startswith(" "):
            inside = False  # the exception itself is the last line of a traceback
    return kept


def _first_lines(splat: str) -> list[str]:
    """The beginning of a splat; others may follow it."""
    return splat.strip().splitlines()[:_OUTPUT_LINES]


def render_json(report: Report) -> str:
    """Return the JSON document of `bisect --json`."""
    return dumps(to_plain(report))


def to_plain(report: Report) -> dict[str, Any]:
    """Return *report* as plain values; see the head of this module."""
    state, request = report.state, report.state.request
    level, grounds = confidence(report)
    old, new = report.rules.terms
    return {
        "schema": SCHEMA,
        "generator": "vfio-harness",
        "id": state.id,
        "repository": request.repository,
        "exit_code": int(report.exit_code),
        "find_fix": report.rules.find_fix,
        "boot": report.rules.boot,
        "terms": {"old": old, "new": new},
        "ends": {"old": dataclasses.asdict(request.old), "new": dataclasses.asdict(request.new)},
        "paths": list(request.paths),
        "cases": list(state.cases),
        "found": dataclasses.asdict(report.found) if report.found else None,
        "suspects": [dataclasses.asdict(suspect) for suspect in report.suspects],
        "confidence": level.value,
        "grounds": list(grounds),
        "failing": _evidence(report, report.failing),
        "passing": _evidence(report, report.passing),
        "tested": [_step(report, step) for step in state.tested],
        "host": report.host,
        "config": report.config or None,
        "bisect_log": report.bisect_log,
    }


def _evidence(report: Report, side: Evidence | None) -> dict[str, Any] | None:
    if side is None:
        return None
    return {
        "commit": side.step.commit,
        "subject": side.step.subject,
        "reason": side.reason or side.step.why,
        "log": side.log,
        "splat": side.splat,
        "run": side.run_dir or None,
        "rerun": side.rerun(report.state.request.repository),
    }


def _step(report: Report, step: Step) -> dict[str, Any]:
    return {
        "commit": step.commit,
        "subject": step.subject,
        "verdict": report.rules.word(report.rules.verdict(step.status)),
        "status": step.status.value,
        "why": step.why,
        "flaky": step.flaky,
        "same_as": step.same_as or None,
        "vms": step.vms,
        "seconds": round(step.seconds, 3),
        "build_seconds": round(step.build_seconds, 3),
        "runs": [run.run_dir for run in step.runs if run.run_dir],
    }
