# SPDX-License-Identifier: GPL-2.0-only
"""Which faults are planted, what becomes of them, and what is said of it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result
from kernel_fake_tree import git, make_fake_tree

from harness.base.deadline import Deadline
from harness.base.errors import ExitCode, InfraError, UsageError
from harness.bisect import at_once
from harness.bisect.state import CommitRun, Status, Step, StepOptions
from harness.bisect.step import BuiltCommit
from harness.cli import mutate_verb
from harness.kernel import gittree
from harness.mutate import mutation as under_test
from harness.mutate.choose import read_equivalents, sample
from harness.mutate.faults import Fault, Kind
from harness.mutate.mutation import Fate, Mutation, Mutator, load_mutation
from harness.mutate.report import render_json, summary
from harness.results import owned

SOURCE = "int f(void)\n{\n\treturn -EBUSY;\n}\n"


def fault(number: int, function: str = "f") -> Fault:
    start = SOURCE.index("EBUSY")
    return Fault(
        id=f"{number:08x}",
        file="a.c",
        function=function,
        line=3,
        kind=Kind.ERRNO,
        edits=((start, start + 5, f"E{number}"),),
    )


def shown(status: Status, why: str = "", **cases: Status) -> CommitRun:
    return CommitRun(status=status, why=why, cases=cases, run_dir="/runs/1")


PASSED = shown(Status.PASSES, a=Status.PASSES, b=Status.PASSES, c=Status.FAILS)


class Shower:
    """Builds and runs nothing: what to show for each commit is given."""

    shows: Mapping[str, list[CommitRun]] = {}
    images: Mapping[str, BuiltCommit | CommitRun] = {}
    asked: ClassVar[list[tuple[str, tuple[str, ...]]]] = []

    is_elsewhere = False
    width = 1

    def plant(self, commit: str, file: str, text: str) -> str:
        raise NotImplementedError

    def drop(self, commit: str) -> None:
        raise NotImplementedError

    def release(self, commit: str) -> None:
        pass

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        return self.images.get(commit, BuiltCommit(image=f"image of {commit}", seconds=1.0))

    def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
        self.asked.append((commit, cases))
        return self.shows[commit].pop(0)


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Shower]:
    monkeypatch.setattr(Shower, "asked", [])
    monkeypatch.setattr(Shower, "images", {})
    monkeypatch.setattr(gittree, "provide_mirror", lambda root: root)
    monkeypatch.setattr(under_test.Mutator, "_plant", lambda self, tester, fault: fault.id)
    monkeypatch.setattr(under_test.Mutator, "_building", lambda *_: contextlib.nullcontext())
    return Shower


ON_ONE = StepOptions()
SEVERAL = StepOptions(machine=("--topology", "edu", "--topology", "mixed"))


def mutator(tmp_path: Path, *faults: Fault, options: StepOptions = ON_ONE, **changes: object) -> Mutator:
    state = Mutation(id="m", root="/tree", commit="base", options=options, faults=faults, found=9)
    given = {"reached": {}, "tester": lambda _conduct: Shower(), **changes}
    return Mutator(state, tmp_path, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runs", "fate"),
    [
        ([shown(Status.FAILS, "b fails", a=Status.PASSES, b=Status.FAILS)], Fate.KILLED),
        ([shown(Status.NO_BOOT, "it crashed")], Fate.KILLED),
        ([shown(Status.PASSES, a=Status.PASSES, b=Status.MISSING)], Fate.KILLED),
        ([shown(Status.PASSES, a=Status.PASSES, b=Status.PASSES)], Fate.SURVIVED),
        ([shown(Status.PASSES, a=Status.PASSES)], Fate.UNTESTED),
        ([shown(Status.UNTESTED, "no VM"), shown(Status.FAILS, "b fails")], Fate.KILLED),
        ([shown(Status.UNTESTED, "no VM"), shown(Status.UNTESTED, "no VM")], Fate.UNTESTED),
    ],
)
def test_what_becomes_of_a_mutant(
    mutate: type[Shower], tmp_path: Path, runs: list[CommitRun], fate: Fate
) -> None:
    """Silence kills nothing and lets nothing survive; a case that no longer applies was noticed."""
    mutate.shows = {"base": [PASSED], fault(1).id: runs}
    mutated = mutator(tmp_path, fault(1)).run()
    assert [mutant.fate for mutant in mutated.mutants] == [fate]
    # Only what passes without a fault can notice one.
    assert mutate.asked[-1] == (fault(1).id, ("a", "b"))


@pytest.mark.parametrize(
    ("built", "fate"),
    [
        (BuiltCommit(image="image of base", seconds=0.0), Fate.SAME_CODE),
        (shown(Status.NO_BUILD, "no"), Fate.NO_BUILD),
        (shown(Status.UNTESTED, "disk full"), Fate.UNTESTED),
    ],
)
def test_mutant_without_a_kernel_of_its_own(
    mutate: type[Shower], tmp_path: Path, built: BuiltCommit | CommitRun, fate: Fate
) -> None:
    mutate.shows = {"base": [PASSED]}
    mutate.images = {fault(1).id: built}
    mutated = mutator(tmp_path, fault(1)).run()
    assert [mutant.fate for mutant in mutated.mutants] == [fate]
    assert mutated.score is None


def test_failure_that_does_not_repeat_kills_nothing(mutate: type[Shower], tmp_path: Path) -> None:
    """The case failed, and passed in a fresh VM; without a fault one failure is enough to leave it out."""
    flaky = dataclasses.replace(SURVIVED, flaky="a FLAKY: 3 != 4")
    mutate.shows = {"base": [PASSED], fault(1).id: [flaky]}
    conducts: list[bool] = []

    def tester(conduct: Sequence[str]) -> Shower:
        conducts.append("--confirm" in conduct)
        return Shower()

    (mutant,) = mutator(tmp_path, fault(1), tester=tester).run().mutants
    assert conducts == [False, True]
    assert (mutant.fate, mutant.why) == (Fate.SURVIVED, "2 cases passed, but a FLAKY: 3 != 4")


def test_only_cases_that_reach_the_function_are_run(mutate: type[Shower], tmp_path: Path) -> None:
    """All of them for a function that none reaches: it may run at boot."""
    only = shown(Status.PASSES, b=Status.PASSES)
    mutate.shows = {"base": [PASSED], fault(1).id: [only], fault(2).id: [shown(Status.NO_BOOT, "it hangs")]}
    reached = {case: frozenset({function}) for case, function in (("a", "a.c:h"), ("b", "a.c:f"))}
    mutated = mutator(tmp_path, fault(1), fault(2, "g"), reached=reached).run()
    assert mutate.asked[1:] == [(fault(1).id, ("b",)), (fault(2).id, ("a", "b"))]
    assert [mutant.fate for mutant in mutated.mutants] == [Fate.SURVIVED, Fate.KILLED]


def test_cases_that_are_not_in_the_map_are_run(mutate: type[Shower], tmp_path: Path) -> None:
    """The map may be older than they are."""
    base = shown(Status.PASSES, a=Status.PASSES, b=Status.PASSES, d=Status.PASSES)
    mutate.shows = {
        "base": [base],
        fault(1).id: [shown(Status.PASSES, b=Status.PASSES, d=Status.PASSES)],
        fault(2).id: [shown(Status.FAILS, "a fails", a=Status.FAILS)],
    }
    reached = {"a": frozenset({"a.c:h"}), "d": frozenset({"a.c:f"})}
    # What only an unknown case may reach may also run at boot, and any case may notice it.
    mutated = mutator(tmp_path, fault(1), fault(2, "g"), reached=reached).run()
    assert mutate.asked[1:] == [(fault(1).id, ("b", "d")), (fault(2).id, ("a", "b", "d"))]
    assert [mutant.fate for mutant in mutated.mutants] == [Fate.SURVIVED, Fate.KILLED]


def test_points_of_a_selftest_reach_what_their_program_reaches(mutate: type[Shower], tmp_path: Path) -> None:
    passes = {name: Status.PASSES for name in ("k/p@edu0/a", "k/q@edu0/v/b")}
    base = CommitRun(status=Status.PASSES, why="", cases=passes)
    mutate.shows = {"base": [base], fault(1).id: [base], fault(2).id: [base]}
    reached = {"k/p@edu0": frozenset({"a.c:h"}), "k/q@edu0": frozenset({"a.c:f"})}
    mutator(tmp_path, fault(1), fault(2, "g"), reached=reached).run()
    assert mutate.asked[1:] == [(fault(1).id, ("k/q@edu0/v/b",)), (fault(2).id, tuple(passes))]


@pytest.mark.parametrize(
    ("on_mixed", "fate"), [(Status.PASSES, Fate.SURVIVED), (Status.MISSING, Fate.KILLED)]
)
def test_cases_count_on_each_topology(
    mutate: type[Shower], tmp_path: Path, on_mixed: Status, fate: Fate, capsys: pytest.CaptureFixture[str]
) -> None:
    """A case that applies on one topology no longer was noticed; one that fails on any says nothing."""
    base = {"edu s/p/a": Status.PASSES, "mixed s/p/a": Status.PASSES, "mixed s/p/b": Status.PASSES}
    base |= {"edu s/p/b": Status.FAILS, "igb s/p/b": Status.UNTESTED}
    found = {"edu s/p/a": Status.PASSES, "mixed s/p/a": on_mixed}
    mutate.shows = {
        "base": [CommitRun(status=Status.FAILS, why="b", cases=base)],
        fault(1).id: [CommitRun(status=Status.PASSES, why="", cases=found)],
    }
    reached = {case: frozenset({"a.c:f"}) for case in ("s/p/a", "s/p/b")}
    mutated = mutator(tmp_path, fault(1), options=SEVERAL, reached=reached).run()
    assert [mutant.fate for mutant in mutated.mutants] == [fate]
    assert mutate.asked[-1] == (fault(1).id, ("s/p/a",))
    words = "2 cases pass in 0.0 s: edu 1, mixed 1, igb 0; 1 case left out, without a result: igb 1"
    assert words in capsys.readouterr().err


def test_program_that_fails_without_a_fault_tests_none(
    mutate: type[Shower], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would end each run, or kill each mutant; a program whose name only starts alike counts."""
    cases = {name: Status.PASSES for name in ("k/p/a", "k/p/b", "k/pq/a", "s/x/a", "s/x/b")}
    base = CommitRun(status=Status.FAILS, why="", cases=cases, bad=("k/p", "s/x/b"))
    found = {"k/pq/a": Status.PASSES, "s/x/a": Status.PASSES}
    mutate.shows = {"base": [base], fault(1).id: [dataclasses.replace(PASSED, cases=found)]}
    mutated = mutator(tmp_path, fault(1)).run()
    assert mutate.asked[-1] == (fault(1).id, ("k/pq/a", "s/x/a"))
    assert [mutant.fate for mutant in mutated.mutants] == [Fate.SURVIVED]
    assert "3 cases left out, because they or their program fail as well" in capsys.readouterr().err


