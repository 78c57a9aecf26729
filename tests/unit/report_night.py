# SPDX-License-Identifier: GPL-2.0-only
"""Twelve nights of two lines, with one of every kind of change in the last, for reports to show."""

from __future__ import annotations

import dataclasses
import datetime
import random
from pathlib import Path

from harness.base.errors import ExitCode
from harness.results import (
    Address,
    Background,
    Inputs,
    JobRecord,
    Outcome,
    Result,
    Run,
    RunInfo,
    RunState,
    reach_verdict,
)
from harness.results.historyfile import consult
from harness.results.store import RunStore, load

GOLDEN = Path(__file__).parents[1] / "golden"
STARTED = datetime.datetime(2030, 3, 1, 21, 0, tzinfo=datetime.UTC)
NIGHTS = 12
LINES = {"debian:7.3": ("7.3.4", "7.3.5"), "debian:7.2": ("7.2.12", "7.2.12")}
VARIANTS = ("group", "group-cdev", "cdev", "compat")
TOPOLOGIES = ("edu-igb", "hotplug", "iommu-intel", "mixed", "nvme")
PROGRAMS = ("get_pa", "cdev", "hotplug", "dma", "interrupts", "lifecycle")
CASES = (
    "gap_ends_the_length",
    "open_needs_rawio",
    "unplug_while_open",
    "pages_are_pinned",
    "mask_keeps_the_line_low",
    "second_open_is_refused",
    "reset_restores_the_config_space",
    "translated_device_keeps_its_domain",
)
NOT_EXPRESSED = "this tree has no IOMMUFD_NOIOMMU: no-IOMMU mode for the cdev came with 7.3"


def night(root: Path) -> tuple[Run, Background]:
    """Make the runs below *root*; the last, and what it is seen against."""
    for number in range(NIGHTS):
        _make(root, number)
    run = load(root / f"night{NIGHTS - 1:02}")
    run = dataclasses.replace(run, finished=run.info.started + datetime.timedelta(minutes=34))
    background = consult(root, lambda history: history.background(run))
    note = "known issue probes/cdev/pasid_zero_is_no_pasid (known-issues.yaml:15) expired on 2030-03-01"
    # A path that is the same wherever the runs were made.
    run = dataclasses.replace(run, directory=f"runs/{run.info.id}")
    return run, dataclasses.replace(background, notes=(note,))


def _make(root: Path, number: int) -> None:
    last = number == NIGHTS - 1
    info = RunInfo(
        id=f"night{number:02}",
        started=STARTED + datetime.timedelta(days=number),
        harness_version="0.1.0",
        command=("vfio-harness", "matrix", "nightly"),
        inputs=Inputs(
            qemu="10.0.2",
            accel="tcg",
            timeout_factor=4.0,
            topologies=TOPOLOGIES,
            root="image",
            suites=("probes",),
            seed=1,
        ),
    )
    with RunStore.create(root / info.id, info) as store:
        for line, releases in LINES.items():
            for variant in VARIANTS:
                for topology in TOPOLOGIES:
                    _add_job(store, number, line, releases[last], variant, topology)
        store.finish(reach_verdict(dataclasses.replace(store.read(), state=RunState.FINISHED)).verdict)


def _add_job(store: RunStore, number: int, line: str, release: str, variant: str, topology: str) -> None:
    random.seed(f"{number} {line} {variant} {topology}")
    absent = line == "debian:7.2" and "cdev" in variant
    job = JobRecord(
        name=f"{variant}-{topology}" if absent else f"{release}-{variant}-{topology}",
        kernel="" if absent else f"{release} 1f0c9a2b77de",
        variant=variant,
        topology=topology,
        line=line,
        tree=f"Debian linux-source-{line[-3:]} {release}-1",
        problem=NOT_EXPRESSED if absent else "",
        problem_code=ExitCode.KERNEL if absent else ExitCode.GOOD,
        applicable=not absent,
    )
    store.add_job(job)
    if absent:
        return
    for program in PROGRAMS:
        for case in CASES:
            for result in _results(number, job, program, case):
                store.add(result)


