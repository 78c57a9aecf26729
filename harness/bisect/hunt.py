# SPDX-License-Identifier: GPL-2.0-only
"""The hunt: both ends first, then what git chooses, until one commit is left.

Knows how neither git nor a kernel is driven: a Chooser names commits, a Judge tests them.  Every verdict is
on disk before git hears of it, so a hunt that is killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from harness.bisect.gitbisect import Position
from harness.bisect.model import Aim, Mark, Observation, Sight, Step, Weighed, hunted_cases, weigh
from harness.bisect.state import End, HuntState, Quarry
from harness.errors import HarnessError, InfraError, KernelError, UsageError
from harness.words import count_of, duration

LOG_NAME = "bisect.log"

HOPELESS = 3
"""After so many commits in a row without a chance the host is put to the test."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A kernel that can be booted."""

    content: str
    """Digest of all that will be booted."""
    seconds: float
    """What building it took."""


class Judge(Protocol):
    """Who tests commits."""

    def prepare(self, commit: str) -> Prepared | Observation:
        """Build *commit*, or say why that cannot be."""

    def look(self, commit: str, hunted: Sequence[str]) -> Observation:
        """Boot it in a fresh VM and run the cases *hunted*; what was asked for when there are none."""


class Chooser(Protocol):
    """Who names the commit to test next."""

    def begin(self, quarry: Quarry, aim: Aim, marks: Iterable[tuple[Mark, str]]) -> Position:
        """Start, knowing *marks* already."""

    def mark(self, mark: Mark, commit: str) -> Position:
        """Hear what *commit* is."""

    def log(self) -> str:
        """What has been said so far, to be replayed."""


def settle(
    judge: Judge,
    step: Step,
    aim: Aim,
    hunted: Sequence[str] = (),
    *,
    wary: bool = False,
    usual: Collection[str] = (),
    known: Callable[[str], Step | None] = lambda content: None,
    note: Callable[[Step], None] = lambda step: None,
) -> Step:
    """Judge the commit of *step*, which may have been seen by some VMs already; *note* hears of each.

    *usual* are the failures to be expected; *known* names a commit that was judged with the same content.
    """
    prepared = judge.prepare(step.commit)
    if isinstance(prepared, Observation):
        return dataclasses.replace(
            step,
            sight=prepared.sight,
            why=prepared.why,
            observations=(prepared,),
        )
    step = dataclasses.replace(
        step, content=prepared.content, build_seconds=step.build_seconds + prepared.seconds
    )
    twin = known(prepared.content)
    if twin is not None:
        return dataclasses.replace(step, sight=twin.sight, why=twin.why, same_as=twin.commit)
    while (weighed := weigh(step.observations, aim, wary=wary, usual=usual)) is None:
        seen = judge.look(step.commit, hunted)
        step = dataclasses.replace(step, observations=(*step.observations, seen))
        note(step)
    return _judged(step, weighed)


def _judged(step: Step, weighed: Weighed) -> Step:
    return dataclasses.replace(step, sight=weighed.sight, why=weighed.why, flaky=weighed.flaky)


def fresh_step(commit: str, subject: str) -> Step:
    """A commit about which nothing is known."""
    return Step(commit=commit, subject=subject, sight=Sight.NO_CHANCE, why="")


