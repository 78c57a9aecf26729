# SPDX-License-Identifier: GPL-2.0-only
"""Values of a session for tests that open no tree, build nothing and boot nothing."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.kernel.arch import host_arch
from harness.machine.accel import Accel, Choice
from harness.machine.devices import Topology
from harness.machine.topology import load_topology, shipped_topologies
from harness.plan import Job
from harness.session.pipeline import Checked, PlannedRun, Request
from harness.session.planning import PlannedKernel
from harness.session.wishes import Conduct, JobWish, KernelWish, MachineWish


def wish(variant: str = "group-cdev", topology: str = "edu-igb", tree: str | None = None) -> JobWish:
    """The wish for one job of the probes."""
    kernel = KernelWish(tree=tree, variant=variant)
    return JobWish(kernel=kernel, machine=MachineWish(topology=topology, accel="tcg"), suites=("probes",))


def request(*wishes: JobWish, **more: Any) -> Request:
    """A Request of *wishes*, by default of one."""
    fields: dict[str, Any] = {"conduct": Conduct(), **more}
    return Request(wishes=wishes or (wish(),), **fields)


def _topology(name: str) -> Topology:
    """The topology *name*; edu's for a name that stands for any."""
    return load_topology(name if name in shipped_topologies() else "edu")


def checked(run_dir: Path, asked: Request | None = None) -> Checked:
    """A Checked whose run is in *run_dir*."""
    asked = asked or request()
    return Checked(
        request=asked,
        run_id=run_dir.name,
        run_dir=run_dir,
        started=datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
        qemus={host_arch().name: SimpleNamespace(version_text="10.0.2")},  # type: ignore[dict-item]
        accels={host_arch().name: Choice(accel=Accel.TCG, reason="TCG, by choice")},
        topologies={machine.topology: _topology(machine.topology) for machine in asked.machines},
    )


def planned(
    run_dir: Path,
    asked: Request | None = None,
    *,
    kernels: Mapping[KernelWish, PlannedKernel] | None = None,
    jobs: Mapping[JobWish, Job] | None = None,
    **more: Any,
) -> PlannedRun:
    """A PlannedRun whose kernels, but for those in *kernels*, have no plan and no problem."""
    found = checked(run_dir, asked)
    bare = {kernel: PlannedKernel(wish=kernel, tree=None) for kernel in found.request.kernels}
    return PlannedRun(checked=found, kernels={**bare, **(kernels or {})}, jobs=jobs or {}, **more)


def at(run: PlannedRun, run_dir: Path) -> PlannedRun:
    """*run* in another directory."""
    moved = dataclasses.replace(run.checked, run_id=run_dir.name, run_dir=run_dir)
    return dataclasses.replace(run, checked=moved)
