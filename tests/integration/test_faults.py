# SPDX-License-Identifier: GPL-2.0-only
"""Programs that misbehave in every way, in real VMs: each costs itself, and nothing lies about it.

The programs are shell scripts in the place of upstream's binaries; everything else is the real thing.
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

import harness
from harness import paths, process
from harness.deadline import Deadline
from harness.errors import ExitCode
from harness.plan import Job, Plan
from harness.results import BOOTS, WHOLE_PROGRAM, Outcome, Result, Run, RunInfo, RunStore, exit_code, load

PASS = "echo TAP version 13; echo 1..1; echo ok 1 fine\n"

PROGRAMS: Mapping[str, str] = {
    "t01_pass": PASS,
    "t02_panics": "echo TAP version 13; echo 1..2; echo ok 1 before; sleep 1\n"
    "echo c > /proc/sysrq-trigger; sleep 60\n",
    "t03_pass_after_panic": PASS,
    "t04_warns": 'echo "WARNING: CPU: 0 PID: 1 at drivers/vfio/group.c:526 vfio_x+0x1/0x2" > /dev/kmsg\n'
    + PASS,
    # killall and pkill are not everywhere.
    "t05_loses_the_guest": "for p in /proc/[0-9]*; do case $(cat $p/comm) in\n"
    "dropbear|sshd) kill -9 ${p#/proc/};; esac; done; sleep 60\n",
    "t06_says_nothing": "exit 0\n",
    "t07_rubbish": "echo ok; echo 1; echo not TAP; exit 3\n",
    "t08_skips_everything": "echo TAP version 13; echo 1..1; echo 'ok 1 x # SKIP no hardware'\n",
    "t09_cut_short": "echo TAP version 13; echo 1..3; echo ok 1 x\n",
    "t10_fails": "echo TAP version 13; echo 1..2; echo ok 1 x; echo not ok 2 y; exit 1\n",
    "t11_pass_at_the_end": PASS,
}


def _selftests(directory: Path) -> Path:
    scripts = directory / "vfio" / "scripts"
    scripts.mkdir(parents=True)
    for name in ("setup.sh", "cleanup.sh"):
        (scripts / name).write_text("exit 0\n")
    for name, body in PROGRAMS.items():
        path = directory / "vfio" / name
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(0o755)
    return directory


def _job(job: Job, selftests: Path) -> Job:
    kernel = dataclasses.replace(
        job.kernel, selftests_dir=str(selftests), programs=tuple(f"vfio/{name}" for name in PROGRAMS)
    )
    # Without `noiommu` no shipped expectation excuses anything.
    features = tuple(f for f in job.features if not f.startswith("noiommu"))
    return dataclasses.replace(job, kernel=kernel, features=features)


def run_plan(job: Job, directory: Path, *extra: str) -> Run:
    """Run *job* through pytest alone, as one without our CLI would."""
    plan = Plan(run_id="faults", run_dir=str(directory), seed=1, cases=(), jobs=(job,))
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
    done = process.run(argv, deadline=Deadline.after(900))
    (directory / "pytest.log").write_text(done.stdout + done.stderr)
    return load(directory)


@pytest.fixture(scope="module")
def run(edu_job: Job, tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("faults")
    return run_plan(_job(edu_job, _selftests(base / "selftests")), base / "run")


def results(run: Run, program: str) -> dict[str, Result]:
    found = {r.address.case: r for r in run.cases if r.address.program == f"{program}@edu0"}
    assert found, f"{program} left no result"
    return found


def test_neighbours_of_trouble_pass(run: Run) -> None:
    """What comes before, between and after the disasters passes, each on a sound VM."""
    for name in ("t01_pass", "t03_pass_after_panic", "t11_pass_at_the_end"):
        assert results(run, name)["fine"].outcome is Outcome.PASS


def test_panic_is_a_crash_with_its_splat(run: Run) -> None:
    """A panic is CRASH of the program that ran, with the kernel's words; its finished point stays."""
    found = results(run, "t02_panics")
    assert found["before"].outcome is Outcome.PASS
    crash = found[WHOLE_PROGRAM]
    assert crash.outcome is Outcome.CRASH
    assert "sysrq triggered crash" in crash.splat.lower()


