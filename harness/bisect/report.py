# SPDX-License-Identifier: GPL-2.0-only
"""What a hunt came to, for the terminal and for a mailing list: pure functions over a Finding."""

from __future__ import annotations

import dataclasses
import enum
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from harness.bisect.gitbisect import CommitFacts
from harness.bisect.model import Aim, Mark, Sight, Step
from harness.bisect.state import HuntState
from harness.words import count_of

_OUTPUT_LINES = 40
"""Of a case's output and of a splat, in a mail."""


class Confidence(enum.Enum):
    """How much a result can be relied on."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one side of the culprit left."""

    step: Step
    reason: str = ""
    log: str = ""
    splat: str = ""
    machine: tuple[str, ...] = ()
    """What of QEMU's command line makes the machine."""
    run_dir: str = ""
    rerun: str = ""
    """The command that does it again, up to the directory of the repository."""

    def again(self, repository: str) -> str:
        """The command that does it again."""
        return f"{self.rerun}{shlex.quote(f'{repository}@{self.step.commit[:12]}')}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a hunt came to."""

    state: HuntState
    found: CommitFacts | None = None
    suspects: tuple[CommitFacts, ...] = ()
    """When it could not be narrowed down further."""
    parent_tested: bool = False
    """Whether the commit before it, among those that touch the paths, was judged itself."""
    failing: Evidence | None = None
    """The first failing commit; in a hunt for a fix the last."""
    passing: Evidence | None = None
    """The last passing commit; in a hunt for a fix the first."""
    symbols: tuple[str, ...] = ()
    """The lines of the configuration that are about VFIO and IOMMUs."""
    config: str = ""
    """The whole configuration, as a file."""
    host: str = ""
    """QEMU and accelerator."""
    user: str = ""
    promises: tuple[str, ...] = ()
    """What the hunted cases promise."""
    bisect_log: str = ""

    @property
    def aim(self) -> Aim:
        return self.state.aim


def judge_confidence(finding: Finding) -> tuple[Confidence, tuple[str, ...]]:
    """How sure the finding is, and the grounds."""
    tested = finding.state.tested
    fails = [
        step
        for step in tested
        if step.sight is Sight.FAILS or (step.sight is Sight.DIES and finding.aim.boot)
    ]
    confirmed = sum(1 for step in fails if not step.same_as and step.vms >= 2)
    judged = sum(1 for step in fails if not step.same_as)
    flaky = [step for step in tested if step.flaky]
    skipped = [step for step in tested if finding.aim.mark(step.sight) is Mark.SKIP]
    grounds = [f"{confirmed} of {judged} failing commits failed on a second VM too"] if judged else []
    if finding.passing is not None:
        grounds.append(_neighbours(finding, finding.passing.step))
    if flaky:
        names = ", ".join(step.commit[:12] for step in flaky)
        grounds.append(f"flaky: VMs disagreed about {names}")
    if skipped:
        grounds.append(f"{count_of(len(skipped), 'commit')} could not be tested")
    near = [s for s in (finding.failing, finding.passing) if s is not None and s.step.flaky]
    if near or not finding.found:
        return Confidence.LOW, tuple(grounds)
    if flaky or not finding.parent_tested:
        return Confidence.MEDIUM, tuple(grounds)
    return Confidence.HIGH, tuple(grounds)


def _neighbours(finding: Finding, passing: Step) -> str:
    """What is known of the culprit and of the commit before it, on the side that passes."""
    times = (
        f"as the same image at {passing.same_as[:12]}"
        if passing.same_as
        else f"on {count_of(passing.vms, 'VM')}"
    )
    failing = finding.failing.step.commit[:12] if finding.failing else ""
    if finding.aim.find_fix:
        before = "the commit before it" if finding.parent_tested else f"{failing}, not the commit before it,"
        return f"it passed {times}, and {before} did not"
    before = (
        "the commit before it"
        if finding.parent_tested
        else f"{passing.commit[:12]}, not the commit before it,"
    )
    return f"{before} passed {times}"


def summary(finding: Finding) -> str:
    """What the terminal shows at the end."""
    lines: list[str] = []
    old, new = finding.aim.terms
    if finding.found is not None:
        lines += [f"first {new} commit: {_title(finding.found)}", *_commit(finding.found)]
    elif finding.suspects:
        lines.append(f"the first {new} commit is one of these, the rest of which cannot be tested:")
        lines += [f"  {_title(suspect)}" for suspect in finding.suspects]
    else:
        lines.append(
            f"the last commit that touches {' '.join(finding.state.quarry.paths)} is still {old}: "
            "the culprit touches none of these paths; leave them out"
        )
    for title, evidence in (("fails", finding.failing), ("passes", finding.passing)):
        if evidence is not None:
            lines += ["", f"{title} at {evidence.step.commit[:12]} {evidence.step.subject}"]
            lines += _indented([evidence.reason or evidence.step.why, *_said_by(evidence)])
            lines += _indented(_first(evidence.splat))
            lines += [f"  again: {evidence.again(finding.state.quarry.repository)}"]
    level, grounds = judge_confidence(finding)
    lines += ["", f"confidence: {level.value}: {'; '.join(grounds)}"]
    return "\n".join(lines)


