# SPDX-License-Identifier: GPL-2.0-only
"""The state of a bisect as values, and on disk: what was asked for, and what each commit showed.

The file is written as a whole after every run, so a bisect that is killed continues where it was.
Everything else (git's own bisect state, the report) is made from it.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path

from harness.base import values
from harness.base.errors import InfraError, UsageError
from harness.session.wishes import KernelWish, OwnWish

FORMAT = 3
"""Raise it when a field changes meaning; a bisect of another format cannot be continued."""

FILE_NAME = "bisect.json"


class Status(enum.Enum):
    """What testing a commit showed."""

    PASSES = "passes"
    FAILS = "fails"
    MISSING = "not applicable"
    """The commit does not have the variant or the case, or every case says that it does not apply."""
    NO_BOOT = "does not boot"
    """The kernel crashed or warned before its guest was up."""
    NO_BUILD = "does not build"
    INVALID = "invalid"
    """The request makes no sense at this commit: it is not Linux, or does not know a CONFIG_ option."""
    UNTESTED = "not tested"
    """The host or the connection to the guest failed: nothing is known about the commit."""


class GitVerdict(enum.Enum):
    """What git bisect is told about a commit."""

    OLD = "old"
    NEW = "new"
    SKIP = "skip"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the Status of a commit becomes its GitVerdict."""

    find_fix: bool = False
    """Whether the old end fails and the new end passes."""
    boot: bool = False
    """Whether only the boot counts, not the cases."""
    missing_fails: bool = False
    """Whether a commit that lacks the variant or the case counts as failing; set when one end lacks it."""
    repeat: int = 3
    """How many VMs test a commit when two disagree."""
    term_old: str = ""
    """The user's term for an old commit; empty for the default."""
    term_new: str = ""

    @property
    def passing(self) -> GitVerdict:
        """The verdict of a commit that passes."""
        return GitVerdict.NEW if self.find_fix else GitVerdict.OLD

    @property
    def failing(self) -> GitVerdict:
        """The verdict of a commit that fails."""
        return GitVerdict.OLD if self.find_fix else GitVerdict.NEW

    def fails(self, status: Status) -> bool:
        """Whether *status* is the failure that is bisected."""
        return (
            status is Status.FAILS
            or (status is Status.NO_BOOT and self.boot)
            or (status is Status.MISSING and self.missing_fails)
        )

    def verdict(self, status: Status) -> GitVerdict:
        """The verdict of a commit with *status*."""
        if status is Status.PASSES:
            return self.passing
        return self.failing if self.fails(status) else GitVerdict.SKIP

    @property
    def terms(self) -> tuple[str, str]:
        """git's words for an old and a new commit."""
        old, new = ("broken", "fixed") if self.find_fix else ("good", "bad")
        return self.term_old or old, self.term_new or new

    def word(self, verdict: GitVerdict) -> str:
        """git's word for *verdict*."""
        old, new = self.terms
        return {GitVerdict.OLD: old, GitVerdict.NEW: new, GitVerdict.SKIP: "skip"}[verdict]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommitRun:
    """What one run of a commit in one VM showed, or why it could not be built or run."""

    status: Status
    why: str
    """One line."""
    failure: str = ""
    """The kind of failure: equal for two failures with the same cause; empty if unknown."""
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The kind of failure of each case that failed, and of the kernel outside any case, by address."""
    cases: Mapping[str, Status] = dataclasses.field(default_factory=dict)
    """The status of each case, by address; by `TOPOLOGY ADDRESS` in a run on several topologies."""
    bad: tuple[str, ...] = ()
    """The addresses of the pieces of work that failed, each a case or a program: a run with -x ends there."""
    outside: str = ""
    """A crash or warning of the kernel outside any case, if it counts as a failure."""
    flaky: str = ""
    """A case that failed and then passed in a fresh VM, if failures were confirmed."""
    run_dir: str = ""
    """The run's directory; empty when nothing was booted."""
    silent: bool = False
    """Whether the VM ran, but no guest came up and nothing said why: a kernel that hangs, or a slow host."""
    hint: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One commit and what it showed."""

    commit: str
    subject: str
    status: Status = Status.UNTESTED
    why: str = ""
    runs: tuple[CommitRun, ...] = ()
    image: str = ""
    """Digest of everything that was booted; empty when nothing was built."""
    same_as: str = ""
    """The commit with the same image that was tested instead of this one."""
    flaky: bool = False
    """Whether VMs disagreed."""
    build_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.build_seconds + sum(run.seconds for run in self.runs)

    @property
    def vms(self) -> int:
        """How many VMs tested it."""
        return sum(1 for run in self.runs if run.run_dir)

    @property
    def hint(self) -> str | None:
        """The hint of a run, if one has a hint."""
        return next((run.hint for run in self.runs if run.hint), None)

    @property
    def typical(self) -> CommitRun | None:
        """The first run with the status of the step."""
        return next((run for run in self.runs if run.status is self.status), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of the history: its name as given, and its commit."""

    name: str
    commit: str
    subject: str = ""

    @property
    def label(self) -> str:
        """The name with the abbreviated commit."""
        short = self.commit[:12]
        return short if self.name in (self.commit, short) else f"{self.name} ({short})"

    @property
    def public(self) -> str:
        """Its name for other people: a release's tag, else commit and subject, because refs are local."""
        return self.label if _RELEASE.fullmatch(self.name) else f'{self.commit[:12]} ("{self.subject}")'


