# SPDX-License-Identifier: GPL-2.0-only
"""pytest's hooks: the --plan option, what is collected, and who runs and who records.

Every process that runs items has a Lab (its VMs); the one process that talks to the user has a Recorder (the
results database).  Without xdist one process is both.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.plan import Plan, load_plan
from harness.plugin.collect import WorkFile
from harness.plugin.items import WorkItem, carry
from harness.plugin.lab import LAB, Lab
from harness.plugin.recorder import LATE_PROPERTY, Recorder, own_run
from harness.suites.catalogue import Work, check_cases, key_of, to_do, work_by_source

_RUN_DIR = "vfio_harness_run_dir"
_PLAN = pytest.StashKey[Plan]()
_WORK = pytest.StashKey[dict[Path, list[Work]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vfio-harness", "VFIO no-IOMMU harness")
    group.addoption("--plan", metavar="FILE", help="plan.json of a run (written by vfio-harness run)")


def _worker_name(config: pytest.Config) -> str | None:
    """`gw0` and so on in an xdist worker, None in the process that talks to the user."""
    workerinput: dict[str, str] | None = getattr(config, "workerinput", None)
    return workerinput["workerid"] if workerinput else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker where this run keeps its VMs."""
    plan = node.config.stash.get(_PLAN, None)
    if plan is not None:
        node.workerinput[_RUN_DIR] = plan.run_dir


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give groups of work to workers in a way that survives the death of one."""
    if config.stash.get(_PLAN, None) is None or config.getvalue("dist") != "loadgroup":
        return None
    from harness.plugin.scheduling import JobScheduling

    return JobScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--plan")
    if path is None:
        return
    try:
        plan = load_plan(Path(path))
        check_cases(plan)
        config.stash[_WORK] = work_by_source(plan)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from error
    worker = _worker_name(config)
    if worker is None:
        plan = own_run(plan)
    else:
        plan = dataclasses.replace(plan, run_dir=config.workerinput[_RUN_DIR])  # type: ignore[attr-defined]
    config.stash[_PLAN] = plan
    if not config.invocation_params.args or _only_options(config):
        config.args = [str(path) for path in config.stash[_WORK]]
    config.stash[LAB] = Lab(plan, worker or "main")
    if worker is None:
        config.pluginmanager.register(Recorder(plan), "vfio-harness-recorder")


def _only_options(config: pytest.Config) -> bool:
    """Whether the caller named no file: pytest then put testpaths or the working directory into args."""
    return config.args_source is not pytest.Config.ArgsSource.ARGS


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    work = parent.config.stash.get(_WORK, {}).get(file_path.resolve())
    return WorkFile.of(parent, file_path, work) if work else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put items in the order in which they are best begun."""
    plan = config.stash.get(_PLAN, None)
    if plan is None:
        return
    order = {key_of(work): place for place, work in enumerate(to_do(plan))}
    items.sort(key=lambda item: _place(item, order))


def _place(item: pytest.Item, order: dict[str, int]) -> int:
    return order[key_of(item.work)] if isinstance(item, WorkItem) else len(order)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell whoever runs the items which are left."""
    lab = session.config.stash.get(LAB, None)
    if lab is not None:
        lab.expect([item.work for item in session.items if isinstance(item, WorkItem)])


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last item of a job its VM is stopped; what the kernel said meanwhile belongs to the run."""
    if not isinstance(item, WorkItem):
        return
    if isinstance(nextitem, WorkItem) and nextitem.work.job == item.work.job:
        return
    late = item.config.stash[LAB].retire()
    if late:
        carry(item, LATE_PROPERTY, late)


def pytest_report_header(config: pytest.Config) -> list[str]:
    plan = config.stash.get(_PLAN, None)
    if plan is None:
        return []
    return [
        f"vfio-harness: job {job.name} ({job.accel}, {job.cpus} cpus, {job.memory_mib} MiB)"
        for job in plan.jobs
    ]


def pytest_unconfigure(config: pytest.Config) -> None:
    lab = config.stash.get(LAB, None)
    if lab is not None:
        lab.close()
