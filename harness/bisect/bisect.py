# SPDX-License-Identifier: GPL-2.0-only
"""The bisect itself: test both ends, then what git chooses, until one commit is left.

Every run and every verdict is on disk before git is told, so a bisect that is killed continues where it was.
On a fleet, both ends and then several commits are tested at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from harness.base.errors import HarnessError, InfraError, KernelError, UsageError
from harness.base.files import write_atomic
from harness.base.output import tell
from harness.base.words import count_of, duration
from harness.bisect import git
from harness.bisect.at_once import as_they_end, in_order
from harness.bisect.evidence import first_new, last_old, make_report
from harness.bisect.git import GitBisect, Position
from harness.bisect.report import Report, mail, summary
from harness.bisect.state import BisectState, CommitRun, End, GitVerdict, Rules, Status, Step
from harness.bisect.step import BuiltCommit, Tester, cost, describe, run_step
from harness.bisect.verdict import cases_that_differ, majority_run, usual_failures

LOG_NAME = "bisect.log"
REPORT_NAME = "report.txt"
MAIL_NAME = "regression.mail"
CONFIG_NAME = "kernel.config"

MAX_UNTESTED = 3
"""How many untested commits in a row make bisect check the host."""


def bisect(state: BisectState, directory: Path, testing: AbstractContextManager[Tester]) -> Report:
    """Bisect from *state* to the end and write the report to *directory*; *testing* gives the tester.

    Raises HarnessError when an end is not good or bad as given, or commits cannot be tested any more.
    """
    request = state.request
    with git.alone(Path(request.root)), testing as tester:
        loop = Bisect(state, directory, GitBisect(request, state.rules), tester)
        position = loop.run()
        report = _conclude(loop, position, directory)
        loop.finish()
        git.reset(Path(request.root))
    return report


def _conclude(loop: Bisect, position: Position, directory: Path) -> Report:
    if position.found or position.suspects:
        passing = (first_new if loop.state.rules.find_fix else last_old)(loop.state, position)
        if passing is not None:
            loop.confirm_pass(passing)
    report = make_report(loop.state, position, (directory / LOG_NAME).read_text(encoding="utf-8"))
    write_atomic(directory / REPORT_NAME, summary(report) + "\n")
    if mail(report):
        write_atomic(directory / MAIL_NAME, mail(report))
    if report.config:
        shutil.copy2(report.config, directory / CONFIG_NAME)
    return report


class Bisect:
    """A bisect that continues from *state* to its end."""

    def __init__(self, state: BisectState, directory: Path, chooser: GitBisect, tester: Tester) -> None:
        self.state = state
        self._directory = directory
        self._chooser = chooser
        self._tester = tester
        self._host_checked = 0
        """How many steps there were when the host was last found to work."""

    def run(self) -> Position:
        """Bisect to the end.

        Raises HarnessError when an end is not good or bad as given, or the host cannot test commits any more.
        """
        self._test_ends()
        position = self._chooser.start(self.state.verdicts())
        self._keep_log()
        while position.commit:
            position = self._next_round(position)
        return position

    def _next_round(self, position: Position) -> Position:
        """Test a commit, or as many as can be tested at once; return what is left then."""
        commits = self._chooser.spread(position, self._tester.width)
        number = len(self.state.steps) + 1
        for commit in commits:
            tell(f"step {number}: {commit[:12]} {self._chooser.subject_of(commit)}")
            number += 1
        # On a fleet each end was built by a worker that had built nothing before.
        known = self.state.steps if self._tester.is_elsewhere else self.state.tested
        left = len(self._chooser.left()) if len(commits) > 1 else position.left + 1
        tell(f"  {_outlook(position, left, len(commits), known)}")
        tests = {
            commit: functools.partial(self._test, commit, self._chooser.subject_of(commit))
            for commit in commits
        }
        with contextlib.closing(as_they_end(self._tester, tests, self._chooser.left)) as steps:
            for step in steps:
                if len(commits) > 1 and step.commit not in self._chooser.left():
                    self._update(spare=(*self.state.spare, step))
                    continue
                twin = self.state.tested_image(step.image)
                if twin is not None and not step.same_as:
                    # Both were tested at once: one image has one verdict.
                    step = dataclasses.replace(step, status=twin.status, why=twin.why, same_as=twin.commit)
                self._update(steps=(*self.state.steps, step), pending=None)
                name = f"{step.commit[:12]} " if len(commits) > 1 else ""
                tell(f"  {name}{describe(step, self.state.rules)}")
                self._check_host()
                position = self._chooser.tell(self.state.rules.verdict(step.status), step.commit)
                self._keep_log()
        self._update(rounds=self.state.rounds + 1)
        return position

    def finish(self) -> None:
        """Record that there is nothing to continue."""
        self._update(finished=True)

    def confirm_pass(self, step: Step) -> Step:
        """Run *step*, the passing commit next to the first new one, on a second VM if it had only one."""
        if step.vms != 1 or step.status is not Status.PASSES:
            return step
        tell(f"retesting {step.commit[:12]}, which passed, on a second VM")
        run = self._tester.run(step.commit, self.state.cases)
        again = dataclasses.replace(step, runs=(*step.runs, run))
        if self.state.rules.fails(run.status):
            again = dataclasses.replace(again, flaky=True, why=f"flaky: passed once, then {run.why}")
        state = self.state
        self._update(
            new_end=again if state.new_end is step else state.new_end,
            old_end=again if state.old_end is step else state.old_end,
            steps=tuple(again if one is step else one for one in state.steps),
        )
        return again

    def _update(self, **changes: object) -> None:
        self.state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        self.state.save(self._directory)

    def _keep_log(self) -> None:
        write_atomic(self._directory / LOG_NAME, self._chooser.log())

    def _test(self, commit: str, subject: str, *, wary: bool = False, say: str = "") -> Step:
        if say:
            tell(say)
        state = self.state
        pending = state.pending if state.pending and state.pending.commit == commit else None
        step = run_step(
            self._tester,
            pending or Step(commit=commit, subject=subject),
            state.rules,
            state.cases,
            wary=wary or state.flaky,
            usual=usual_failures(state),
            # A commit with the same image may be tested at this moment.
            tested_image=lambda image: self.state.tested_image(image),
            on_run=self._on_run,
        )
        return self._check_silence(step) if state.rules.boot and _is_silent(step) else step

    def _on_run(self, step: Step) -> None:
        if not self._tester.is_elsewhere:
            # Of several that are tested at once, none is continued in its middle.
            self._update(pending=step)
        *earlier, run = step.runs
        if earlier or self.state.rules.fails(run.status):
            again = any(one.status is run.status for one in earlier)
            said = f"{run.status.value} too" if again else f"{run.status.value}: {run.why}"
            tell(f"  VM {len(step.runs)}: {said}")

    def _check_silence(self, step: Step) -> Step:
        """Decide that a kernel that hangs silently does not boot, if the passing end still boots."""
        end = self.state.passing_end
        if step.commit == end.commit:
            return step
        what = f"no guest came up on {count_of(sum(run.silent for run in step.runs), 'VM')}"
        tell(f"  {what}: checking whether {end.label} still boots")
        control = self._run_passing_end()
        if control.status is not Status.PASSES:
            tell(f"  {control.why}: the host may be the cause")
            return step
        runs = tuple(
            dataclasses.replace(run, status=Status.NO_BOOT) if run.silent else run for run in step.runs
        )
        why = f"{what}, and {end.label} boots: {step.why}"
        return dataclasses.replace(step, status=Status.NO_BOOT, why=why, runs=runs)

    def _run_passing_end(self) -> CommitRun:
        """Run the passing end on a fresh VM: on a host that works, it passes."""
        commit = self.state.passing_end.commit
        built = self._tester.build(commit)
        return self._tester.run(commit, self.state.cases) if isinstance(built, BuiltCommit) else built

    def _test_ends(self) -> None:
        """Test both ends, the new one first: it shows soonest whether the failure happens on this host."""
        state, request = self.state, self.state.request
        ends = {GitVerdict.NEW: ("new_end", request.new), GitVerdict.OLD: ("old_end", request.old)}
        untested = {verdict: end for verdict, (field, end) in ends.items() if getattr(state, field) is None}
        tests = [
            functools.partial(
                self._test,
                end.commit,
                end.subject,
                # One pass does not disprove that an end fails.
                wary=verdict is not state.rules.passing,
                say=f"testing the {state.rules.word(verdict)} end, {end.label}: {end.subject}",
            )
            for verdict, end in untested.items()
        ]
        for verdict, step in zip(untested, in_order(self._tester, tests), strict=True):
            field, end = ends[verdict]
            self._judge_end(step, end, verdict)
            self._update(**{field: step}, pending=None)
        if not self.state.cases and not self.state.rules.boot:
            self._choose_cases()
            if None in (self.state.old_end, self.state.new_end):
                self._test_ends()

    def _judge_end(self, step: Step, end: End, verdict: GitVerdict) -> None:
        """Raise HarnessError unless *step* shows that *end* is what it was given as."""
        error = end_error(step, end, verdict, self.state.rules, self.state.cases)
        if error is not None:
            self._update(pending=None, finished=step.status is not Status.UNTESTED)
            raise error
        tell(f"  {self.state.rules.word(verdict)}: {step.why}{cost(step)}")

    def _choose_cases(self) -> None:
        """Keep the cases that pass at one end only; see whether they are missing at the other.

        The passing end is forgotten if anything failed there: what steps are compared with must pass.
        """
        state, request = self.state, self.state.request
        assert state.new_end is not None
        assert state.old_end is not None
        old, new = majority_run(state.old_end), majority_run(state.new_end)
        passing, failing = (new, old) if state.rules.find_fix else (old, new)
        cases = cases_that_differ(passing, failing)
        if not cases:
            self.finish()
            ends = (request.old.label, request.new.label)
            good, bad = reversed(ends) if state.rules.find_fix else ends
            why = (state.old_end if state.rules.find_fix else state.new_end).why
            raise UsageError(
                f"no case passes at {good} and fails at {bad}: {why}",
                hint=f"the logs: {passing.run_dir} and {failing.run_dir}",
            )
        missing = all(failing.cases.get(case, failing.status) is Status.MISSING for case in cases)
        field = "new_end" if state.rules.find_fix else "old_end"
        kept = getattr(state, field)
        self._update(
            cases=cases,
            rules=dataclasses.replace(state.rules, missing_fails=missing),
            **{field: kept if kept.status is Status.PASSES else None},
        )
        named = ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")
        same = len(passing.cases) - len(cases)
        tell(
            f"bisecting {named}" + (f"; {count_of(same, 'case')} left out: same at both ends" if same else "")
        )
        if missing:
            word = state.rules.word(state.rules.failing)
            tell(f"  commits to which this does not apply count as {word}, like the {word} end")

    def _check_host(self) -> None:
        """Stop if the host, not the commits, is the cause, and drop the steps that it spoilt.

        If the passing end still passes, the commits themselves cannot be tested.
        """
        latest = self.state.steps[self._host_checked :][-MAX_UNTESTED:]
        if len(latest) < MAX_UNTESTED or any(s.status is not Status.UNTESTED or s.flaky for s in latest):
            return
        end = self.state.passing_end
        tell(f"  {MAX_UNTESTED} commits in a row could not be tested: checking {end.label}, which passed")
        control = self._run_passing_end()
        if control.status is not Status.UNTESTED:
            tell(f"  {control.why}: the host works, so the commits are the cause")
            self._host_checked = len(self.state.steps)
            return
        self._update(steps=self.state.steps[:-MAX_UNTESTED])
        raise InfraError(
            f"this host can no longer test commits: {control.why}",
            hint="fix that, then run: vfio-harness bisect --continue --tree " + self.state.request.repository,
        )


def _outlook(position: Position, left: int, at_once: int, tested: Sequence[Step]) -> str:
    """Return how many commits and steps are left, and how long they will take.

    *at_once* of the *left* commits are tested at a time.
    """
    after, steps, them = position.left, position.steps + 1, "it"
    if at_once > 1:
        # Each round leaves one of at_once + 1 parts.
        after = math.ceil((left - at_once) / (at_once + 1))
        steps, them = max(1, math.ceil(math.log(left + 1, at_once + 1))), "them"
    words = count_of(steps, "round" if at_once > 1 else "step")
    left_over = f"{count_of(after, 'commit')} left after {them}, about {words}"
    took = [step.seconds for step in tested if step.vms]
    return f"{left_over}, {duration(sum(took) / len(took) * steps)}" if took else left_over


def _is_silent(step: Step) -> bool:
    """Whether no guest of *step* came up, and at least two gave no reason."""
    silent = sum(run.silent for run in step.runs)
    rest = [run for run in step.runs if not run.silent and run.status is not Status.NO_BOOT]
    return step.status is Status.UNTESTED and silent > 1 and not rest


def end_error(
    step: Step, end: End, verdict: GitVerdict, rules: Rules, cases: Sequence[str] = ()
) -> HarnessError | None:
    """Return what is wrong with an end that should have *verdict*; None when nothing is.

    Unless it was judged by the *cases* of the steps, some of its cases may fail at both ends.
    """
    word = rules.word(verdict)
    other = rules.word(GitVerdict.OLD if verdict is GitVerdict.NEW else GitVerdict.NEW)
    what, status = f"the {word} end {end.label}", step.status
    log = next((run.run_dir for run in reversed(step.runs) if run.run_dir), "")
    hint = f"the log: {log}" if log else step.hint
    if status is Status.UNTESTED:
        return InfraError(f"{what} could not be tested: {step.why}", hint=hint)
    if status is Status.INVALID:
        return UsageError(f"{what} cannot be tested: {step.why}", hint=hint)
    fails = rules.fails(status)
    if verdict is rules.passing:
        some_pass = not cases and any(Status.PASSES in run.cases.values() for run in step.runs)
        right, wrong = status is Status.PASSES or (status is Status.FAILS and some_pass), fails
    else:
        right, wrong = fails or status is Status.MISSING, status is Status.PASSES
    if right:
        return None
    if wrong:
        return UsageError(f"{what} is {other}: {step.why}", hint=hint)
    if status is Status.NO_BOOT and verdict is rules.failing:
        hint = "bisect the boot with --boot" + (f"; {hint}" if hint else "")
    return KernelError(f"{what} cannot be tested: {step.why}", hint=hint)
