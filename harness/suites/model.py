# SPDX-License-Identifier: GPL-2.0-only
"""Suite: a source of programs and cases.  Work: one piece of a job that a suite has run.

Adding a suite takes one file: a module of this package with a subclass of Suite and a function `suites()`
that returns its instances.  harness.suites.registry finds the module; nothing else needs to change.

    class SmokeSuite(Suite):
        name = "smoke"
        summary = "programs of ours"

        def work(self, job):  # what there is in a job; work that cannot run there says why in `refusal`
            yield Work(
                job=job.name, suite=self.name, program="smoke", path=Path(__file__), timeout=30.0,
                refusal=refusal(("edu",), frozenset(job.features)), features=frozenset(job.features),
            )

        def how(self, work, bdfs):  # how it runs: by a shell script that prints KTAP, or by the agent
            return Script("/opt/smoke")

        def judge(self, work, report, status=None, cut=None):  # what its output means, case by case
            return judge_program(report, status, cut)

    def suites():
        return (SmokeSuite(),)

Work without a `case` is a program, whose cases are known when it has run; harness.suites.judging turns its
KTAP into CaseResults.  The other methods of Suite have defaults.  Upstream's suites are data:
`kselftest-*.yaml`, for a directory that harness/kernel/selftests.py builds, and `kunit-*.yaml`.
"""

from __future__ import annotations

import abc
import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from guest.needs import unmet
from harness.base.cause import Cause
from harness.ktap import KtapReport
from harness.machine.rootparts import GUEST_KERNEL_DIR
from harness.plan import Job
from harness.results import WHOLE_PROGRAM, Address, Outcome