def test_kernel_that_fails_outside_of_cases_judges_nothing(mutate: type[Shower], tmp_path: Path) -> None:
    """Each mutant would be killed by that."""
    mutate.shows = {"base": [dataclasses.replace(PASSED, outside="WARNING: a.c")]}
    with pytest.raises(UsageError, match=r"outside of cases.*WARNING: a\.c"):
        mutator(tmp_path, fault(1)).run()


def test_equivalents_do_not_count(tmp_path: Path) -> None:
    """One that survived becomes one; one that was killed is none, whatever the file says."""
    fates = {1: Fate.KILLED, 2: Fate.SURVIVED, 3: Fate.UNTESTED}
    mutants = tuple(under_test.Mutant(fault=fault(number), fate=fate) for number, fate in fates.items())
    state = dataclasses.replace(mutator(tmp_path, *map(fault, range(6))).mutation, mutants=mutants)
    found = state.with_equivalents({fault(number).id: "only a hint" for number in range(1, 5)})
    assert [mutant.fault.id for mutant in found.fates(Fate.EQUIVALENT)] == [fault(n).id for n in (2, 3, 4)]
    assert {mutant.why for mutant in found.fates(Fate.EQUIVALENT)} == {"only a hint"}
    assert (found.score, found.left) == (1.0, (fault(0), fault(5)))


