# SPDX-License-Identifier: GPL-2.0-only
"""Plant one fault after the other, build each kernel, and run the cases that should notice the fault.

A mutant is a commit in a repository of the cache: the user's tree is never written to.  On a fleet each
worker tests one; on this host the next one is built while one is tested.  The state is saved after each, so
that an interrupted mutation can continue.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from harness.base import itself, process, values
from harness.base.deadline import Deadline
from harness.base.errors import InfraError, UsageError
from harness.base.output import tell
from harness.base.words import count_of, duration
from harness.bisect.state import CommitRun, Status, StepOptions
from harness.bisect.step import RUNS_NAME, BuiltCommit, Tester
from harness.kernel import gittree
from harness.mutate.faults import Fault

FORMAT = 1
"""Raise it when a field changes meaning; a mutation of another format cannot be continued."""

STATE_NAME = "mutation.json"

MOST_AT_ONCE = 256
"""How many faults may be tested at a time, each by a thread that waits for a worker."""

_LOOK_SECONDS = 10.0

_CONDUCT = ("--no-snapshots",)
"""Options of `run`: a kernel that is booted once or twice needs no snapshot."""


class Fate(enum.Enum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    SAME_CODE = "same code"
    """The kernel image is the same as without the fault, byte by byte."""
    NO_BUILD = "does not build"
    UNTESTED = "not tested"
    """The host failed, not the kernel."""
    EQUIVALENT = "equivalent"
    """The file of `--equivalents` names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A fault that was planted, and what became of it."""

    fault: Fault
    fate: Fate
    why: str = ""
    """Which case killed it and how, which one failed only once, or why it has no answer."""
    cases: tuple[str, ...] = ()
    """The cases that passed on a mutant that survived."""
    seconds: float = 0.0
    run_dir: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """The faults of a mutation, and what became of each so far."""

    id: str
    root: str
    """The repository whose mirror the mutants are written to."""
    commit: str
    """The source without a fault, in the mirror."""
    options: StepOptions
    faults: tuple[Fault, ...]
    """The faults to plant, in this order."""
    found: int
    """How many faults they were chosen from."""
    base: CommitRun | None = None
    """The status of each case without a fault."""
    base_image: str = ""
    mutants: tuple[Mutant, ...] = ()

    @property
    def several(self) -> bool:
        """Whether the cases are run on more than one topology."""
        return self.options.machine.count("--topology") > 1

    @property
    def passing(self) -> dict[str, str]:
        """The cases that pass without a fault, as CommitRun.cases has them, with their addresses.

        Without those that fail on another topology, or whose program fails: they would end each run.
        """
        if self.base is None:
            return {}
        cases, bad = self.base.cases, tuple(f"{work}/" for work in self.base.bad)
        address = {case: case.partition(" ")[2] if self.several else case for case in cases}
        failing = {address[case] for case, status in cases.items() if status is Status.FAILS}
        return {
            case: address[case]
            for case, status in cases.items()
            if status is Status.PASSES
            and address[case] not in failing
            and not f"{address[case]}/".startswith(bad)
        }

    @property
    def left_out(self) -> str:
        """Which cases test no fault, though they do not fail without one; empty if all do."""
        cases = self.base.cases if self.base is not None else {}
        passed = {case for case, status in cases.items() if status is Status.PASSES}
        found = {
            "without a result": [case for case, status in cases.items() if status is Status.UNTESTED],
            "because they or their program fail as well": sorted(passed - set(self.passing)),
        }
        return "; ".join(
            f"{count_of(len(names), 'case')} left out, {why}{_by_topology(names) if self.several else ''}"
            for why, names in found.items()
            if names
        )

    @property
    def left(self) -> tuple[Fault, ...]:
        """The faults without an answer; one that could not be tested is tried again."""
        known = {mutant.fault.id for mutant in self.mutants if mutant.fate is not Fate.UNTESTED}
        return tuple(fault for fault in self.faults if fault.id not in known)

    def with_mutant(self, mutant: Mutant) -> Mutation:
        """Return the mutation with *mutant*, which replaces an earlier try of the same fault."""
        others = tuple(one for one in self.mutants if one.fault.id != mutant.fault.id)
        return dataclasses.replace(self, mutants=(*others, mutant))

    def with_equivalents(self, reasons: Mapping[str, str]) -> Mutation:
        """Return the mutation with the faults of *reasons* that nothing noticed as equivalent.

        *reasons* is fault id -> why that fault changes nothing that a test can see.
        """
        found, settled = self, (Fate.KILLED, Fate.SAME_CODE, Fate.NO_BUILD)
        noticed = {mutant.fault.id for mutant in self.mutants if mutant.fate in settled}
        for fault in self.faults:
            if fault.id in reasons and fault.id not in noticed:
                found = found.with_mutant(Mutant(fault=fault, fate=Fate.EQUIVALENT, why=reasons[fault.id]))
        return found

    def fates(self, fate: Fate) -> list[Mutant]:
        """Return the mutants with *fate*."""
        return [mutant for mutant in self.mutants if mutant.fate is fate]

    @property
    def score(self) -> float | None:
        """The share of the mutants with an answer that were killed; None without any."""
        killed, survived = len(self.fates(Fate.KILLED)), len(self.fates(Fate.SURVIVED))
        return killed / (killed + survived) if killed + survived else None

    def save(self, directory: Path) -> None:
        """Write the state to *directory*; InfraError when that fails."""
        try:
            values.save(directory / STATE_NAME, self, version=FORMAT, durable=True)
        except OSError as error:
            raise InfraError(f"cannot write {directory / STATE_NAME}: {error.strerror}") from error


def _by_topology(cases: Iterable[str], known: Iterable[str] = ()) -> str:
    """Return how many of *cases* each topology has; those of *known* are named even without any."""
    counts = collections.Counter({case.partition(" ")[0]: 0 for case in known})
    counts.update(case.partition(" ")[0] for case in cases)
    return f": {', '.join(f'{topology} {count}' for topology, count in counts.items())}"


def load_mutation(directory: Path) -> Mutation:
    """Read the mutation in *directory*; UsageError when none there can be continued."""
    return values.load(directory / STATE_NAME, Mutation, version=FORMAT, hint="start a new one")


@dataclasses.dataclass(slots=True)
class Mutator:
    """Carries out a mutation in *directory*, until its end or the deadline."""

    mutation: Mutation
    directory: Path
    reached: Mapping[str, frozenset[str]]
    """Case -> FILE:FUNCTION of what it reaches: the coverage map, which may be older than some cases."""
    tester: Callable[[Sequence[str]], Tester]
    """Makes what tests the mutants, with options of `run`."""
    deadline: Deadline | None = None

    def run(self) -> Mutation:
        """Plant and test; raises UsageError or InfraError when no case passes without a fault."""
        if not self.mutation.left:
            return self.mutation
        self._test_base(self.tester(_CONDUCT))
        # A case that fails at times would kill every mutant.
        tester = self.tester((*_CONDUCT, "-x", "--confirm"))
        for mutant in (self._at_once if tester.is_elsewhere else self._here)(tester, self.mutation.left):
            self._update(self.mutation.with_mutant(mutant))
            tell(f"{len(self.mutation.mutants)}/{len(self.mutation.faults)} {describe(mutant)}")
        return self.mutation

    @property
    def _is_late(self) -> bool:
        return self.deadline is not None and self.deadline.expired

    def _here(self, tester: Tester, faults: Sequence[Fault]) -> Iterator[Mutant]:
        """Test one after the other; the next one is built meanwhile."""
        commits = {}
        for number, fault in enumerate(faults):
            if self._is_late:
                return
            for one in faults[number : number + 2]:
                if one.id not in commits:
                    commits[one.id] = self._plant(tester, one)
            following = commits[faults[number + 1].id] if number + 1 < len(faults) else None
            yield self._test(tester, fault, commits[fault.id], functools.partial(self._building, following))

    def _at_once(self, tester: Tester, faults: Sequence[Fault]) -> Iterator[Mutant]:
        """Test as many at a time as *tester* can, whose number may change."""
        waiting, running = collections.deque(faults), set[Future[Mutant]]()
        pool = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="mutant")
        try:
            while running or (waiting and not self._is_late):
                while waiting and len(running) < min(tester.width, MOST_AT_ONCE) and not self._is_late:
                    fault = waiting.popleft()
                    running.add(pool.submit(self._test, tester, fault, self._plant(tester, fault)))
                done, running = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                # One that failed ends the others.
                for future in sorted(done, key=lambda one: one.exception() is not None):
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _update(self, mutation: Mutation) -> None:
        self.mutation = mutation
        mutation.save(self.directory)

    def _test_base(self, tester: Tester) -> None:
        if self.mutation.base is not None:
            return
        commit = self.mutation.commit
        tell("building and testing the kernel without a fault")
        built = tester.build(commit)
        base = tester.run(commit, ()) if isinstance(built, BuiltCommit) else built
        image = built.image if isinstance(built, BuiltCommit) else ""
        if base.outside:
            why = "the kernel without a fault fails outside of cases, as each faulty one would"
            raise UsageError(f"{why}: {base.outside}", hint=f"the log: {base.run_dir}")
        mutation = dataclasses.replace(self.mutation, base=base, base_image=image)
        if not (passing := mutation.passing):
            kind = InfraError if base.status is Status.UNTESTED else UsageError
            raise kind(f"no case passes on the kernel without a fault: {base.why}", hint=base.hint or None)
        words = f"{count_of(len(passing), 'case')} pass in {duration(base.seconds)}"
        if mutation.several:
            words += _by_topology(passing, base.cases)
        tell(f"{words}; {mutation.left_out}" if mutation.left_out else words)
        self._update(mutation)

    def _plant(self, tester: Tester, fault: Fault) -> str:
        source = gittree.show(self._mirror, self.mutation.commit, fault.file)
        return tester.plant(self.mutation.commit, fault.file, fault.apply(source))

    @property
    def _mirror(self) -> Path:
        return gittree.provide_mirror(Path(self.mutation.root))

    def _test(
        self,
        tester: Tester,
        fault: Fault,
        commit: str,
        meanwhile: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Mutant:
        try:
            return self._tested(tester, fault, commit, meanwhile)
        finally:
            tester.release(commit)

    def _tested(
        self,
        tester: Tester,
        fault: Fault,
        commit: str,
        meanwhile: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Mutant:
        began = time.monotonic()
        built, cases = tester.build(commit), self._cases_of(fault)

        def is_(fate: Fate, why: str = "", run: CommitRun | None = None) -> Mutant:
            return Mutant(
                fault=fault,
                fate=fate,
                why=why,
                cases=tuple(cases) if fate is Fate.SURVIVED else (),
                seconds=time.monotonic() - began,
                run_dir=run.run_dir if run is not None else "",
            )

        if isinstance(built, CommitRun):
            return is_(Fate.UNTESTED if built.status is Status.UNTESTED else Fate.NO_BUILD, built.why)
        if built.image == self.mutation.base_image:
            return is_(Fate.SAME_CODE)
        addresses = tuple(dict.fromkeys(cases.values()))
        with meanwhile():
            run = tester.run(commit, addresses)
            if run.status is Status.UNTESTED:
                run = tester.run(commit, addresses)
        if run.status in (Status.FAILS, Status.NO_BOOT):
            return is_(Fate.KILLED, run.why, run)
        silent = next((case for case in cases if run.cases.get(case) is Status.MISSING), None)
        if silent is not None:
            return is_(Fate.KILLED, f"{silent} does not apply any more", run)
        if run.status is Status.PASSES and all(run.cases.get(case) is Status.PASSES for case in cases):
            passed = f"{count_of(len(cases), 'case')} passed, but {run.flaky}" if run.flaky else ""
            return is_(Fate.SURVIVED, passed, run)
        return is_(Fate.UNTESTED, run.why, run)

    def _cases_of(self, fault: Fault) -> dict[str, str]:
        """Return those of Mutation.passing that reach the function or are not in the map.

        All of them if none is known to reach it: it may be new, or run at boot, which belongs to no case.
        """
        function, passing = f"{fault.file}:{fault.function}", self.mutation.passing
        # A selftest is in the map as a whole program.
        reached = {
            case: self.reached.get(address, self.reached.get("/".join(address.split("/")[:2])))
            for case, address in passing.items()
        }
        if not any(function in functions for functions in reached.values() if functions is not None):
            return passing
        return {
            case: passing[case]
            for case, functions in reached.items()
            if functions is None or function in functions
        }

    @contextlib.contextmanager
    def _building(self, commit: str | None) -> Iterator[None]:
        """Build *commit* meanwhile, in a child process; a failure shows when its turn comes."""
        if commit is None:
            yield
            return
        kernel = dataclasses.replace(self.mutation.options.kernel, selftests=None)
        words = ["build", "--tree", f"{self._mirror}@{commit}", *kernel.options_without_tree()]
        with (
            (self.directory / RUNS_NAME / "build.log").open("ab") as log,
            process.spawn(
                itself.argv(words), env=itself.env(), stdout=log, stderr=log, whole_group=True
            ) as child,
        ):
            yield
            child.wait(Deadline.after(itself.LONGEST_RUN_SECONDS))


def describe(mutant: Mutant) -> str:
    """Return what became of *mutant*, in one line."""
    why = f": {mutant.why}" if mutant.why else ""
    return f"{mutant.fate.value:<9} {mutant.fault.id} {mutant.fault.label}{why} ({duration(mutant.seconds)})"