def mail(finding: Finding) -> str:
    """A report for the mailing list, to be pasted; empty when no commit was found."""
    if finding.found is None or finding.failing is None:
        return ""
    parts = [_opening(finding), _details(finding), _evidence(finding), _trailers(finding), finding.bisect_log]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _opening(finding: Finding) -> str:
    assert finding.found is not None
    quarry, what = finding.state.quarry, _what(finding)
    commit = f'{finding.found.commit[:12]} ("{finding.found.subject}")'
    works = "works" if finding.aim.boot else "passes"
    if finding.aim.find_fix:
        head = f"Subject: {what} works since {commit}"
        body = f"{what} fails at {quarry.old.label} and {works} at {quarry.new.label}. git bisect names"
    else:
        head = f"Subject: [REGRESSION] {what} fails since {commit}"
        body = f"{what} {works} at {quarry.old.label} and fails at {quarry.new.label}. git bisect names"
    return "\n".join(
        [head, "", "Hi,", "", *textwrap.wrap(body, 72), "", f"  {commit}", f"  by {finding.found.author}", ""]
    )


def _what(finding: Finding) -> str:
    if finding.aim.boot:
        return "booting"
    cases = finding.state.hunted
    return cases[0] + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")


def _details(finding: Finding) -> str:
    level, grounds = judge_confidence(finding)
    lines = [line for promise in finding.promises for line in textwrap.wrap(promise, 72)]
    lines += [""] if lines else []
    lines += ["What it says there:", "", *_indented(_proof(finding)), ""]
    lines += textwrap.wrap(f"Confidence: {level.value}: {'; '.join(grounds)}.", 72)
    return "\n".join([*lines, ""])


def _proof(finding: Finding) -> list[str]:
    failing = finding.failing
    assert failing is not None
    # A splat says it all.
    log = [] if failing.splat else _said_by(failing)
    said = log[-_OUTPUT_LINES:]
    splat = ["", *_first(failing.splat)] if failing.splat else []
    return [failing.reason or failing.step.why, *said, *splat]


def _evidence(finding: Finding) -> str:
    failing, passing = finding.failing, finding.passing
    assert failing is not None
    lines = [f"How to see it ({finding.host}):" if finding.host else "How to see it:", ""]
    name = Path(finding.state.quarry.repository).name
    lines += [f"  {failing.again(name)}    # fails"]
    lines += [f"  {passing.again(name)}    # passes"] if passing is not None else []
    if failing.machine:
        lines += ["", "The machine:", "", *_indented(failing.machine)]
    if finding.symbols:
        lines += ["", "The configuration is tinyconfig and more; of VFIO and IOMMUs it has:", ""]
        lines += _indented(finding.symbols)
    lines += ["", "The whole .config is attached, git bisect log is below." if finding.config else ""]
    return "\n".join([*lines, ""])


def _trailers(finding: Finding) -> str:
    assert finding.found is not None
    commit = finding.found
    lines = [f"Reported-by: {finding.user}"] if finding.user and not finding.aim.find_fix else []
    if finding.aim.find_fix:
        lines += [f"#regzbot fix: {commit.subject}"]
    else:
        lines += [
            f'Fixes: {commit.commit[:12]} ("{commit.subject}")',
            "",
            f"#regzbot introduced: {commit.commit}",
        ]
    return "\n".join([*lines, ""])


def _commit(facts: CommitFacts) -> list[str]:
    return [f"  author: {facts.author}", f"  date:   {facts.date}", *(f"  {line}" for line in facts.files)]


def _title(facts: CommitFacts) -> str:
    return f"{facts.commit} {facts.subject}"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}".rstrip() for line in lines]


def _said_by(evidence: Evidence) -> list[str]:
    """What a case printed, less Python's tracebacks (its log has them) and what its reason says already."""
    kept: list[str] = []
    inside = False
    for line in evidence.log.splitlines():
        if line.startswith(("Traceback (most recent call last)", "The above exception was")):
            inside = True
        elif not inside and line.strip() and line.removeprefix("why: ") not in evidence.reason:
            kept.append(line)
        elif inside and line.strip() and not line.startswith(" "):
            inside = False  # the exception itself, which is the last line
    return kept


def _first(splat: str) -> list[str]:
    """The beginning of a splat, which tells most; others may follow it."""
    return splat.strip().splitlines()[:_OUTPUT_LINES]