class Hunt:
    """One hunt, from wherever *state* is to its end."""

    def __init__(
        self,
        state: HuntState,
        directory: Path,
        chooser: Chooser,
        judge: Judge,
        say: Say,
        subject_of: Callable[[str], str],
    ) -> None:
        self.state = state
        self._directory = directory
        self._chooser = chooser
        self._judge = judge
        self._say = say
        self._subject_of = subject_of
        self._trusted = 0
        """How many steps there were when the host was last found sound."""

    def run(self) -> Position:
        """Hunt to the end.

        Raises HarnessError when an end is not what it was said to be, or the host gives no commit a chance.
        """
        self._test_ends()
        position = self._chooser.begin(self.state.quarry, self.state.aim, self.state.marks())
        self._keep_log()
        while position.commit:
            self._say(self._outlook(position))
            step = self._judge_one(position.commit, self._subject_of(position.commit))
            self._update(steps=(*self.state.steps, step), pending=None)
            self._say(f"  {describe(step, self.state.aim)}")
            self._require_hope()
            position = self._chooser.mark(self.state.aim.mark(step.sight), step.commit)
            self._keep_log()
        return position

    def finish(self) -> None:
        """Note that there is nothing to go on with."""
        self._update(finished=True)

    def confirm_pass(self, step: Step) -> Step:
        """See *step*, the last commit that passes, pass on a second VM, unless it was seen twice already.

        Returns it with what was seen.
        """
        if step.vms != 1 or step.sight is not Sight.PASSES:
            return step
        self._say(f"once more, on another VM: {step.commit[:12]}, where it passes")
        seen = self._judge.look(step.commit, self.state.hunted)
        again = dataclasses.replace(step, observations=(*step.observations, seen))
        if self.state.aim.fails(seen.sight):
            again = dataclasses.replace(again, flaky=True, why=f"flaky: passed once, then {seen.why}")
        self._replace(step, again)
        return again

    def _replace(self, before: Step, after: Step) -> None:
        state = self.state
        self._update(
            new_end=after if state.new_end is before else state.new_end,
            old_end=after if state.old_end is before else state.old_end,
            steps=tuple(after if step is before else step for step in state.steps),
        )

    def _update(self, **changes: object) -> None:
        self.state = dataclasses.replace(self.state, **changes)  # type: ignore[arg-type]
        self.state.save(self._directory)

    def _keep_log(self) -> None:
        (self._directory / LOG_NAME).write_text(self._chooser.log(), encoding="utf-8")

    def _judge_one(self, commit: str, subject: str, *, wary: bool = False) -> Step:
        state = self.state
        begun = state.pending if state.pending and state.pending.commit == commit else None
        step = settle(
            self._judge,
            begun or fresh_step(commit, subject),
            state.aim,
            state.hunted,
            wary=wary or state.wary,
            usual=state.usual_failures,
            known=state.known,
            note=self._note,
        )
        return self._blame_silence(step) if state.aim.boot and _is_silent(step) else step

    def _blame_silence(self, step: Step) -> Step:
        """Call a kernel dead that comes up on no VM while the end that boots still does; else leave it."""
        end = self._passing_end
        if step.commit == end.commit:
            return step
        silent = [seen for seen in step.observations if seen.silent]
        self._say(f"  no guest came up on {count_of(len(silent), 'VM')}: trying {end.label}, which boots")
        control = self._look_at_passing_end()
        if control.sight is not Sight.PASSES:
            self._say(f"  {control.why}: that may be the host's doing")
            return step
        seen = tuple(
            dataclasses.replace(one, sight=Sight.DIES) if one.silent else one for one in step.observations
        )
        why = f"no guest came up on {count_of(len(silent), 'VM')}, and {end.label} boots: {step.why}"
        return dataclasses.replace(step, sight=Sight.DIES, why=why, observations=seen)

    @property
    def _passing_end(self) -> End:
        quarry = self.state.quarry
        return quarry.new if self.state.aim.find_fix else quarry.old

    def _look_at_passing_end(self) -> Observation:
        """What a fresh VM shows of the end that passes: on a sound host it passes."""
        commit = self._passing_end.commit
        prepared = self._judge.prepare(commit)
        return prepared if isinstance(prepared, Observation) else self._judge.look(commit, self.state.hunted)

    def _note(self, step: Step) -> None:
        self._update(pending=step)
        latest = step.observations[-1]
        if len(step.observations) > 1 or self.state.aim.fails(latest.sight):
            again = any(seen.sight is latest.sight for seen in step.observations[:-1])
            said = f"{latest.sight.value} too" if again else f"{latest.sight.value}: {latest.why}"
            self._say(f"  VM {len(step.observations)}: {said}")

    def _test_ends(self) -> None:
        """Both ends, the newer first: what does not happen here is seen soonest there."""
        quarry, aim = self.state.quarry, self.state.aim
        if self.state.new_end is None:
            self._update(new_end=self._test_end(quarry.new, aim.terms[1], Mark.NEW), pending=None)
        if self.state.old_end is None:
            self._update(old_end=self._test_end(quarry.old, aim.terms[0], Mark.OLD), pending=None)
        if not self.state.hunted and not aim.boot:
            self._choose_hunted()

    def _test_end(self, end: End, word: str, mark: Mark) -> Step:
        self._say(f"testing the {word} end, {end.label}: {end.subject}")
        passing = mark is self.state.aim.passing_end
        # One pass does not refute who says that it fails.
        step = self._judge_one(end.commit, end.subject, wary=not passing)
        error = end_error(step, end, word, self.state.aim, passing=passing)
        if error is not None:
            self._update(pending=None, finished=step.sight is not Sight.NO_CHANCE)
            raise error
        self._say(f"  {word}: {step.why}{_cost(step)}")
        return step

    def _choose_hunted(self) -> None:
        """Let the ends say which cases tell them apart, and whether not being there is how it fails."""
        state, aim = self.state, self.state.aim
        assert state.new_end is not None
        assert state.old_end is not None
        passing, failing = (state.new_end, state.old_end) if aim.find_fix else (state.old_end, state.new_end)
        seen_passing, seen_failing = _seen_cases(passing), _seen_cases(failing)
        hunted = hunted_cases(seen_passing, seen_failing)
        if not hunted:
            self.finish()
            old, new = state.quarry.old, state.quarry.new
            raise UsageError(
                f"no case passes at one of {old.label} and {new.label} only: {failing.why}",
                hint=f"the logs: {seen_passing.run_dir} and {seen_failing.run_dir}",
            )
        gone = all(seen_failing.cases.get(case, failing.sight) is Sight.MISSING for case in hunted)
        self._update(hunted=hunted, aim=dataclasses.replace(aim, missing_fails=gone))
        others = len(seen_passing.cases) - len(hunted)
        named = ", ".join(hunted[:3]) + (f" and {len(hunted) - 3} more" if len(hunted) > 3 else "")
        self._say(f"hunting {named}" + (f"; {others} cases do not tell the ends apart" if others else ""))
        if gone:
            self._say("  where it is not there, that counts as not passing: so it is at one end")

    def _outlook(self, position: Position) -> str:
        """What is left to do."""
        short, left = position.commit[:12], position.left
        steps = position.steps + 1
        took = [step.seconds for step in self.state.tested if step.vms]
        seconds = sum(took) / len(took) * steps if took else 0.0
        return (
            f"step {len(self.state.steps) + 1}: {short} {self._subject_of(position.commit)}\n"
            f"  {count_of(left, 'commit')} left after it, about {count_of(steps, 'step')}"
            + (f", {duration(seconds)}" if seconds else "")
        )

    def _require_hope(self) -> None:
        """Stop when it is the host that is wrong and not the commits; what it cost is forgotten.

        Commits in a row without a chance may all hang.  An end that passed before tells: on a sound host it
        passes again.
        """
        latest = self.state.steps[self._trusted :][-HOPELESS:]
        if len(latest) < HOPELESS or any(s.sight is not Sight.NO_CHANCE or s.flaky for s in latest):
            return
        end = self._passing_end
        self._say(
            f"  {HOPELESS} commits in a row could not be tested: trying {end.label} again, which passed"
        )
        control = self._look_at_passing_end()
        if control.sight is not Sight.NO_CHANCE:
            self._say(f"  {control.why}: the host is sound, so it is the commits")
            self._trusted = len(self.state.steps)
            return
        self._update(steps=self.state.steps[:-HOPELESS])
        raise InfraError(
            f"the host gives no guest a chance any more: {control.why}",
            hint="see to it, then go on with: vfio-harness bisect --continue",
        )