COMPILES = "build/compiles"
"""The case of a suite whose programs do not compile: none of them can run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One piece of a job: a single case, or a program with all of its cases."""

    job: str
    suite: str
    program: str
    case: str | None = None
    """The case; None for a program, whose cases are known when it has run."""
    refusal: str | None = None
    """Why it does not apply in its job; None when it does."""
    path: Path
    """The file that declares it, resolved."""
    line: int | None = None
    timeout: float
    """Seconds on KVM; multiplied for TCG."""
    fresh: bool = False
    """Whether it needs a VM in which nothing has run."""
    destructive: bool = False
    """Whether it may damage the kernel: it runs last, in a VM of its own."""
    features: frozenset[str] = frozenset()
    """The features of the job, as they hold for the devices that the work uses."""
    payload: Any = dataclasses.field(default=None, compare=False)
    """Data of its suite, which nothing else reads."""

    @property
    def name(self) -> str:
        """`program/case` or `program`: its name in logs and in the kernel's log."""
        return f"{self.program}/{self.case}" if self.case is not None else self.program

    @property
    def address(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def title(self) -> str:
        return f"{self.case or self.program}[{self.job}]"

    @property
    def key(self) -> str:
        """What distinguishes it from all other work of its plan."""
        return f"{self.job} {self.address}"

    @property
    def turn(self) -> int:
        """0 for work that needs a fresh VM, 1 for most, 2 for work that damages the kernel."""
        return 2 if self.destructive else int(not self.fresh)

    @property
    def group(self) -> str:
        """Work of one group runs in one worker, in order."""
        return f"{self.job}/{('fresh', self.program, 'destructive')[self.turn]}"

    def address_of(self, case: str = WHOLE_PROGRAM) -> Address:
        """Return the address of one *case* of a program; its own for a single case, whatever *case* is."""
        return Address(suite=self.suite, program=self.program, case=self.case or case)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """The outcome of one case in one attempt, and why."""

    case: str
    outcome: Outcome
    reason: str = ""
    """One line."""
    cause: Cause | None = None
    """Why the case was lost or did not run, as data."""
    stopped_by: Outcome | None = None
    """With Cause.NOT_REACHED: the outcome that ended the program before this case."""
    diagnostics: tuple[str, ...] = ()
    """What the program printed about this case."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What a program must report besides having no bad result."""

    fewest: int = 1
    """The fewest cases that must PASS; 0 for a program that may skip altogether."""
    cases: tuple[str, ...] = ()
    """The manifest: every case that must appear, with whatever outcome."""


@dataclasses.dataclass(frozen=True, slots=True)
class AgentCase:
    """A case that the agent in the guest runs."""

    name: str
    """`module/name`, as the agent knows it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """A shell script that runs in the guest and prints KTAP.

    It exits with the status of the program, or with SETUP_FAILED when the guest could not be prepared for it;
    its last line then says why.  It must write guest.kmsg.BEGIN and END with the name of the work to
    /dev/kmsg: a complaint of the kernel between them is attributed to it, and without them it is unknown
    whether kernel messages reached the console.
    """

    text: str
    needs_selftests: bool = False
    """Whether the kernel's selftests must be at SELFTESTS in the guest first."""
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Path in the guest -> file or directory of the store that must be there first."""


SELFTESTS = f"{GUEST_KERNEL_DIR}/selftests"
"""Where the selftests of a kernel are in the guest; read-only on the `image` root."""

SETUP_FAILED = 99
"""The exit status of a Script that could not prepare the guest; no selftest uses it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredCase:
    """A case that is known without a kernel."""

    address: str
    promise: str
    """What must hold, in one sentence."""
    needs: tuple[str, ...]
    cites: str
    """The place in the kernel's source or documentation that the promise is from."""
    where: str = ""
    """Its file in this project, and line."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A reviewed statement that some points of some programs cannot pass under some features, and why."""

    outcome: Outcome
    reason: str
    when: tuple[str, ...] = ()
    programs: tuple[str, ...] = ("*",)
    points: tuple[str, ...] = ("*",)
    says: re.Pattern[str] = re.compile("")
    """What the output of the failure must match: another failure is not the one that was reviewed."""

    def covers(self, program: str, point: str, features: frozenset[str]) -> bool:
        """Whether this is about *point* of *program* under *features*, whatever it printed."""
        return (
            not unmet(self.when, features)
            and any(fnmatch.fnmatchcase(program, p) for p in self.programs)
            and any(fnmatch.fnmatchcase(point, p) for p in self.points)
        )


class Suite(abc.ABC):
    """A source of programs and cases: what there is, what each needs, how it runs and how it is judged."""

    name: str
    """The first part of the addresses of its cases."""
    rank: ClassVar[int] = 1
    """Suites of a lower rank come first in lists and in a job."""

    @property
    @abc.abstractmethod
    def summary(self) -> str:
        """What it consists of, in a few words."""

    @property
    def selftests(self) -> str | None:
        """The directory below the tree's tools/testing/selftests that its programs are compiled from."""
        return None

    @abc.abstractmethod
    def work(self, job: Job) -> Iterable[Work]:
        """Return everything that *job* has of this suite; nothing where the selftests did not compile."""

    @abc.abstractmethod
    def how(self, work: Work, bdfs: Mapping[str, str]) -> AgentCase | Script:
        """Return how *work* runs; *bdfs* has the PCI address in the guest of each device of the topology."""

    @abc.abstractmethod
    def judge(
        self, work: Work, report: KtapReport, status: int | None = None, cut: Outcome | None = None
    ) -> tuple[CaseResult, ...]:
        """Return the outcome of each case in the output of *work*.

        *status* is the exit status of a Script.  *cut* is the outcome of the point that was running when the
        output was cut off; None when it is complete.
        """

    def requirement(self, work: Work, job: Job, results: Sequence[CaseResult]) -> Requirement | None:
        """Return what *work* must report besides its *results*: by default at least one case of a program
        must pass."""
        return Requirement() if work.case is None else None

    def declared(self) -> tuple[DeclaredCase, ...]:
        """Return all cases there are, where they are known without a kernel; by default none."""
        return ()

    def has(self, address: Address) -> bool:
        """Whether the case at *address* may still exist."""
        return not self.declared() or any(str(address) == one.address for one in self.declared())

    def work_address(self, address: Address) -> str:
        """Return the address of the piece of work that the case at *address* is of."""
        return address.program_path

    def memory(self, programs: Sequence[str], features: frozenset[str]) -> int:
        """Return the MiB of guest memory that the suite needs with the selftests *programs*, or 0."""
        return 0


def refusal(needs: Sequence[str], features: frozenset[str]) -> str | None:
    """Return why work with these *needs* does not apply under *features*; None when it does."""
    missing = unmet(needs, features)
    return f"not applicable here: needs {', '.join(missing)}" if missing else None
