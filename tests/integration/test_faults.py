# SPDX-License-Identifier: GPL-2.0-only
"""Programs that misbehave in different ways, in real VMs: each affects only its own result.

The programs are shell scripts in place of upstream's binaries; everything else is real.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import TREE

import harness
from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.kernel.store import selftests_entry
from harness.kernel.trees import KernelTree
from harness.machine.dump import FILE
from harness.machine.topology import load_topology
from harness.plan import Job, Plan
from harness.results import BOOTS, WHOLE_PROGRAM, Outcome, Result, Run, RunInfo, reach_verdict
from harness.results.store import RunStore, load
from harness.session.dumps import find_dump, read_dump
from harness.session.planning import plan_wished_kernel
from harness.session.wishes import KernelWish

PASS = "echo TAP version 13; echo 1..1; echo ok 1 fine\n"

PROGRAMS: Mapping[str, str] = {
    "t01_pass": PASS,
    "t02_panics": "echo TAP version 13; echo 1..2; echo ok 1 before; sleep 1\n"
    "echo c > /proc/sysrq-trigger; sleep 60\n",
    "t03_pass_after_panic": PASS,
    "t04_warns": 'echo "WARNING: CPU: 0 PID: 1 at drivers/vfio/group.c:526 vfio_x+0x1/0x2" > /dev/kmsg\n'
    + PASS,
    # Not every guest has killall and pkill.
    "t05_loses_the_guest": "for p in /proc/[0-9]*; do case $(cat $p/comm) in\n"
    "dropbear|sshd) kill -9 ${p#/proc/};; esac; done; sleep 60\n",
    "t06_says_nothing": "exit 0\n",
    "t07_rubbish": "echo ok; echo 1; echo not TAP; exit 3\n",
    "t08_skips_everything": "echo TAP version 13; echo 1..1; echo 'ok 1 x # SKIP no hardware'\n",
    "t09_cut_short": "echo TAP version 13; echo 1..3; echo ok 1 x\n",
    "t10_fails": "echo TAP version 13; echo 1..2; echo ok 1 x; echo not ok 2 y; exit 1\n",
    "t11_pass_at_the_end": PASS,
}


@contextlib.contextmanager
def _selftests() -> Iterator[str]:
    """The digest of a store entry that holds PROGRAMS."""
    directory = selftests_entry(f"faults{os.getpid()}")
    scripts = directory / "vfio" / "scripts"
    scripts.mkdir(parents=True)
    for name in ("setup.sh", "cleanup.sh"):
        (scripts / name).write_text("exit 0\n")
    for name, body in PROGRAMS.items():
        path = directory / "vfio" / name
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(0o755)
    try:
        yield directory.name
    finally:
        shutil.rmtree(directory)


def _job(job: Job, selftests: str) -> Job:
    kernel = dataclasses.replace(
        job.kernel, selftests=selftests, programs=tuple(f"vfio/{name}" for name in PROGRAMS)
    )
    return dataclasses.replace(job, kernel=kernel)


def run_plan(job: Job, directory: Path, *extra: str) -> Run:
    """Run *job* with pytest alone, as a user without our command line would."""
    plan = Plan(
        run_id="faults",
        run_dir=str(directory),
        seed=1,
        cases=(),
        reruns={job.name: "vfio-harness run"},
        jobs=(job,),
    )
    directory.mkdir()
    plan.save(directory / "plan.json")
    info = RunInfo(id="faults", started=datetime.datetime.now(datetime.UTC), harness_version="test")
    RunStore.create(directory, info).close()
    ini = Path(harness.__file__).parent / "plugin" / "pytest.ini"
    argv = [sys.executable, "-m", "pytest", "-p", "harness.plugin", f"--plan={directory / 'plan.json'}"]
    argv += [
        f"--config-file={ini}",
        f"--rootdir={paths.guest_dir().parent}",
        "-p",
        "no:cacheprovider",
        *extra,
    ]
    done = process.run(argv, deadline=Deadline.after(3600))
    (directory / "pytest.log").write_text(done.stdout + done.stderr)
    return load(directory)


@pytest.fixture(scope="module")
def run(edu_job: Job, tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("faults")
    with _selftests() as digest:
        return run_plan(_job(edu_job, digest), base / "run")


def results(run: Run, program: str) -> dict[str, Result]:
    found = {r.address.case: r for r in run.cases if r.address.program == f"{program}@edu0"}
    assert found, f"{program} left no result"
    return found


def test_neighbours_of_trouble_pass(run: Run) -> None:
    """Programs before, between and after the misbehaving ones pass, each in an intact VM."""
    for name in ("t01_pass", "t03_pass_after_panic", "t11_pass_at_the_end"):
        assert results(run, name)["fine"].outcome is Outcome.PASS


def test_panic_is_a_crash_with_its_splat(run: Run) -> None:
    """A panic makes the running program CRASH, with the kernel's splat; its finished test point keeps its
    result."""
    found = results(run, "t02_panics")
    assert found["before"].outcome is Outcome.PASS
    crash = found[WHOLE_PROGRAM]
    assert crash.outcome is Outcome.CRASH
    assert "sysrq triggered crash" in crash.splat.lower()


def test_memory_of_a_panicked_guest_answers(run: Run, tree: KernelTree) -> None:
    """It has the stack that panicked, and drgn knows the types of VFIO; no device is bound."""
    dump = find_dump(run, results(run, "t02_panics")[WHOLE_PROGRAM])
    assert dump is not None
    assert dump.file, dump.reason
    planned = plan_wished_kernel(tree, KernelWish(tree=TREE, variant="group-cdev"), with_selftests=False)
    answered = read_dump(run, dump, planned.plan, Deadline.after(3600))
    assert not answered.reason
    for words in ("sysrq_handle_crash", "no vfio device is registered", "no iommufd context is open"):
        assert words in answered.answers, answered.answers


def test_guest_that_is_alive_leaves_no_dump(run: Run) -> None:
    """A WARN, a failure and a pass cost nothing."""
    for name in ("t04_warns", "t10_fails", "t11_pass_at_the_end"):
        for result in results(run, name).values():
            assert not Path(run.directory, result.vm_dir, FILE).exists()


def test_warning_is_a_crash_even_when_all_points_pass(run: Run) -> None:
    """A WARN makes a program CRASH even if all its test points pass."""
    assert Outcome.CRASH in {r.outcome for r in results(run, "t04_warns").values()}


def test_lost_guest_is_lost_not_failed(run: Run) -> None:
    """If a guest stops answering, the program is LOST, not FAIL."""
    found = results(run, "t05_loses_the_guest")
    assert {r.outcome for r in found.values()} == {Outcome.LOST}
    tries = [r.attempt for r in run.results if r.address.program == "t05_loses_the_guest@edu0"]
    assert tries == [1, 2]


@pytest.mark.parametrize("name", ["t06_says_nothing", "t07_rubbish", "t09_cut_short"])
def test_silence_and_rubbish_are_errors(run: Run, name: str) -> None:
    """No output, invalid output and a broken TAP plan are errors and never a pass."""
    assert results(run, name)[WHOLE_PROGRAM].outcome is Outcome.ERROR


def test_all_skip_is_no_success(run: Run) -> None:
    """A program that skips every test point does not reach its minimum of passes."""
    found = results(run, "t08_skips_everything")
    assert found["x"].outcome is Outcome.SKIP
    assert found[WHOLE_PROGRAM].outcome is Outcome.ERROR


def test_failure_names_point_and_rerun(run: Run) -> None:
    """A failed test point is FAIL under its own name, with the command that reruns it."""
    failed = results(run, "t10_fails")["y"]
    assert failed.outcome is Outcome.FAIL
    assert "--case kselftest:vfio/t10_fails@edu0" in failed.rerun


def test_verdict_and_evidence(run: Run) -> None:
    """The run is bad, and every VM left its console, command and log."""
    assert reach_verdict(run).exit_code is ExitCode.CASE_FAILED
    vms = [path for path in (Path(run.directory) / "vm").iterdir() if path.is_dir()]
    # One VM at the start, and one more after the panic, the warning, the loss and the retry after the loss.
    assert len(vms) == 5
    for vm in vms:
        assert (vm / "console.log").stat().st_size > 0
        assert "-machine" in (vm / "qemu.cmd").read_text()


@contextlib.contextmanager
def impostor_of(digest: str) -> Iterator[str]:
    """Yield a kernel in the store whose recorded build ID differs from that of its image."""
    kernels = paths.cache_dir() / "kernels"
    entry = kernels / f"impostor{os.getpid()}"
    shutil.copytree(kernels / digest, entry, copy_function=os.link)
    facts = json.loads((entry / "kernel.json").read_text())
    (entry / "kernel.json").unlink()
    (entry / "kernel.json").write_text(json.dumps({**facts, "build_id": "00" * 20}))
    try:
        yield entry.name
    finally:
        shutil.rmtree(entry)


def test_wrong_kernel_is_no_result(edu_job: Job, tmp_path: Path) -> None:
    """If the kernel is not the one built, no case runs: all are NOT_RUN, the boot is LOST, and the exit code
    is 3."""
    with impostor_of(edu_job.kernel.digest) as digest:
        kernel = dataclasses.replace(edu_job.kernel, digest=digest, programs=("vfio/vfio_pci_device_test",))
        run = run_plan(dataclasses.replace(edu_job, kernel=kernel), tmp_path / "run")
    assert {r.outcome for r in run.cases if r.address != BOOTS} == {Outcome.NOT_RUN}
    assert [r.outcome for r in run.cases if r.address == BOOTS] == [Outcome.LOST]
    assert all("is not the one built" in r.reason for r in run.cases)
    assert reach_verdict(run).exit_code is ExitCode.INFRA


def test_kernel_that_dies_while_booting(edu_job: Job, tmp_path: Path) -> None:
    """A panic before SSH is a CRASH of the boot with its splat, and the cases are NOT_RUN because of it."""
    topology = tmp_path / "rootless.yaml"
    topology.write_text(
        "summary: an edu, and a kernel that cannot mount its root\n"
        "kernel_args: [initcall_blacklist=erofs_module_init]\ndevices:\n"
        '  - {id: edu0, driver: edu, addr: "0x5", pci: "1234:11e8"}\n'
    )
    kernel = dataclasses.replace(edu_job.kernel, programs=("vfio/vfio_pci_device_test",))
    run = run_plan(
        dataclasses.replace(edu_job, kernel=kernel, topology=load_topology(topology)), tmp_path / "run"
    )
    found = {str(case.address): case for case in run.cases}
    boots = found["kernel/console/boots"]
    assert boots.outcome is Outcome.CRASH
    assert "Kernel panic" in boots.splat
    assert found["kselftest:vfio/vfio_pci_device_test@edu0/(program)"].outcome is Outcome.NOT_RUN
    assert reach_verdict(run).exit_code is ExitCode.CASE_FAILED
