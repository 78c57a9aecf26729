# SPDX-License-Identifier: GPL-2.0-only
"""A bisect finds the right commit, whatever the commits, the VMs and the host do in between."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from harness.base.errors import InfraError, KernelError, UsageError
from harness.bisect.bisect import MAX_UNTESTED, Bisect
from harness.bisect.git import GitBisect, Position
from harness.bisect.state import (
    FILE_NAME,
    BisectRequest,
    BisectState,
    CommitRun,
    End,
    GitVerdict,
    Rules,
    Status,
    StepOptions,
    load_state,
)
from harness.bisect.step import BuiltCommit, VMTester

P, F, M, R = Status.PASSES, Status.FAILS, Status.MISSING, Status.INVALID
D, U, N = Status.NO_BOOT, Status.NO_BUILD, Status.UNTESTED
CASE = "probes/a/b"
LAST = 16


class FakeChooser(GitBisect):
    """Halve a line of commits called "0" to "16", as git does."""

    def start(self, verdicts: Iterable[tuple[GitVerdict, str]] = ()) -> Position:
        request = self._request
        self.low, self.high = int(request.old.commit), int(request.new.commit)
        self.skipped: set[int] = set()
        self.told: list[tuple[GitVerdict, str]] = []
        position = self._next()
        for verdict, commit in verdicts:
            position = self.tell(verdict, commit)
        return position

    def tell(self, verdict: GitVerdict, commit: str) -> Position:
        self.told.append((verdict, commit))
        match verdict:
            case GitVerdict.OLD:
                self.low = max(self.low, int(commit))
            case GitVerdict.NEW:
                self.high = min(self.high, int(commit))
            case GitVerdict.SKIP:
                self.skipped.add(int(commit))
        return self._next()

    def _next(self) -> Position:
        inside = [n for n in range(self.low + 1, self.high) if n not in self.skipped]
        if inside:
            middle = (self.low + self.high) / 2
            chosen = min(inside, key=lambda number: abs(number - middle))
            return Position(commit=str(chosen), left=len(inside) - 1, steps=len(inside).bit_length())
        if self.high - self.low == 1:
            return Position(found=str(self.high))
        return Position(suspects=tuple(str(n) for n in range(self.low + 1, self.high + 1)))

    def left(self) -> tuple[str, ...]:
        inside = range(self.low + 1, self.high)
        return tuple(str(number) for number in inside if number not in self.skipped)

    def subject_of(self, commit: str) -> str:
        return f"c{commit}"

    def log(self) -> str:
        return "\n".join(f"git bisect {verdict.value} {commit}" for verdict, commit in self.told)


class FakeTester(VMTester):
    """Know what each VM shows of each commit."""

    def __init__(
        self,
        shows: Callable[[int], Sequence[Status]],
        image: Callable[[int], str] = str,
        *,
        silent: bool = False,
    ) -> None:
        self.shows, self.image = shows, image
        self.silent = silent
        """Whether the VM of an untested commit runs."""
        self.boots: list[int] = []
        self.asked: list[tuple[str, ...]] = []

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        first = self.shows(int(commit))[0]
        if first in (U, M, R):
            return CommitRun(status=first, why=first.value)
        return BuiltCommit(image=self.image(int(commit)), seconds=1.0)

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        number = int(commit)
        statuses = self.shows(number)
        status = statuses[min(self.boots.count(number), len(statuses) - 1)]
        self.boots.append(number)
        self.asked.append(cases)
        shown = {CASE: status} if status in (P, F) else {}
        return CommitRun(
            status=status,
            why=status.value,
            cases=shown,
            run_dir="runs/x",
            silent=self.silent and status is N,
            seconds=2.0,
        )


def request() -> BisectRequest:
    old, new = End(name="v1", commit="0"), End(name="v2", commit=str(LAST))
    return BisectRequest(
        repository="/linux", root="/linux/.git", old=old, new=new, options=StepOptions(cases=("probes/a/*",))
    )


def bisect_of(
    directory: Path, tester: FakeTester, rules: Rules | None = None, state: BisectState | None = None
) -> Bisect:
    start = state or BisectState(id="x", request=request(), rules=rules or Rules())
    return Bisect(start, directory, FakeChooser(start.request, start.rules), tester)


def since(culprit: int, **odd: Sequence[Status]) -> Callable[[int], Sequence[Status]]:
    """Commits are good before *culprit* and bad from it on, except the *odd* ones, called c5 and so on."""
    return lambda number: odd.get(f"c{number}", [F if number >= culprit else P])


@pytest.mark.parametrize("culprit", range(1, LAST + 1))
def test_it_lands_on_the_culprit(tmp_path: Path, culprit: int) -> None:
    """Wherever it is; each failing commit runs twice, each passing one once."""
    tester = FakeTester(since(culprit))
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == str(culprit)
    for number in set(tester.boots):
        assert tester.boots.count(number) == (2 if number >= culprit else 1)
    assert loop.state.cases == (CASE,)
    assert tester.asked[:3] == [(), (), ()]
    assert set(tester.asked[3:]) <= {(CASE,)}


class FakeFleet(FakeTester):
    """So many workers, which may know more than git has been told."""

    is_elsewhere = True

    def __init__(self, workers: int, shows: Callable[[int], Sequence[Status]]) -> None:
        super().__init__(shows)
        self.width = workers
        self.dropped: list[str] = []

    def drop(self, commit: str) -> None:
        self.dropped.append(commit)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("culprit", [1, 2, 7, 8, 11, 15, 16])
def test_a_fleet_finds_it_in_fewer_rounds(tmp_path: Path, workers: int, culprit: int) -> None:
    """A round leaves one part of workers + 1; git is never told of a commit that is not left."""
    tester = FakeFleet(workers, since(culprit, c4=[U]))
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == str(culprit)
    # One more or two for the commit that does not build.
    assert loop.state.rounds <= math.ceil(math.log(LAST, workers + 1)) + 2
    told = [step.commit for step in loop.state.steps]
    assert len(set(told)) == len(told)
    again = FakeChooser(loop.state.request, loop.state.rules)
    assert again.start(loop.state.verdicts()).found == str(culprit)
    needed = {step.commit for step in (*loop.state.steps, *loop.state.spare)} | {"0", str(LAST)}
    assert {str(number) for number in tester.boots} <= needed | set(tester.dropped)


def test_an_end_that_cannot_be_tested_ends_it_on_a_fleet(tmp_path: Path) -> None:
    tester = FakeFleet(2, since(7, c16=[N]))
    with pytest.raises(InfraError, match="the bad end v2"):
        bisect_of(tmp_path, tester).run()


@pytest.mark.parametrize("status", [U, D, M, N, R])
def test_what_cannot_be_tested_is_skipped(tmp_path: Path, status: Status) -> None:
    """A commit that does not build, boot or apply, or that the host failed to test, is never bad."""
    loop = bisect_of(tmp_path, FakeTester(since(11, c8=[status])))
    assert loop.run().found == "11"
    assert [step.status for step in loop.state.steps if step.commit == "8"] == [status]


def test_one_lost_guest_gets_another_vm(tmp_path: Path) -> None:
    """A commit is not skipped because its guest is lost once."""
    loop = bisect_of(tmp_path, FakeTester(since(8, c8=[N, F, F])))
    assert loop.run().found == "8"


def test_flake_is_settled_by_the_majority(tmp_path: Path) -> None:
    """A good commit that fails once stays good, and later passes need a second VM."""
    tester = FakeTester(since(11, c8=[F, P, P]))
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == "11"
    flaky = [step for step in loop.state.steps if step.flaky]
    assert [step.commit for step in flaky] == ["8"]
    assert "1 of 3 VMs failed" in flaky[0].why
    later = [n for n in tester.boots[tester.boots.index(8) + 3 :] if n < 11]
    assert later
    assert all(later.count(number) == 2 for number in later)


@pytest.mark.parametrize(
    ("number", "statuses", "boots"), [(0, [F, P, P], 3), (LAST, [P, F, F], 3), (LAST, [F, F], 2)]
)
def test_flaky_end_is_settled_by_the_majority(
    tmp_path: Path, number: int, statuses: Sequence[Status], boots: int
) -> None:
    """The majority of VMs decides about an end too."""
    tester = FakeTester(since(11, **{f"c{number}": statuses}))
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == "11"
    assert loop.state.cases == (CASE,)
    assert tester.boots.count(number) == boots


def test_same_image_has_the_same_verdict(tmp_path: Path) -> None:
    """A commit with an image that was tested gets its verdict without a VM."""
    tester = FakeTester(since(9), image=lambda number: "same" if number in (0, 8) else str(number))
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == "9"
    assert 8 not in tester.boots
    assert next(step for step in loop.state.steps if step.commit == "8").same_as == "0"


class FakeTesterOfTwo(FakeTester):
    """Show CASE as FakeTester does, and beside it a failure at every commit that *failing* returns."""

    def __init__(self, failing: Callable[[tuple[str, ...]], Sequence[str]], same: int) -> None:
        super().__init__(since(10), image=lambda number: "0" if number <= same else str(number))
        self.failing = failing

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        run = super().run(commit, cases)
        failing = self.failing(cases)
        shown = {**run.cases, **{case: F for case in failing if case.startswith("probes/")}}
        return dataclasses.replace(run, cases=shown, status=F if failing else run.status)


@pytest.mark.parametrize("same", [0, 9])
def test_a_case_that_fails_everywhere_makes_no_commit_bad(tmp_path: Path, same: int) -> None:
    """A commit with the image of the good end is good, though another case fails there."""
    tester = FakeTesterOfTwo(lambda cases: () if cases else ("probes/a/always",), same)
    loop = bisect_of(tmp_path, tester)
    assert loop.run().found == "10"
    assert loop.state.cases == (CASE,)
    assert loop.state.old_end is not None
    assert loop.state.old_end.status is P


def test_a_good_end_must_pass_by_the_cases_of_the_steps(tmp_path: Path) -> None:
    """A splat outside any case would make all commits bad, so the good end is refused."""
    tester = FakeTesterOfTwo(lambda _cases: ("a splat",), same=0)
    with pytest.raises(UsageError, match=r"the good end v1 .* is bad"):
        bisect_of(tmp_path, tester).run()


def test_find_fix(tmp_path: Path) -> None:
    """With find_fix, the first commit that passes is found."""
    tester = FakeTester(lambda number: [P if number >= 6 else F])
    assert bisect_of(tmp_path, tester, Rules(find_fix=True)).run().found == "6"


def test_when_did_it_appear(tmp_path: Path) -> None:
    """Commits without the case are old when the old end lacks it; a commit where it fails is old too."""
    tester = FakeTester(lambda number: [M if number < 5 else F if number < 7 else P])
    loop = bisect_of(tmp_path, tester, Rules(find_fix=True))
    assert loop.run().found == "7"
    assert loop.state.rules.missing_fails


def test_terms_of_the_user(tmp_path: Path) -> None:
    """The error about a wrong end uses the user's terms."""
    tester = FakeTester(lambda number: [P])
    with pytest.raises(UsageError, match=r"the slow end v2 .* is fast"):
        bisect_of(tmp_path, tester, Rules(term_old="fast", term_new="slow")).run()


