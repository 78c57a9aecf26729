# SPDX-License-Identifier: GPL-2.0-only
"""Plan and Job: what one run will do, as values that are stored in a file.

A Job holds everything by value or by its digest in the content-addressed store, and no path of the host that
planned it, so that any process, user or host with that store can run it from the plan file alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base import values
from harness.base.errors import UsageError
from harness.machine.devices import Topology
from harness.machine.qemu import QemuNeed
from harness.machine.rootparts import RootRef
from harness.machine.topology import parse_topology

PLAN_FILE = "plan.json"
"""Its file name in a run's directory."""

PLAN_FORMAT = 4
"""Raise it when a field changes meaning; a plan of another format is refused."""


class Isolation(enum.StrEnum):
    """How often work gets a VM that nothing has run in."""

    VM = "vm"
    """When a job begins, and after trouble."""
    PROGRAM = "program"
    """A new VM for every module of probes and every selftest program."""
    CASE = "case"
    """A new VM for every case; a selftest program stays one piece."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelRef:
    """The Kernel of a job by its digest in the store, where it may be missing while the job is planned."""

    digest: str
    version: str
    """What the tree's Makefile says, `7.3.4`."""
    variant: str
    tree: str
    """What a person calls the source tree."""
    selftests: str | None
    """Digest in the store of the selftests that were built from its tree; None: there are none."""
    programs: tuple[str, ...]
    """Those selftests, as `collection/name`."""
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Program -> SHA-256 of its C file, which tells whether the recorded manifest is about this program."""
    selftest_features: tuple[str, ...] = ()
    """What the tree's libvfio can do; see harness.kernel.selftests.libvfio_features()."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnProgram:
    """One of the user's own programs, ready to run on the kernel of a job."""

    name: str
    digest: str
    """Of its files in the store; empty if it does not compile against this kernel's headers."""
    main: str
    """The file that is run."""
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    seconds: float
    """Its time limit on KVM."""
    problem: str = ""
    """Why it does not compile."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What the user brought along for a job."""

    programs: tuple[OwnProgram, ...] = ()
    """The programs of the suite `own`."""
    probes: str = ""
    """Digest in the store of more probe modules; empty: there are none."""

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of all of it."""
        return tuple(filter(None, (*(program.digest for program in self.programs), self.probes)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One Kernel on one Topology with its Suites: the unit that is scheduled."""

    name: str
    """`version-variant-topology`, unique in its plan."""
    arch: str
    """Name of a harness.kernel.arch row."""
    kernel: KernelRef
    topology: Topology
    """In the file: name, text and digest."""
    root: RootRef
    snapshots: bool
    """Whether a VM may be restored from a snapshot in place of booting."""
    accel: str
    """`auto`, `kvm` or `tcg`; the host that runs the job chooses between them."""
    qemu: QemuNeed
    cpus: int
    memory_mib: int
    suites: tuple[str, ...]
    features: tuple[str, ...]
    """Everything that decides which cases apply; see guest/needs.py."""
    own: Own = Own()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs of one run and how they are carried out."""

    run_id: str
    run_dir: str = ""
    """The directory to write to on this host.  Not in the file: load_plan() takes the directory of that."""
    seed: int
    cases: tuple[str, ...]
    """Address patterns; only matching cases run.  Empty: all."""
    isolation: Isolation = Isolation.VM
    confirm: bool = False
    """Whether a failed case is repeated once in a VM in which nothing has run."""
    until: float | None = None
    """Seconds since the epoch after which no case begins any more."""
    only: tuple[str, ...] = ()
    """`JOB ADDRESS` of the only work that runs.  Empty: all that *cases* selects."""
    done: tuple[str, ...] = ()
    """`JOB ADDRESS` of work that an earlier part of the run has finished."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Group of work -> how long it took lately; the longest goes first."""
    known_issues: tuple[str, ...] = ()
    """The texts of all lists of known issues, the user's own first; see harness.suites.known."""
    reruns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Job -> the command that reruns it on the host that planned it, for people; nothing decides by it."""
    jobs: tuple[Job, ...]

    def save(self, path: Path) -> None:
        """Write the plan to *path*.  Raises OSError."""
        plain = values.unstructure(self)
        del plain["run_dir"]
        values.save(path, plain, version=PLAN_FORMAT)

    @property
    def too_late(self) -> str:
        """Why no case may begin any more; empty while one may."""
        return too_late(self.until)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)


def too_late(until: float | None) -> str:
    """Why nothing may begin after *until*, in seconds since the epoch; empty before that time."""
    if until is None or time.time() <= until:
        return ""
    return f"the deadline, {datetime.datetime.fromtimestamp(until):%H:%M}, had passed"


def load_plan(path: Path) -> Plan:
    """Read a plan file; UsageError names the file and the key of what is wrong in it."""
    plan = values.load(path, Plan, version=PLAN_FORMAT, hint="vfio-harness run writes the plan.json of a run")
    return dataclasses.replace(plan, run_dir=str(path.absolute().parent))


def _topology_to_plain(topology: Topology) -> dict[str, str]:
    return {"name": topology.name, "text": topology.text, "digest": topology.digest}


def _topology_from_plain(plain: Any) -> Topology:
    if not isinstance(plain, dict) or set(plain) != {"name", "text", "digest"}:
        raise ValueError("expected a topology's name, text and digest")
    try:
        topology = parse_topology(str(plain["name"]), str(plain["text"]), f"{plain['name']}.yaml")
    except UsageError as error:
        raise ValueError(str(error)) from error
    if topology.digest != plain["digest"]:
        raise ValueError(f"the text of topology {topology.name!r} does not have its digest")
    return topology


values.register(Topology, _topology_to_plain, _topology_from_plain)