def test_warning_is_a_crash_even_when_all_points_pass(run: Run) -> None:
    """A WARN spoils a program that is otherwise happy."""
    assert Outcome.CRASH in {r.outcome for r in results(run, "t04_warns").values()}


def test_lost_guest_is_lost_not_failed(run: Run) -> None:
    """A guest that stops answering says nothing about the kernel."""
    found = results(run, "t05_loses_the_guest")
    assert {r.outcome for r in found.values()} == {Outcome.LOST}
    tries = [r.attempt for r in run.results if r.address.program == "t05_loses_the_guest@edu0"]
    assert tries == [1, 2]


@pytest.mark.parametrize("name", ["t06_says_nothing", "t07_rubbish", "t09_cut_short"])
def test_silence_and_rubbish_are_errors(run: Run, name: str) -> None:
    """Nothing, rubbish and a broken plan are never a pass."""
    assert results(run, name)[WHOLE_PROGRAM].outcome is Outcome.ERROR


def test_all_skip_is_no_success(run: Run) -> None:
    """A program that skips everything does not show its fewest passes."""
    found = results(run, "t08_skips_everything")
    assert found["x"].outcome is Outcome.SKIP
    assert found[WHOLE_PROGRAM].outcome is Outcome.ERROR


def test_failure_names_point_and_rerun(run: Run) -> None:
    """A failed point is FAIL by its own name, with the command that reruns it."""
    failed = results(run, "t10_fails")["y"]
    assert failed.outcome is Outcome.FAIL
    assert "--case kselftest:vfio/t10_fails@edu0" in failed.rerun


def test_verdict_and_evidence(run: Run) -> None:
    """The run is bad, and every VM left its console, command and log."""
    assert exit_code(run) is ExitCode.CASE_FAILED
    vms = [path for path in (Path(run.directory) / "vm").iterdir() if path.is_dir()]
    # One at the start; panic, warning, loss and the second chance after the loss each cost one.
    assert len(vms) == 5
    for vm in vms:
        assert (vm / "console.log").stat().st_size > 0
        assert "-machine" in (vm / "qemu.cmd").read_text()


@contextlib.contextmanager
def impostor_of(digest: str) -> Iterator[str]:
    """A kernel in the store whose facts claim another build than its bytes are."""
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
    """A kernel that is not the one built gets no case: NOT_RUN all of them, its boot LOST, exit code 3."""
    with impostor_of(edu_job.kernel.digest) as digest:
        kernel = dataclasses.replace(edu_job.kernel, digest=digest, programs=("vfio/vfio_pci_device_test",))
        run = run_plan(dataclasses.replace(edu_job, kernel=kernel), tmp_path / "run")
    assert {r.outcome for r in run.cases if r.address != BOOTS} == {Outcome.NOT_RUN}
    assert [r.outcome for r in run.cases if r.address == BOOTS] == [Outcome.LOST]
    assert all("is not the one built" in r.reason for r in run.cases)
    assert exit_code(run) is ExitCode.INFRA


def test_kernel_that_dies_while_booting(edu_job: Job, tmp_path: Path) -> None:
    """A panic before SSH is a CRASH of the kernel with its splat, and the cases are NOT_RUN because of it."""
    topology = tmp_path / "rootless.yaml"
    topology.write_text(
        "summary: an edu, and a kernel that cannot mount its root\n"
        "kernel_args: [initcall_blacklist=erofs_module_init]\ndevices:\n"
        '  - {id: edu0, driver: edu, addr: "0x5", pci: "1234:11e8"}\n'
    )
    kernel = dataclasses.replace(edu_job.kernel, programs=("vfio/vfio_pci_device_test",))
    run = run_plan(dataclasses.replace(edu_job, kernel=kernel, topology=str(topology)), tmp_path / "run")
    found = {str(case.address): case for case in run.cases}
    boots = found["kernel/console/boots"]
    assert boots.outcome is Outcome.CRASH
    assert "Kernel panic" in boots.splat
    assert found["kselftest:vfio/vfio_pci_device_test@edu0/(program)"].outcome is Outcome.NOT_RUN
    assert exit_code(run) is ExitCode.CASE_FAILED