def test_absence_in_between_is_skipped(tmp_path: Path) -> None:
    """When both ends have the case, a commit without it is skipped."""
    loop = bisect_of(tmp_path, FakeTester(since(11, c8=[M])))
    assert loop.run().found == "11"
    assert not loop.state.rules.missing_fails


def test_no_boot_is_bad_only_with_boot(tmp_path: Path) -> None:
    """With --boot, a kernel that crashes on two VMs is bad; without, such an end is refused."""
    tester = FakeTester(lambda number: [D if number >= 6 else P])
    assert bisect_of(tmp_path, tester, Rules(boot=True)).run().found == "6"
    assert tester.boots.count(6) == 2
    with pytest.raises(KernelError, match="cannot be tested") as error:
        bisect_of(tmp_path, tester, Rules()).run()
    assert "--boot" in str(error.value)


@pytest.mark.parametrize("find_fix", [False, True])
def test_silent_hang_is_a_boot_that_fails(tmp_path: Path, find_fix: bool) -> None:
    """With --boot, a commit that hangs on two VMs is bad when the passing end still boots."""
    tester = FakeTester(lambda number: [N if (number >= 6) is not find_fix else P], silent=True)
    loop = bisect_of(tmp_path, tester, Rules(boot=True, find_fix=find_fix))
    assert loop.run().found == "6"
    hung = [step for step in loop.state.tested if step.status is D]
    assert {step.vms for step in hung} == {2}
    assert all("no guest came up on 2 VMs" in step.why for step in hung)
    assert tester.boots.count(LAST if find_fix else 0) == len(hung) + 1
    assert load_state(tmp_path) == loop.state