def test_it_goes_on_where_it_was(mutate: type[Shower], tmp_path: Path) -> None:
    """What has an answer is not asked again; where the host failed it is."""
    lost = [shown(Status.UNTESTED), shown(Status.UNTESTED)]
    killed = shown(Status.FAILS, "a fails", a=Status.FAILS)
    mutate.shows = {"base": [PASSED], fault(1).id: [killed], fault(2).id: [*lost, killed]}
    first = mutator(tmp_path, fault(1), fault(2))
    first.run()
    again = Mutator(load_mutation(tmp_path), tmp_path, {}, lambda _conduct: Shower())
    assert again.mutation == first.mutation
    assert again.run().score == 1.0
    assert [commit for commit, _ in mutate.asked] == ["base", *(f.id for f in map(fault, (1, 2, 2, 2)))]


class Several(Shower):
    """As many at once as a fleet has workers; each waits for the others."""

    is_elsewhere = True
    width = 3
    together = threading.Barrier(3)

    def build(self, commit: str) -> BuiltCommit | CommitRun:
        if commit != "base":
            self.together.wait(10.0)
        return super().build(commit)


def test_on_a_fleet_each_worker_tests_one(mutate: type[Shower], tmp_path: Path) -> None:
    """Three of six at once, and each has its answer once."""
    faults = [fault(number) for number in range(6)]
    killed = shown(Status.FAILS, "a fails", a=Status.FAILS)
    mutate.shows = {"base": [PASSED], **{one.id: [killed] for one in faults}}
    mutated = mutator(tmp_path, *faults, tester=lambda _conduct: Several()).run()
    assert sorted(mutant.fault.id for mutant in mutated.mutants) == [one.id for one in faults]
    assert mutated.score == 1.0
    assert load_mutation(tmp_path) == mutated


