# SPDX-License-Identifier: GPL-2.0-only
"""Plan and Job: what one run will do, as values that travel in a file.

A Job is self-contained (kernel by path and digest, everything else by value), so that an xdist worker, and
later another machine, can run it from the plan file alone.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError

PLAN_FILE = "plan.json"
"""What a run's directory calls it."""

PLAN_FORMAT = 3
"""Grows when a field changes meaning; a plan of another format is refused."""


class Isolation(enum.StrEnum):
    """How often work gets a VM that nothing has run in."""

    VM = "vm"
    """When a job begins, and after trouble."""
    PROGRAM = "program"
    """For every module of probes and every selftest program."""
    CASE = "case"
    """For every case; a selftest program stays one piece."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelRef:
    """The Kernel of a job by its digest in the store, where it may not be yet while the job is planned."""

    digest: str
    version: str
    """What the tree's Makefile says, `7.3.4`."""
    variant: str
    tree: str
    """What a person calls the source tree."""
    selftests_dir: str | None
    programs: tuple[str, ...]
    """The selftests that were built from its tree, as `collection/name`."""
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    """Program -> SHA-256 of its C file, which tells whether the recorded manifest is about this program."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One Kernel on one Topology with its Suites: the unit that is scheduled."""

    name: str
    """`version-variant-topology`, unique in its plan."""
    kernel: KernelRef
    topology: str
    """Name of a shipped topology or absolute path of a user's file."""
    root: str
    snapshots: bool
    """Whether a VM may be restored from a snapshot in place of booting."""
    accel: str
    qemu: str | None
    """Path of the QEMU to use; None: the one in PATH."""
    cpus: int
    memory_mib: int
    suites: tuple[str, ...]
    features: tuple[str, ...]
    """Everything that decides which cases apply; see guest/needs.py."""
    rerun: str
    """The command that reruns this job; `--case ADDRESS` is appended to it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The jobs of one run, where it leaves its results."""

    run_id: str
    run_dir: str
    seed: int
    cases: tuple[str, ...]
    """Address patterns; only matching cases run.  Empty: all."""
    isolation: Isolation = Isolation.VM
    confirm: bool = False
    """Whether what fails is tried once more in a VM in which nothing has run."""
    until: float | None = None
    """Seconds since the epoch after which no case begins any more."""
    done: tuple[str, ...] = ()
    """`JOB ADDRESS` of work that an earlier part of the run has finished."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Group of work -> how long it took lately; the longest goes first."""
    jobs: tuple[Job, ...]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"format": PLAN_FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n")

    @property
    def too_late(self) -> str:
        """Why no case begins any more; empty while one may."""
        return too_late(self.until)

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)


def too_late(until: float | None) -> str:
    """Why nothing begins after *until*, in seconds of the epoch; empty while that has not passed."""
    if until is None or time.time() <= until:
        return ""
    return f"the deadline, {datetime.datetime.fromtimestamp(until):%H:%M}, had passed"


def load_plan(path: Path) -> Plan:
    """Read a plan file; UsageError when it is none or of another format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="--plan takes the plan.json of a run") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a plan: {error}") from error
    if not isinstance(data, dict) or data.pop("format", None) != PLAN_FORMAT:
        raise UsageError(f"{path}: not a plan of format {PLAN_FORMAT}", hint="vfio-harness run makes one")
    try:
        jobs = tuple(_job(job) for job in data.pop("jobs"))
        isolation = Isolation(data["isolation"])
        lists = {name: tuple(data[name]) for name in ("cases", "done")}
        return Plan(**{**data, **lists, "isolation": isolation, "jobs": jobs})
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: not a plan: {error}") from error


def _job(data: dict[str, Any]) -> Job:
    kernel = data["kernel"]
    lists = {name: tuple(data[name]) for name in ("suites", "features")}
    ref = KernelRef(**{**kernel, "programs": tuple(kernel["programs"])})
    return Job(**{**data, **lists, "kernel": ref})