def _is_silent(step: Step) -> bool:
    """Whether no VM of *step* had a guest, and more than one of them was silent about why."""
    silent = [seen for seen in step.observations if seen.silent]
    rest = [seen for seen in step.observations if not seen.silent and seen.sight is not Sight.DIES]
    return step.sight is Sight.NO_CHANCE and len(silent) > 1 and not rest


def _seen_cases(step: Step) -> Observation:
    """What VMs saw of *step*, each case by the majority of them; a draw is a failure."""
    told = step.telling() or step.observations[0]
    cases = dict(told.cases)
    for case in cases:
        seen = [one.cases[case] for one in step.observations if case in one.cases]
        if Sight.FAILS in seen:
            passed = seen.count(Sight.PASSES) > seen.count(Sight.FAILS)
            cases[case] = Sight.PASSES if passed else Sight.FAILS
    return dataclasses.replace(told, cases=cases)


def end_error(step: Step, end: End, word: str, aim: Aim, *, passing: bool) -> HarnessError | None:
    """What is wrong with an end that should pass, or fail; None when nothing is."""
    log = next((seen.run_dir for seen in reversed(step.observations) if seen.run_dir), "")
    told = next((seen.hint for seen in step.observations if seen.hint), None)
    hint = f"the log: {log}" if log else told
    what = f"the {word} end {end.label}"
    if step.sight is Sight.NO_CHANCE:
        return InfraError(f"{what} could not be tested: {step.why}", hint=hint)
    if step.sight is Sight.REFUSED:
        return UsageError(f"{what} cannot be tested: {step.why}", hint=hint)
    if passing:
        some_pass = any(Sight.PASSES in seen.cases.values() for seen in step.observations)
        if step.sight is Sight.PASSES or (step.sight is Sight.FAILS and some_pass):
            return None
        if aim.fails(step.sight):
            return UsageError(f"{what} is {aim.other_term(word)}: {step.why}", hint=hint)
        return KernelError(f"{what} cannot be tested: {step.why}", hint=hint)
    if step.sight is Sight.PASSES:
        return UsageError(f"{what} is {aim.other_term(word)}: {step.why}", hint=hint)
    if aim.fails(step.sight) or step.sight is Sight.MISSING:
        return None
    if step.sight is Sight.DIES:
        hint = "hunt that with --boot" + (f"; {hint}" if hint else "")
    return KernelError(f"{what} cannot be tested: {step.why}", hint=hint)


def describe(step: Step, aim: Aim) -> str:
    """A verdict in a line."""
    mark = aim.mark(step.sight)
    word = aim.word(mark).upper() if mark is not Mark.SKIP else f"SKIP, {step.sight.value}"
    if step.same_as:
        return f"{word}: the same image as {step.same_as[:12]}, built in {step.build_seconds:.0f} s"
    return f"{word}: {step.why}{_cost(step)}"


def _cost(step: Step) -> str:
    words = [f"build {step.build_seconds:.0f} s"] if step.build_seconds else []
    booted = step.seconds - step.build_seconds
    words += [f"{count_of(step.vms, 'VM')} {booted:.0f} s"] if step.vms else []
    return f" ({', '.join(words)})" if words else ""