@pytest.mark.parametrize(("boot", "silent"), [(True, False), (False, True)])
def test_no_other_loss_is_a_boot_that_fails(tmp_path: Path, boot: bool, silent: bool) -> None:
    """Without --boot, or when no VM ran, a commit without a guest is skipped."""
    tester = FakeTester(lambda number: [N if number == 8 else P if number < 11 else D if boot else F])
    tester.silent = silent
    loop = bisect_of(tmp_path, tester, Rules(boot=boot))
    assert loop.run().found == "11"
    assert next(step for step in loop.state.steps if step.commit == "8").status is N


def test_silence_of_the_host_is_no_verdict(tmp_path: Path) -> None:
    """When the passing end does not boot any more either, the commit is skipped."""
    control = [P, N, P]
    others = {8: N, **dict.fromkeys(range(11, LAST + 1), D)}
    tester = FakeTester(lambda number: [others.get(number, P)] if number else control, silent=True)
    loop = bisect_of(tmp_path, tester, Rules(boot=True))
    assert loop.run().found == "11"
    assert next(step for step in loop.state.steps if step.commit == "8").status is N


def test_end_that_should_boot_and_hangs(tmp_path: Path) -> None:
    """A passing end that hangs is reported as untested: there is nothing to compare it with."""
    tester = FakeTester(lambda number: [D if number else N], silent=True)
    with pytest.raises(InfraError, match=r"the good end v1 .* could not be tested"):
        bisect_of(tmp_path, tester, Rules(boot=True)).run()


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        (P, P, UsageError, "the bad end v2"),
        (F, F, UsageError, "the good end v1.*is bad"),
        (U, F, KernelError, "the good end v1.*cannot be tested"),
        (M, F, KernelError, "the good end v1.*cannot be tested"),
        (P, U, KernelError, "the bad end v2.*cannot be tested"),
        (P, N, InfraError, "the bad end v2.*not tested"),
        (P, R, UsageError, "the bad end v2.*cannot be tested"),
        (R, F, UsageError, "the good end v1.*cannot be tested"),
    ],
)
def test_wrong_ends_are_reported_at_once(
    tmp_path: Path, old: Status, new: Status, error: type[Exception], said: str
) -> None:
    """Each has an exit code of its own, before any other commit is tested."""
    tester = FakeTester(lambda number: [new if number else old])
    loop = bisect_of(tmp_path, tester)
    with pytest.raises(error, match=said):
        loop.run()
    assert set(tester.boots) <= {0, LAST}
    assert not loop.state.steps
    assert load_state(tmp_path).finished == (new is not N)