def test_fleet_that_is_lost_costs_no_result(
    mutate: type[Shower], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Others have ended when the first one learns of it."""

    class Lost(Several):
        def run(self, commit: str, cases: tuple[str, ...]) -> CommitRun:
            if commit == fault(1).id:
                raise InfraError("the fleet is lost")
            return super().run(commit, cases)

    def wait_for_all(running: set[Future[object]], **_: object) -> object:
        done, _left = wait(running)
        return sorted(done, key=lambda one: one.exception() is None), set()

    monkeypatch.setattr(under_test, "wait", wait_for_all)
    faults = [fault(number) for number in range(3)]
    killed = shown(Status.FAILS, "a fails", a=Status.FAILS)
    mutate.shows = {"base": [PASSED], **{one.id: [killed, killed] for one in faults}}
    with pytest.raises(InfraError, match="the fleet is lost"):
        mutator(tmp_path, *faults, tester=lambda _conduct: Lost()).run()
    assert {mutant.fault.id for mutant in load_mutation(tmp_path).mutants} == {fault(0).id, fault(2).id}


def test_bisect_on_a_fleet_that_is_lost_costs_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for_all(running: Mapping[Future[object], str], **_: object) -> object:
        done, _left = wait(running)
        return SimpleNamespace(done=sorted(done, key=lambda one: one.exception() is None))

    def lost() -> Step:
        raise InfraError("the fleet is lost")

    monkeypatch.setattr(at_once, "wait", wait_for_all)
    steps = at_once.as_they_end(Several(), {"1": lost, "2": lambda: Step(commit="2", subject="")}, lambda: ())
    assert next(steps).commit == "2"
    with pytest.raises(InfraError, match="the fleet is lost"):
        next(steps)


def test_deadline_keeps_what_was_found(mutate: type[Shower], tmp_path: Path) -> None:
    mutate.shows = {"base": [PASSED]}
    mutated = mutator(tmp_path, fault(1), deadline=Deadline.after(0)).run()
    assert (mutated.mutants, mutated.left) == ((), (fault(1),))


@pytest.mark.parametrize(
    ("base", "error"),
    [(shown(Status.FAILS, "x", a=Status.FAILS), UsageError), (shown(Status.UNTESTED, "no VM"), InfraError)],
)
def test_nothing_passes_without_a_fault(
    mutate: type[Shower], tmp_path: Path, base: CommitRun, error: type[Exception]
) -> None:
    mutate.shows = {"base": [base]}
    with pytest.raises(error, match="no case passes on the kernel without a fault"):
        mutator(tmp_path, fault(1)).run()


def test_sample_is_spread_over_the_functions_and_repeatable() -> None:
    """Each function has its share: chance alone would leave some out."""
    faults = [fault(number, f"f{number % 4}") for number in range(100)]
    chosen = sample(faults, 20, 1)
    assert chosen == sample(faults, 20, 1) != sample(faults, 20, 2)
    shares = collections.Counter(one.function for one in chosen)
    assert all(4 <= count <= 6 for count in shares.values())
    everything = sample(faults, None, 1)
    assert sorted(everything, key=faults.index) == faults
    # What is done at a deadline is spread in the same way.
    assert everything[:20] == chosen


def test_one_file_of_equivalents_is_for_every_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some that it names may be elsewhere; all of them are a mistake."""
    path = tmp_path / "equivalents.yaml"
    path.write_text("'00000001': only a hint\n'00000003': gone\n")
    assert read_equivalents(path, [fault(1), fault(2)]) == {fault(1).id: "only a hint"}
    assert f"{path}: 1 of 2 faults are elsewhere" in capsys.readouterr().err
    assert read_equivalents(path, [fault(1), fault(3)]) == {fault(1).id: "only a hint", fault(3).id: "gone"}
    with pytest.raises(UsageError, match=r"equivalents\.yaml: it names none of the faults to be planted"):
        read_equivalents(path, [fault(2)])


def test_report_shows_survivors_with_their_patch() -> None:
    killed = under_test.Mutant(fault=fault(1), fate=Fate.KILLED, why="a fails")
    survived = under_test.Mutant(fault=fault(2), fate=Fate.SURVIVED, cases=("a", "b"))
    state = mutator(Path(), fault(1), fault(2), fault(3)).mutation
    state = dataclasses.replace(state, mutants=(killed, survived))
    text = summary(state, lambda _: SOURCE)
    for words in ("+\treturn -E2;", "2 cases passed: a, b", "score 50 %: 1 of 2 killed; 1 of 3 not tested"):
        assert words in text
    assert '"score": 0.5' in render_json(state)


def test_what_survived_is_planted_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With other topologies or new cases; the source is that of the first time."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    monkeypatch.setattr(gittree, "provide_mirror", lambda root: root)
    monkeypatch.setattr(mutate_verb, "has_commit", lambda *_: True)
    fates = {1: Fate.KILLED, 2: Fate.SURVIVED, 3: Fate.EQUIVALENT}
    mutants = tuple(under_test.Mutant(fault=fault(number), fate=fate) for number, fate in fates.items())
    state = mutator(tmp_path, *map(fault, fates)).mutation
    directory = tmp_path / "mutate-1"
    directory.mkdir()
    dataclasses.replace(state, mutants=mutants).save(directory)
    done = CliRunner().invoke(
        mutate_verb.command, ["--survivors", "mutate-1", "--plan"], standalone_mode=False
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [fault(2).id]


@pytest.mark.parametrize("words", [["--continue", "mutate-1"], ["--survivors", "mutate-1", "--plan"]])
def test_source_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    """As when the cache or the repository was removed since."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    directory = tmp_path / "mutate-1"
    directory.mkdir()
    state = dataclasses.replace(mutator(tmp_path, fault(1)).mutation, id="mutate-1", commit="c" * 40)
    state.save(directory)
    done = CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    said = "the source of mutate-1 is gone: neither /tree nor the cache has commit cccccccccccc"
    assert done.exception.message == said


@pytest.mark.parametrize(("limit", "planted"), [(1, 1), (2, 2), (9, 3)])
def test_limit_counts_no_equivalents(
    mutate: type[Shower], continued: Callable[..., Result], tmp_path: Path, limit: int, planted: int
) -> None:
    """They are in the report, and the others are as many as were asked for; a survivor becomes one later."""
    directory = tmp_path / "mutate-1"
    faults = tuple(fault(number, f"f{number}") for number in range(6))
    mutants = tuple(under_test.Mutant(fault=one, fate=Fate.SURVIVED) for one in faults)
    dataclasses.replace(load_mutation(directory), faults=faults, mutants=mutants).save(directory)
    path = tmp_path / "equivalents.yaml"
    path.write_text("".join(f"'{one.id}': only a hint\n" for one in faults[:3]))
    mutate.shows = {"base": [PASSED], **{one.id: [KILLED] for one in faults}}
    words = ("--survivors", "mutate-1", "--limit", str(limit), "--equivalents", str(path), "--json")
    done = CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)
    fates = collections.Counter(one["fate"] for one in json.loads(done.stdout)["mutants"])
    assert fates == {"equivalent": 3, "killed": planted}
    again = json.loads(continued("--equivalents", str(path), "--json").stdout)
    assert [one["fate"] for one in again["mutants"]] == ["survived"] * 3 + ["equivalent"] * 3


@pytest.fixture
def continued(mutate: type[Shower], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Return what continues a mutation of faults 1 and 2 with options."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setattr(gittree, "show", lambda *_: SOURCE)
    monkeypatch.setattr(mutate_verb, "_reached", lambda _: {})
    monkeypatch.setattr(mutate_verb, "has_commit", lambda *_: True)
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    tester = contextlib.nullcontext(lambda _conduct: mutate())
    monkeypatch.setattr(mutate_verb, "commit_testers", lambda *_, **__: tester)
    directory = tmp_path / "mutate-1"
    directory.mkdir()
    dataclasses.replace(mutator(tmp_path, fault(1), fault(2)).mutation, id="mutate-1").save(directory)

    def go_on(*words: str) -> Result:
        words = ("--continue", "mutate-1", *words)
        return CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)

    return go_on


KILLED = shown(Status.FAILS, "a fails", a=Status.FAILS)
SURVIVED = shown(Status.PASSES, a=Status.PASSES, b=Status.PASSES)
LOST = shown(Status.UNTESTED, "no VM")


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ([KILLED], [KILLED], ExitCode.GOOD),
        ([KILLED], [SURVIVED], ExitCode.CASE_FAILED),
        ([LOST, LOST], [SURVIVED], ExitCode.CASE_FAILED),
        ([LOST, LOST], [LOST, LOST], ExitCode.INFRA),
        ([KILLED], [LOST, LOST], ExitCode.INFRA),
        (shown(Status.NO_BUILD, "no"), shown(Status.NO_BUILD, "no"), ExitCode.KERNEL),
    ],
)
def test_exit_codes(
    mutate: type[Shower],
    continued: Callable[..., Result],
    first: list[CommitRun] | CommitRun,
    second: list[CommitRun] | CommitRun,
    code: ExitCode,
) -> None:
    shows = {fault(1).id: first, fault(2).id: second}
    mutate.shows = {"base": [PASSED], **{k: list(v) for k, v in shows.items() if isinstance(v, list)}}
    mutate.images = {k: v for k, v in shows.items() if isinstance(v, CommitRun)}
    assert continued().return_value == code


def test_one_process_at_a_time(
    mutate: type[Shower], continued: Callable[..., Result], tmp_path: Path
) -> None:
    """Each would test the same faults, and write its own state over that of the other."""
    with owned(tmp_path / "mutate-1"):
        done = continued()
    assert isinstance(done.exception, UsageError)
    assert "mutate-1 is still going on" in done.exception.message
    assert mutate.asked == []


@pytest.mark.parametrize("tested", [(), (1,)])
def test_deadline_does_not_make_a_mutation_good(
    mutate: type[Shower],
    continued: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tested: tuple[int, ...],
) -> None:
    """What is left was not noticed."""
    mutate.shows = {"base": [PASSED]}
    monkeypatch.setattr(mutate_verb, "parse_deadline", lambda _: 0.0)
    directory = tmp_path / "mutate-1"
    killed = tuple(under_test.Mutant(fault=fault(number), fate=Fate.KILLED) for number in tested)
    dataclasses.replace(load_mutation(directory), mutants=killed).save(directory)
    assert continued().return_value == ExitCode.INFRA


@pytest.mark.parametrize(("at", "old"), [("", "HEAD~1"), ("@HEAD", "@~1"), ("", "HEAD~1..HEAD")])
def test_diff_is_from_the_commit_of_that_worktree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at: str, old: str
) -> None:
    """The first worktree of the repository has another HEAD."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    first, second = make_fake_tree(tmp_path / "linux"), tmp_path / "second"
    git(first, "init", "--quiet", "--initial-branch=main")
    for text in ("", "int g(void)\n{\n\treturn -EIO;\n}\n", f"\n{SOURCE}"):
        with (first / "init" / "main.c").open("a", encoding="utf-8") as file:
            file.write(text)
        git(first, "add", "--all")
        git(first, "commit", "--quiet", "--allow-empty", "--message=change")
    git(first, "worktree", "add", "--quiet", "--detach", str(second))
    git(first, "reset", "--quiet", "--hard", "HEAD~1")
    words = ["--tree", f"{second}{at}", "--diff", old, "--plan"]
    done = CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["f():"]


@pytest.mark.parametrize(("dots", "planted"), [("..", ["g():", "f():"]), ("...", ["f():"])])
@pytest.mark.parametrize(("at", "new"), [("", "topic"), ("", ""), ("@topic", "")])
def test_diff_of_three_dots_is_from_the_merge_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dots: str, planted: list[str], at: str, new: str
) -> None:
    """As git diff has them: what the other branch changed since is not of the patch."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    tree = make_fake_tree(tmp_path / "linux")
    main_c = tree / "init" / "main.c"
    git(tree, "init", "--quiet", "--initial-branch=main")

    def commit(text: str) -> None:
        main_c.write_text(text)
        git(tree, "add", "--all")
        git(tree, "commit", "--quiet", "--message=change")

    g = "int g(void)\n{\n\treturn -EIO;\n}\n"
    commit(g)
    git(tree, "checkout", "--quiet", "-b", "topic")
    commit(f"{g}\n{SOURCE}")
    git(tree, "checkout", "--quiet", "main")
    commit("")
    if not at:
        git(tree, "checkout", "--quiet", "topic")
    words = ["--tree", f"{tree}{at}", "--diff", f"main{dots}{new}", "--plan"]
    done = CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)
    assert [line.split()[2] for line in done.stdout.splitlines()] == planted


def test_diff_names_the_source_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    tree = f"{tmp_path}@topic"
    words = ["--tree", tree, "--diff", "main..other", "--plan"]
    done = CliRunner().invoke(mutate_verb.command, words, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert done.exception.message == f"--diff main..other names the source, and --tree {tree} as well"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--diff", "a", "--tree", "debian:7.3"], "debian:7.3 is a package without a history"),
        (["--continue", "nope"], "there is no mutation 'nope'"),
        (["--diff", "a..b", "--tree", "debian:7.3"], "debian:7.3 is a package without a history"),
        (["x.c", "--tree", "debian:7.3", "--case", "probes/nodes/nope"], "probes/nodes/nope"),
        (["x.c", "--diff", "a"], "say where to plant faults"),
        (["x.c", "--survivors", "m"], "say where to plant faults"),
        (["--survivors", "nope"], "there is no mutation 'nope'"),
        (["--survivors", "nope", "--tree", "debian:7.3"], "leave --tree out"),
        (["--diff", "..a"], "say where to plant faults"),
        (["x.c", "--plan", "--json"], "--plan prints text only: leave --json out"),
        (["x.c", "--deadline", "soon"], "--deadline: 'soon' is not a time"),
    ],
)
def test_wrong_words(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything is fetched or built."""
    monkeypatch.setattr(mutate_verb, "_check", lambda *_: "none")
    done = CliRunner().invoke(mutate_verb.command, words)
    assert isinstance(done.exception, UsageError) or done.exit_code == ExitCode.USAGE
    assert said in (str(done.exception) + done.output)
