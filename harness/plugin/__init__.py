# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin: `pytest -p harness.plugin --plan FILE` runs the jobs of a plan.

Every process that runs items has a Worker (its VMs); the one process that talks to the user has a Recorder
(the results database).  Without xdist one process has both.

PYTEST_DONT_REWRITE: without this word pytest warns that the package is already imported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.lab.worker import Worker
from harness.plan import Plan, load_plan
from harness.plugin.items import LATE_PROPERTY, WORKER, WorkFile, WorkItem, carry
from harness.plugin.recorder import Recorder, own_run
from harness.plugin.terminal import replace
from harness.suites.catalogue import check_cases, to_do, work_by_source
from harness.suites.model import Work

_RUN_DIR = "vfio_harness_run_dir"
_PLAN = pytest.StashKey[Plan]()
_WORK = pytest.StashKey[dict[Path, list[Work]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vfio-harness", "VFIO no-IOMMU harness")
    group.addoption("--plan", metavar="FILE", help="plan.json of a run (written by vfio-harness run)")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Start the workers in our way."""
    if config.stash.get(_PLAN, None) is not None:
        from harness.plugin.workers import Workers

        config.pluginmanager.register(Workers.of(config, specs), "vfio-harness-workers")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker where this run keeps its VMs."""
    plan = node.config.stash.get(_PLAN, None)
    if plan is not None:
        node.workerinput[_RUN_DIR] = plan.run_dir


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute groups of work with a scheduler that survives the death of a worker."""
    if config.stash.get(_PLAN, None) is None or config.getvalue("dist") != "loadgroup":
        return None
    from harness.plugin.scheduling import JobScheduling

    return JobScheduling(config, log)


# After pytest's own terminal, which it replaces, and before xdist's, which asks for it.
@pytest.hookimpl(trylast=True)
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
    # Only an xdist worker has one.
    told: dict[str, str] | None = getattr(config, "workerinput", None)
    if told is None:
        plan = own_run(plan)
        config.pluginmanager.register(Recorder(plan), "vfio-harness-recorder")
        replace(config, Path(plan.run_dir))
    else:
        from harness.plugin.workers import heed_one_interrupt

        heed_one_interrupt()
        plan = dataclasses.replace(plan, run_dir=told[_RUN_DIR])
    config.stash[_PLAN] = plan
    if not config.invocation_params.args or config.args_source is not pytest.Config.ArgsSource.ARGS:
        # If the caller names no file, pytest puts testpaths or the working directory into args.
        config.args = [str(path) for path in config.stash[_WORK]]
    config.stash[WORKER] = Worker(plan, told["workerid"] if told else "main")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    work = parent.config.stash.get(_WORK, {}).get(file_path.resolve())
    return WorkFile.of(parent, file_path, work) if work else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort items into the order in which they should begin."""
    plan = config.stash.get(_PLAN, None)
    if plan is not None:
        order = {work.key: number for number, work in enumerate(to_do(plan))}
        items.sort(key=lambda i: order[i.work.key] if isinstance(i, WorkItem) else len(order))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop the VM after the last item of a job; what its kernel still printed belongs to the run."""
    if not isinstance(item, WorkItem):
        return
    if isinstance(nextitem, WorkItem) and nextitem.work.job == item.work.job:
        return
    late = item.config.stash[WORKER].retire(item.work.job)
    if late:
        carry(item, LATE_PROPERTY, late)


def pytest_unconfigure(config: pytest.Config) -> None:
    worker = config.stash.get(WORKER, None)
    if worker is not None:
        worker.close()