def _results(number: int, job: JobRecord, program: str, case: str) -> list[Result]:
    result = Result(
        address=Address(suite="probes", program=program, case=case),
        job=job.name,
        outcome=Outcome.PASS,
        duration=random.uniform(0.2, 0.35),
        vm_dir=f"vm/{job.name}-gw0-1",
        rerun=f"vfio-harness run --tree {job.line} --variant {job.variant} --topology {job.topology} "
        f"--case probes/{program}/{case}",
    )
    expected = {
        "translated_device_keeps_its_domain": (
            Outcome.PASS if "iommu" in job.topology or job.topology == "mixed" else Outcome.SKIP,
            "no device behind an IOMMU",
        ),
        "second_open_is_refused": (
            Outcome.XFAIL,
            "GET_DEVICE_FD asks for CAP_SYS_RAWIO only while nobody has the device open",
        ),
    }
    if case in expected:
        outcome, reason = expected[case]
        said = reason if outcome is not Outcome.PASS else ""
        result = dataclasses.replace(result, outcome=outcome, reason=said)
    special = (job.line, job.variant, job.topology, program, case)
    return _special(number, special, result)


def _special(number: int, where: tuple[str, ...], result: Result) -> list[Result]:
    """What is out of the ordinary in a case of one of the nights."""
    last = number == NIGHTS - 1
    match where:
        case ("debian:7.3", "cdev", "hotplug", "hotplug", "unplug_while_open") if last:
            return [_crash(result)]
        case ("debian:7.3", "group-cdev" | "cdev", "edu-igb", "get_pa", "gap_ends_the_length") if last:
            reason = "errno is 22 (EINVAL), want 2 (ENOENT)"
            log = "# map 0x10000 at 0x1000\n# GET_PA 0x12000: EINVAL\nnot ok 1 gap_ends_the_length\n"
            return [dataclasses.replace(result, outcome=Outcome.FAIL, reason=reason, log=log)]
        case ("debian:7.2", "group", "nvme", "dma", "pages_are_pinned") if number >= NIGHTS - 4:
            return [
                dataclasses.replace(result, outcome=Outcome.TIMEOUT, reason="did not end before its timeout")
            ]
        case ("debian:7.2", "compat", "mixed", "interrupts", "mask_keeps_the_line_low") if last:
            return []
        case ("debian:7.3", "compat", "nvme", "lifecycle", "reset_restores_the_config_space") if last:
            reason = "nvme: no reset method"
            return [dataclasses.replace(result, outcome=Outcome.SKIP, reason=reason)]
        case ("debian:7.3", "group", "mixed", "interrupts", "mask_keeps_the_line_low") if number in (3, 11):
            reason = "the line is high, want low"
            failed = dataclasses.replace(result, outcome=Outcome.FAIL, reason=reason, log="# INTx 1\n")
            return [failed, dataclasses.replace(result, attempt=2, confirms=True)]
        case ("debian:7.3", "group", "iommu-intel", "dma", "pages_are_pinned") if last:
            return [dataclasses.replace(result, duration=1.9)]
        case ("debian:7.3", "compat", "hotplug", "cdev", "open_needs_rawio") if number == NIGHTS - 2:
            return [dataclasses.replace(result, outcome=Outcome.FAIL, reason="opened without CAP_SYS_RAWIO")]
        case ("debian:7.3", "compat", "iommu-intel", "lifecycle", _) if last:
            return [
                dataclasses.replace(result, outcome=Outcome.LOST, reason="the guest was killed", attempt=2)
            ]
    return [result]


def _crash(result: Result) -> Result:
    lines = (GOLDEN / "console-kasan.txt").read_text(encoding="utf-8").splitlines()
    splat = "\n".join(lines[1:33])
    reason = "BUG: KASAN: slab-use-after-free in vfio_group_fops_release+0x4c/0x120"
    log = "# opened noiommu-vfio0\n# asked the host to unplug 0000:01:00.0\n"
    return dataclasses.replace(result, outcome=Outcome.CRASH, reason=reason, splat=splat, log=log)