_RELEASE = re.compile(r"v\d+(\.\d+)+(-rc\d+)?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How every step tests its commit: which kernel is built, which cases run on which machine."""

    kernel: KernelWish = dataclasses.field(default_factory=lambda: KernelWish(variant=""))
    """Without a tree, which is that of the commit."""
    machine: tuple[str, ...] = ()
    """Options of `run` for the machine."""
    suites: tuple[str, ...] = ()
    own: OwnWish = dataclasses.field(default_factory=OwnWish)
    cases: tuple[str, ...] = ()
    keyword: str = ""

    def words(self, cases: tuple[str, ...] = ()) -> list[str]:
        """Options of `run`, without the tree; *cases* replace those that were asked for."""
        words = [*self.kernel.options_without_tree(), *self.machine]
        words += [word for suite in self.suites for word in ("--suite", suite)]
        words += self.own.options()
        words += [word for case in cases or self.cases for word in ("--case", case)]
        return words + (["-k", self.keyword] if self.keyword and not cases else [])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BisectRequest:
    """What was asked for: which history, and how to test its commits."""

    repository: str
    """The directory that was given with --tree."""
    root: str
    """The git directory that all worktrees of the repository share."""
    old: End
    new: End
    paths: tuple[str, ...] = ()
    first_parent: bool = False
    skips: tuple[str, ...] = ()
    """Commits, or ranges of commits, not to be tested."""
    options: StepOptions = dataclasses.field(default_factory=StepOptions)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BisectState:
    """The progress of a bisect."""

    id: str
    request: BisectRequest
    rules: Rules
    cases: tuple[str, ...] = ()
    """The cases that pass at one end only; empty until both ends were tested."""
    new_end: Step | None = None
    old_end: Step | None = None
    steps: tuple[Step, ...] = ()
    spare: tuple[Step, ...] = ()
    """What was tested at the same time, and turned out not to be needed."""
    rounds: int = 0
    """How many times commits were chosen."""
    pending: Step | None = None
    """The commit that is being tested, with its runs so far."""
    finished: bool = False

    @property
    def tested(self) -> tuple[Step, ...]:
        """All commits that were tested: the ends, then the steps."""
        ends = (self.new_end, self.old_end)
        return (*(step for step in ends if step is not None), *self.steps)

    def verdicts(self) -> tuple[tuple[GitVerdict, str], ...]:
        """The verdicts of the steps, in order."""
        return tuple((self.rules.verdict(step.status), step.commit) for step in self.steps)

    def tested_image(self, image: str) -> Step | None:
        """An earlier step that tested *image* itself."""
        same = (step for step in self.tested if image and step.image == image and not step.same_as)
        return next((step for step in same if step.status is not Status.UNTESTED), None)

    @property
    def flaky(self) -> bool:
        """Whether VMs disagreed about any commit."""
        return any(step.flaky for step in self.tested)

    @property
    def passing_end(self) -> End:
        """The end that passes."""
        return self.request.new if self.rules.find_fix else self.request.old

    def save(self, directory: Path) -> None:
        """Write it to *directory*."""
        path = directory / FILE_NAME
        try:
            values.save(path, self, version=FORMAT, durable=True)
        except OSError as error:
            raise InfraError(f"cannot write {path}: {error.strerror}") from error


def load_state(directory: Path) -> BisectState:
    """Read the bisect in *directory*; UsageError when there is none that can be continued."""
    try:
        return values.load(directory / FILE_NAME, BisectState, version=FORMAT)
    except UsageError as error:
        hint = "drop it with --reset and start again"
        raise UsageError(f"cannot continue: {error.message}", hint=hint) from error