def test_cases_that_fail_at_both_ends(tmp_path: Path) -> None:
    """When every case fails at both ends, the good end is refused."""
    tester = FakeTester(lambda number: [F])
    with pytest.raises(UsageError):
        bisect_of(tmp_path, tester).run()


def test_failing_host_stops_the_bisect(tmp_path: Path) -> None:
    """When the passing end cannot be tested any more, the skips are forgotten, and it can be continued."""
    trouble = True
    tester = FakeTester(
        lambda number: (
            [P, N] if trouble and not number else [N] if trouble and number < LAST else since(5)(number)
        )
    )
    with pytest.raises(InfraError, match="--continue"):
        bisect_of(tmp_path, tester).run()
    state = load_state(tmp_path)
    assert not state.steps
    assert len(set(tester.boots)) == 2 + MAX_UNTESTED
    trouble = False
    assert bisect_of(tmp_path, tester, state=state).run().found == "5"


def test_commits_that_hang_do_not_stop_the_bisect(tmp_path: Path) -> None:
    """Many untested commits in a row are skipped when the passing end still passes."""
    tester = FakeTester(lambda number: [N] if 4 <= number <= 11 else since(13)(number))
    assert bisect_of(tmp_path, tester).run().found == "13"
    assert tester.boots.count(0) == 3  # as an end, and for every three of the eight


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("after", range(9))
def test_killed_bisect_continues(tmp_path: Path, after: int) -> None:
    """No run is made twice."""

    class Mortal(FakeTester):
        left = after

        def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
            if not self.left:
                raise Killed
            self.left -= 1
            return super().run(commit, cases)

    whole = FakeTester(since(11))
    bisect_of(tmp_path, whole).run()
    (tmp_path / FILE_NAME).unlink()
    tester = Mortal(since(11))
    with pytest.raises(Killed):
        bisect_of(tmp_path, tester).run()
    saved = (tmp_path / FILE_NAME).is_file()
    tester.left = 1000
    again = bisect_of(tmp_path, tester, state=load_state(tmp_path) if saved else None)
    assert again.run().found == "11"
    assert tester.boots == whole.boots


def test_last_pass_is_run_once_more(tmp_path: Path) -> None:
    """The last passing commit passes on a second VM, or it is flaky."""
    tester = FakeTester(since(9, c8=[P, F]))
    loop = bisect_of(tmp_path, tester)
    loop.run()
    step = next(step for step in loop.state.steps if step.commit == "8")
    assert loop.confirm_pass(step).flaky
    assert next(step for step in load_state(tmp_path).steps if step.commit == "8").vms == 2


def test_state_is_the_same_from_disk(tmp_path: Path) -> None:
    """Reading the file gives back the whole state."""
    loop = bisect_of(tmp_path, FakeTester(since(11, c8=[F, P, P])))
    loop.run()
    loop.state = dataclasses.replace(loop.state, pending=loop.state.steps[0])
    loop.finish()
    assert load_state(tmp_path) == loop.state


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}', '{"format": 1}', '{"format": 2}'])
def test_unreadable_state(tmp_path: Path, text: str) -> None:
    """A state that cannot be read is refused, with its file and what to do."""
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UsageError, match=rf"cannot continue: .*{FILE_NAME}: .*--reset"):
        load_state(tmp_path)


def test_state_is_json_for_people(tmp_path: Path) -> None:
    """The file uses plain words."""
    bisect_of(tmp_path, FakeTester(since(11))).run()
    plain = json.loads((tmp_path / FILE_NAME).read_text())
    assert plain["new_end"]["status"] == "fails"
