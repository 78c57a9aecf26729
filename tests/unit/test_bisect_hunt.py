# SPDX-License-Identifier: GPL-2.0-only
"""A hunt lands on the right commit whatever the commits, the VMs and the host do meanwhile."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from harness.bisect.gitbisect import Position
from harness.bisect.hunt import HOPELESS, Hunt, Prepared
from harness.bisect.model import Aim, Mark, Observation, Sight
from harness.bisect.state import FILE_NAME, End, HuntState, Quarry, load_state
from harness.errors import InfraError, KernelError, UsageError

P, F, M, R = Sight.PASSES, Sight.FAILS, Sight.MISSING, Sight.REFUSED
D, U, N = Sight.DIES, Sight.UNBUILDABLE, Sight.NO_CHANCE
CASE = "probes/a/b"
LAST = 16


class FakeChooser:
    """Halves a line of commits called "0" to "16", as git would."""

    def begin(self, quarry: Quarry, aim: Aim, marks: Iterable[tuple[Mark, str]]) -> Position:
        self.low, self.high = int(quarry.old.commit), int(quarry.new.commit)
        self.skipped: set[int] = set()
        self.told: list[tuple[Mark, str]] = []
        position = self._position()
        for mark, commit in marks:
            position = self.mark(mark, commit)
        return position

    def mark(self, mark: Mark, commit: str) -> Position:
        self.told.append((mark, commit))
        match mark:
            case Mark.OLD:
                self.low = max(self.low, int(commit))
            case Mark.NEW:
                self.high = min(self.high, int(commit))
            case Mark.SKIP:
                self.skipped.add(int(commit))
        return self._position()

    def _position(self) -> Position:
        inside = [n for n in range(self.low + 1, self.high) if n not in self.skipped]
        if inside:
            middle = (self.low + self.high) / 2
            chosen = min(inside, key=lambda number: abs(number - middle))
            return Position(commit=str(chosen), left=len(inside) - 1, steps=len(inside).bit_length())
        if self.high - self.low == 1:
            return Position(found=str(self.high))
        return Position(suspects=tuple(str(n) for n in range(self.low + 1, self.high + 1)))

    def log(self) -> str:
        return "\n".join(f"git bisect {mark.value} {commit}" for mark, commit in self.told)


class FakeJudge:
    """Knows what each VM will show of each commit."""

    def __init__(
        self,
        shows: Callable[[int], Sequence[Sight]],
        content: Callable[[int], str] = str,
        *,
        silent: bool = False,
    ) -> None:
        self.shows, self.content = shows, content
        self.silent = silent
        """Whether who has no chance has a VM that runs."""
        self.looks: list[int] = []
        self.asked: list[tuple[str, ...]] = []

    def prepare(self, commit: str) -> Prepared | Observation:
        first = self.shows(int(commit))[0]
        if first in (U, M, R):
            return Observation(sight=first, why=first.value)
        return Prepared(content=self.content(int(commit)), seconds=1.0)

    def look(self, commit: str, hunted: Sequence[str]) -> Observation:
        number = int(commit)
        sights = self.shows(number)
        sight = sights[min(self.looks.count(number), len(sights) - 1)]
        self.looks.append(number)
        self.asked.append(tuple(hunted))
        cases = {CASE: sight} if sight in (P, F) else {}
        return Observation(
            sight=sight,
            why=sight.value,
            cases=cases,
            run_dir="runs/x",
            silent=self.silent and sight is N,
            seconds=2.0,
        )


def quarry() -> Quarry:
    old, new = End(name="v1", commit="0"), End(name="v2", commit=str(LAST))
    return Quarry(repository="/linux", root="/linux/.git", old=old, new=new, cases=("probes/a/*",))


def hunt_of(
    directory: Path, judge: FakeJudge, aim: Aim | None = None, state: HuntState | None = None
) -> Hunt:
    start = state or HuntState(id="x", quarry=quarry(), aim=aim or Aim())
    return Hunt(start, directory, FakeChooser(), judge, lambda line: None, lambda commit: f"c{commit}")


def since(culprit: int, **odd: Sequence[Sight]) -> Callable[[int], Sequence[Sight]]:
    """Good before *culprit* and bad from it on, but for the *odd* ones, called c5 and so on."""
    return lambda number: odd.get(f"c{number}", [F if number >= culprit else P])


@pytest.mark.parametrize("culprit", range(1, LAST + 1))
def test_it_lands_on_the_culprit(tmp_path: Path, culprit: int) -> None:
    """Wherever it is; each failure is seen twice, each pass once."""
    judge = FakeJudge(since(culprit))
    hunt = hunt_of(tmp_path, judge)
    assert hunt.run().found == str(culprit)
    for number in set(judge.looks):
        assert judge.looks.count(number) == (2 if number >= culprit else 1)
    assert hunt.state.hunted == (CASE,)
    assert judge.asked[:3] == [(), (), ()]
    assert set(judge.asked[3:]) <= {(CASE,)}


@pytest.mark.parametrize("sight", [U, D, M, N, R])
def test_what_cannot_be_tested_is_skipped(tmp_path: Path, sight: Sight) -> None:
    """A commit that does not build, boot or apply, or whose host failed, is never taken for bad."""
    hunt = hunt_of(tmp_path, FakeJudge(since(11, c8=[sight])))
    assert hunt.run().found == "11"
    assert [step.sight for step in hunt.state.steps if step.commit == "8"] == [sight]


def test_one_lost_guest_gets_another_vm(tmp_path: Path) -> None:
    """A guest that is lost once is no reason to leave the commit out."""
    hunt = hunt_of(tmp_path, FakeJudge(since(8, c8=[N, F, F])))
    assert hunt.run().found == "8"


def test_flake_is_settled_by_the_majority(tmp_path: Path) -> None:
    """A good commit that fails once misleads nobody, and from then on a pass is seen twice."""
    judge = FakeJudge(since(11, c8=[F, P, P]))
    hunt = hunt_of(tmp_path, judge)
    assert hunt.run().found == "11"
    flaky = [step for step in hunt.state.steps if step.flaky]
    assert [step.commit for step in flaky] == ["8"]
    assert "1 of 3 VMs failed" in flaky[0].why
    later = [n for n in judge.looks[judge.looks.index(8) + 3 :] if n < 11]
    assert later
    assert all(later.count(number) == 2 for number in later)


@pytest.mark.parametrize(
    ("number", "sights", "looks"), [(0, [F, P, P], 3), (LAST, [P, F, F], 3), (LAST, [F, F], 2)]
)
def test_flaky_end_is_settled_by_the_majority(
    tmp_path: Path, number: int, sights: Sequence[Sight], looks: int
) -> None:
    """An end that flakes once is what most VMs say."""
    judge = FakeJudge(since(11, **{f"c{number}": sights}))
    hunt = hunt_of(tmp_path, judge)
    assert hunt.run().found == "11"
    assert hunt.state.hunted == (CASE,)
    assert judge.looks.count(number) == looks


def test_same_image_has_the_same_verdict(tmp_path: Path) -> None:
    """A commit that changes nothing in the image borrows its verdict, without a VM."""
    judge = FakeJudge(since(9), content=lambda number: "same" if number in (0, 8) else str(number))
    hunt = hunt_of(tmp_path, judge)
    assert hunt.run().found == "9"
    assert 8 not in judge.looks
    assert next(step for step in hunt.state.steps if step.commit == "8").same_as == "0"


def test_find_fix(tmp_path: Path) -> None:
    """Old is broken and new is fixed: the first that passes is found."""
    judge = FakeJudge(lambda number: [P if number >= 6 else F])
    assert hunt_of(tmp_path, judge, Aim(find_fix=True)).run().found == "6"


def test_when_did_it_appear(tmp_path: Path) -> None:
    """An old end without the thing makes its absence what is old; a failure on the way is not passing yet."""
    judge = FakeJudge(lambda number: [M if number < 5 else F if number < 7 else P])
    hunt = hunt_of(tmp_path, judge, Aim(find_fix=True))
    assert hunt.run().found == "7"
    assert hunt.state.aim.missing_fails


def test_words_of_the_user(tmp_path: Path) -> None:
    """An end that is not what it was said to be is told in the terms that were given."""
    judge = FakeJudge(lambda number: [P])
    with pytest.raises(UsageError, match=r"the slow end v2 .* is fast"):
        hunt_of(tmp_path, judge, Aim(term_old="fast", term_new="slow")).run()


def test_absence_in_between_is_skipped(tmp_path: Path) -> None:
    """Where both ends have the thing, a commit that has it not says nothing."""
    hunt = hunt_of(tmp_path, FakeJudge(since(11, c8=[M])))
    assert hunt.run().found == "11"
    assert not hunt.state.aim.missing_fails


def test_boot_is_bad_only_when_hunted(tmp_path: Path) -> None:
    """With --boot a kernel that dies is bad, on a second VM too."""
    judge = FakeJudge(lambda number: [D if number >= 6 else P])
    assert hunt_of(tmp_path, judge, Aim(boot=True)).run().found == "6"
    assert judge.looks.count(6) == 2
    with pytest.raises(KernelError, match="cannot be tested") as error:
        hunt_of(tmp_path, judge, Aim()).run()
    assert "--boot" in str(error.value)


@pytest.mark.parametrize("find_fix", [False, True])
def test_silent_hang_is_a_boot_that_fails(tmp_path: Path, find_fix: bool) -> None:
    """With --boot, a commit that comes up on no VM is bad when the end that boots does so meanwhile."""
    judge = FakeJudge(lambda number: [N if (number >= 6) is not find_fix else P], silent=True)
    hunt = hunt_of(tmp_path, judge, Aim(boot=True, find_fix=find_fix))
    assert hunt.run().found == "6"
    hung = [step for step in hunt.state.tested if step.sight is D]
    assert {step.vms for step in hung} == {2}
    assert all("no guest came up on 2 VMs" in step.why for step in hung)
    assert judge.looks.count(LAST if find_fix else 0) == len(hung) + 1
    assert load_state(tmp_path) == hunt.state


@pytest.mark.parametrize(("boot", "silent"), [(True, False), (False, True)])
def test_no_other_loss_is_a_boot_that_fails(tmp_path: Path, boot: bool, silent: bool) -> None:
    """Without --boot, or when no VM ran, nothing is said about a commit, however often it happens."""
    judge = FakeJudge(lambda number: [N if number == 8 else P if number < 11 else D if boot else F])
    judge.silent = silent
    hunt = hunt_of(tmp_path, judge, Aim(boot=boot))
    assert hunt.run().found == "11"
    assert next(step for step in hunt.state.steps if step.commit == "8").sight is N


def test_silence_of_the_host_is_no_verdict(tmp_path: Path) -> None:
    """When the end that boots does not come up any more either, the commit is skipped."""
    control = [P, N, P]
    others = {8: N, **dict.fromkeys(range(11, LAST + 1), D)}
    judge = FakeJudge(lambda number: [others.get(number, P)] if number else control, silent=True)
    hunt = hunt_of(tmp_path, judge, Aim(boot=True))
    assert hunt.run().found == "11"
    assert next(step for step in hunt.state.steps if step.commit == "8").sight is N


def test_end_that_should_boot_and_hangs(tmp_path: Path) -> None:
    """It cannot vouch for itself."""
    judge = FakeJudge(lambda number: [D if number else N], silent=True)
    with pytest.raises(InfraError, match=r"the good end v1 .* could not be tested"):
        hunt_of(tmp_path, judge, Aim(boot=True)).run()


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        (P, P, UsageError, "the bad end v2"),
        (F, F, UsageError, "the good end v1.*is bad"),
        (U, F, KernelError, "the good end v1.*cannot be tested"),
        (M, F, KernelError, "the good end v1.*cannot be tested"),
        (P, U, KernelError, "the bad end v2.*cannot be tested"),
        (P, N, InfraError, "the bad end v2.*no chance"),
        (P, R, UsageError, "the bad end v2.*cannot be tested"),
        (R, F, UsageError, "the good end v1.*cannot be tested"),
    ],
)
def test_wrong_ends_are_said_at_once(
    tmp_path: Path, old: Sight, new: Sight, error: type[Exception], said: str
) -> None:
    """Each by its own exit code, before any commit in between is tested."""
    judge = FakeJudge(lambda number: [new if number else old])
    hunt = hunt_of(tmp_path, judge)
    with pytest.raises(error, match=said):
        hunt.run()
    assert set(judge.looks) <= {0, LAST}
    assert not hunt.state.steps
    assert load_state(tmp_path).finished == (new is not N)


def test_cases_that_fail_at_both_ends(tmp_path: Path) -> None:
    """They were broken before; when nothing else tells the ends apart, that is said."""
    judge = FakeJudge(lambda number: [F])
    with pytest.raises(UsageError):
        hunt_of(tmp_path, judge).run()


def test_host_in_trouble_stops_the_hunt(tmp_path: Path) -> None:
    """When what passed before has no chance any more, the skips are forgotten, and it can go on."""
    trouble = True
    judge = FakeJudge(
        lambda number: (
            [P, N] if trouble and not number else [N] if trouble and number < LAST else since(5)(number)
        )
    )
    with pytest.raises(InfraError, match="--continue"):
        hunt_of(tmp_path, judge).run()
    state = load_state(tmp_path)
    assert not state.steps
    assert len(set(judge.looks)) == 2 + HOPELESS
    trouble = False
    assert hunt_of(tmp_path, judge, state=state).run().found == "5"


def test_commits_that_hang_do_not_stop_the_hunt(tmp_path: Path) -> None:
    """Many in a row without a chance are skipped, when an end shows that the host is sound."""
    judge = FakeJudge(lambda number: [N] if 4 <= number <= 11 else since(13)(number))
    assert hunt_of(tmp_path, judge).run().found == "13"
    assert judge.looks.count(0) == 3  # as an end, and for every three of the eight


class Killed(BaseException):
    """kill -9, as far as a test can."""


@pytest.mark.parametrize("after", range(9))
def test_killed_at_any_point_it_goes_on(tmp_path: Path, after: int) -> None:
    """No VM is asked twice for what it had said already."""

    class Mortal(FakeJudge):
        left = after

        def look(self, commit: str, hunted: Sequence[str]) -> Observation:
            if not self.left:
                raise Killed
            self.left -= 1
            return super().look(commit, hunted)

    whole = FakeJudge(since(11))
    hunt_of(tmp_path, whole).run()
    (tmp_path / FILE_NAME).unlink()
    judge = Mortal(since(11))
    with pytest.raises(Killed):
        hunt_of(tmp_path, judge).run()
    saved = (tmp_path / FILE_NAME).is_file()
    judge.left = 1000
    again = hunt_of(tmp_path, judge, state=load_state(tmp_path) if saved else None)
    assert again.run().found == "11"
    assert judge.looks == whole.looks


def test_last_pass_is_seen_once_more(tmp_path: Path) -> None:
    """The neighbour of the culprit passes on a second VM, or the result is flaky."""
    judge = FakeJudge(since(9, c8=[P, F]))
    hunt = hunt_of(tmp_path, judge)
    hunt.run()
    step = next(step for step in hunt.state.steps if step.commit == "8")
    assert hunt.confirm_pass(step).flaky
    assert next(step for step in load_state(tmp_path).steps if step.commit == "8").vms == 2


def test_state_is_the_same_from_disk(tmp_path: Path) -> None:
    """Everything that was asked and seen comes back."""
    hunt = hunt_of(tmp_path, FakeJudge(since(11, c8=[F, P, P])))
    hunt.run()
    hunt.state = dataclasses.replace(hunt.state, pending=hunt.state.steps[0])
    hunt.finish()
    assert load_state(tmp_path) == hunt.state


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 99}', '{"format": 1}'])
def test_unreadable_state(tmp_path: Path, text: str) -> None:
    """What cannot be continued is said in a sentence."""
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UsageError, match="cannot continue from"):
        load_state(tmp_path)


def test_state_is_json_for_people(tmp_path: Path) -> None:
    """It can be read without the harness."""
    hunt_of(tmp_path, FakeJudge(since(11))).run()
    plain = json.loads((tmp_path / FILE_NAME).read_text())
    assert plain["new_end"]["sight"] == "FAILS"
