# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness run` as its users call it: real kernels, real VMs, and the verdict they see."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.kernel.provide import Kernel
from harness.results import Outcome, Run
from harness.results.store import load
from harness.suites.known import shipped_issues

TREE = "debian:7.3"

CLI = (sys.executable, "-m", "harness")
TOLERATED = {Outcome.PASS, Outcome.SKIP, Outcome.XFAIL}


def harness(*words: str, seconds: float = 3600) -> tuple[process.Completed, Run | None]:
    """Run the command line; return the completed process, and the Run that it left, if any."""
    done = process.run([*CLI, *words], deadline=Deadline.after(seconds))
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    return done, load(Path(where[1])) if where else None


def told(done: process.Completed, run: Run | None) -> str:
    """Return what a failed test should show."""
    bad = [f"{c.outcome.value} {c.address}: {c.reason}" for c in run.cases if c.outcome.is_bad] if run else []
    return "\n".join([*bad, done.stdout[-3000:], done.stderr[-3000:]])


def probes_of(run: Run) -> dict[str, Outcome]:
    """Return the outcome of each probe, except those whose known issue is a race that a run may win."""
    racy = {issue.case for issue in shipped_issues() if issue.racy}
    outcomes = {str(c.address): c.outcome for c in run.cases if c.address.suite == "probes"}
    return {address: outcome for address, outcome in outcomes.items() if address not in racy}


@pytest.fixture(scope="module")
def one_shot(group_cdev: Kernel) -> tuple[process.Completed, Run]:
    """The main job: the default variant on the default topology, with everything that runs there."""
    done, run = harness("run", "--tree", TREE)
    assert run is not None, done.stderr
    return done, run


def test_one_shot_is_green(one_shot: tuple[process.Completed, Run]) -> None:
    """On a good kernel the main job is good, and enough tests passed."""
    done, run = one_shot
    counts = Counter(case.outcome for case in run.cases)
    assert done.status == ExitCode.GOOD, told(done, run)
    assert set(counts) <= TOLERATED
    assert counts[Outcome.PASS] >= 150
    assert "GOOD" in done.stdout


def test_accelerator_is_announced_first(one_shot: tuple[process.Completed, Run]) -> None:
    """The first line names the accelerator, and the reason if it is not KVM."""
    first = one_shot[0].stderr.splitlines()[0]
    assert first.startswith("accelerator: ")
    assert "KVM" in first or "TCG" in first


def test_libvfio_on_a_noiommu_device_is_xfail_with_its_reason(
    one_shot: tuple[process.Completed, Run],
) -> None:
    """Upstream's selftests cannot find a noiommu node: they are XFAIL, with the reason."""
    upstream = [c for c in one_shot[1].cases if c.address.suite == "kselftest:vfio"]
    failed = [c for c in upstream if c.outcome is Outcome.XFAIL]
    assert len(failed) >= 50
    assert all("libvfio" in case.reason for case in failed)


def test_run_directory_holds_everything(one_shot: tuple[process.Completed, Run]) -> None:
    """The run directory has database, JUnit with one testcase per Case, plan, config, console and QEMU
    command."""
    run = one_shot[1]
    directory = Path(run.directory)
    root = ET.parse(directory / "junit.xml").getroot()
    assert len(root.findall(".//testcase")) == len(run.cases)
    for name in ("results.sqlite", "run.json", "plan.json", "group-cdev.config"):
        assert (directory / name).is_file()
    assert "CONFIG_VFIO_NOIOMMU=y" in (directory / "group-cdev.config").read_text()
    (vm, *_) = sorted(directory.glob("vm/*"))
    restored = vm / "console-boot.log"
    console = restored if restored.is_file() else vm / "console.log"
    assert "Linux version 7.3" in console.read_text(errors="replace")
    assert "-device edu" in (vm / "qemu.cmd").read_text()


def test_report_tells_the_same_again(one_shot: tuple[process.Completed, Run]) -> None:
    """`report` shows an earlier run in any format and exits with its exit code."""
    run = one_shot[1]
    again = process.run([*CLI, "report", run.directory, "--format", "json"])
    assert again.status == ExitCode.GOOD
    assert len(json.loads(again.stdout)["cases"]) == len(run.cases)


def test_roots_agree(one_shot: tuple[process.Completed, Run]) -> None:
    """The guest's root does not change any outcome."""
    done, virtme = harness("run", "--tree", TREE, "--root", "virtme", "--suite", "probes")
    assert virtme is not None, done.stderr
    assert probes_of(one_shot[1]) == probes_of(virtme)


@pytest.mark.parametrize("variant", ["cdev", "group", "off"])
def test_variants_keep_their_promises(variant: str) -> None:
    """The probes pass on each variant; cases that need a missing feature are not applicable and never
    fail."""
    done, run = harness("run", "--tree", TREE, "--variant", variant, "--topology", "edu", "--suite", "probes")
    assert done.status == ExitCode.GOOD, told(done, run)


@pytest.mark.parametrize(
    ("variant", "topology", "modules"),
    [
        ("modules", "sriov", ("modules", "sriov")),
        ("group-cdev", "pciehp", ("hotplug", "power", "reset")),
        ("group-cdev", "mixed", ("container", "exclusion", "mixed")),
    ],
)
def test_promises_of_special_machines(variant: str, topology: str, modules: tuple[str, ...]) -> None:
    """Cases that need modules, virtual functions, slots or a second kind of device run on machines that have
    them."""
    words = [word for module in modules for word in ("--case", f"probes/{module}/*")]
    done, run = harness("run", "--tree", TREE, "--variant", variant, "--topology", topology, *words)
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    passed = {case.address.program for case in run.cases if case.outcome is Outcome.PASS}
    assert passed == set(modules)


def test_blocked_variants_are_proved_without_a_build() -> None:
    """Kconfig itself refuses no-IOMMU mode without a container, and the output gives the reason."""
    done, run = harness(
        "run", "--tree", TREE, "--variant", "blocked-group", "--variant", "blocked-group-cdev"
    )
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    assert [case.outcome for case in run.cases] == [Outcome.PASS, Outcome.PASS]
    assert all("VFIO_NOIOMMU" in case.reason for case in run.cases)


def test_real_iommu_probes_pass(group_cdev: Kernel) -> None:
    """Behind an intel-iommu nothing of no-IOMMU appears, and the probes for that pass."""
    done, run = harness("run", "--tree", TREE, "--topology", "iommu-intel", "--suite", "probes")
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    viommu = [c for c in run.cases if c.address.program == "viommu" and c.outcome is Outcome.PASS]
    assert len(viommu) >= 8


def test_upstream_selftests_pass_behind_an_iommu(group_cdev: Kernel) -> None:
    """Selftests that are XFAIL on a no-IOMMU device pass on a real IOMMU: the known issue applies only
    there."""
    address = "kselftest:vfio/vfio_*_*_test@edu0"
    done, run = harness(
        "run", "--tree", TREE, "--topology", "iommu-intel", "--suite", "kselftest:vfio", "--memory", "1024",
        "--case", address,
    )  # fmt: skip
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    assert sum(case.outcome is Outcome.PASS for case in run.cases) >= 20


def test_two_workers_agree_with_one(group_cdev: Kernel) -> None:
    """Two jobs on two workers, each with its own VM, give the same outcomes as one after the other."""
    words = ("run", "--tree", TREE, "--topology", "edu", "--topology", "igb", "--case", "probes/nodes/*")
    _, alone = harness(*words)
    done, together = harness(*words, "-n", "2")
    assert alone is not None
    assert together is not None, told(done, together)
    key = {(c.job, c.address, c.outcome) for c in alone.cases}
    assert key == {(c.job, c.address, c.outcome) for c in together.cases}
    assert any(c.outcome is Outcome.PASS for c in together.cases)


def test_twenty_runs_at_once_do_not_disturb_each_other(group_cdev: Kernel) -> None:
    """Twenty concurrent runs share kernels, snapshots, the history and the host without affecting each
    other."""
    words = ("run", "--tree", TREE, "--topology", "edu", "-n", "1", "--case", "probes/mapping/*")
    with ThreadPoolExecutor(20) as pool:
        ended = list(pool.map(lambda _: harness(*words), range(20)))
    runs = [run for _, run in ended if run is not None]
    assert len({run.info.id for run in runs}) == 20
    for done, run in ended:
        assert done.status == ExitCode.GOOD, told(done, run)
    (outcomes,) = {tuple(sorted(probes_of(run).items())) for run in runs}
    assert sum(outcome is Outcome.PASS for _, outcome in outcomes) >= 10


@pytest.mark.parametrize(("isolation", "machines"), [("vm", 1), ("program", 2), ("case", 4)])
def test_isolation(group_cdev: Kernel, isolation: str, machines: int) -> None:
    """Four cases of two modules run in as many VMs as requested, with the same outcomes."""
    cases = (
        "get_pa/offset_in_page_is_kept",
        "get_pa/refusals_come_in_order",
        "mapping/bar_is_no_memory",
        "mapping/map_refuses_nonsense",
    )
    words = [word for case in cases for word in ("--case", f"probes/{case}")]
    done, run = harness("run", "--tree", TREE, "--topology", "edu", "--isolation", isolation, *words)
    assert run is not None, done.stderr
    # A VM that QEMU lost while it booted, and the next one that came up, are a case of the run too.
    probes = [case for case in run.cases if case.address.suite == "probes"]
    assert [case.outcome for case in probes] == [Outcome.PASS] * 4, told(done, run)
    assert len({case.vm_dir for case in probes}) == machines


def test_bench_measures(group_cdev: Kernel) -> None:
    """bench prints figures of this host, with medians and ratios."""
    words = ("--tree", TREE, "--topology", "edu", "--repeat", "1", "--json")
    only = ("--only", "startup", "--only", "boot", "--only", "roundtrip")
    bench = (sys.executable, "-m", "tools.bench")
    done = process.run((*bench, *words, *only), deadline=Deadline.after(3600))
    assert done.status == ExitCode.GOOD, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(done.stdout)["figures"]}
    assert figures["snapshot, SSH"]["baseline"] == "image root, SSH"
    assert 0 < figures["snapshot, SSH"]["ratio"] < 1
    assert all(figure["median"] > 0 for figure in figures.values())


def _qemus(marker: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            cwd = str((path.parent / "cwd").readlink())
        except OSError:
            continue
        if b"qemu-system" in command and marker in cwd:
            found.append(int(path.parent.name))
    return found


def _wait_for(condition: object, seconds: float) -> bool:
    deadline = Deadline.after(seconds)
    while not deadline.expired:
        if callable(condition) and condition():
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, ()), (signal.SIGKILL, ("-n", "1"))])
def test_kill_leaves_no_qemu(
    group_cdev: Kernel, tmp_path: Path, number: signal.Signals, workers: tuple[str, ...]
) -> None:
    """However the harness is killed, its QEMU processes end too."""
    words = [*CLI, "run", "--tree", TREE, "--topology", "edu", "--suite", "probes", *workers]
    environ = {**os.environ, "VFIO_HARNESS_RUNS": str(tmp_path)}
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        assert _wait_for(lambda: _qemus(str(tmp_path)), 600)
        child.send_signal(number)
        child.wait(30)
    assert _wait_for(lambda: not _qemus(str(tmp_path)), 20)


@pytest.mark.parametrize(("frozen", "workers"), [(False, "0"), (True, "0"), (True, "2")])
def test_interrupt_keeps_what_is_finished(
    group_cdev: Kernel, tmp_path: Path, frozen: bool, workers: str
) -> None:
    """Ctrl-C in the middle gives exit code 130, keeps finished results, marks the rest NOT_RUN and leaves no
    QEMU, also if no guest moves any more; no traceback is printed."""
    # If a shell started the tests in the background, all their child processes ignore SIGINT.
    listening = ("env", "--default-signal=INT")
    words = [*listening, *CLI, "run", "--tree", TREE, "--topology", "edu", "--suite", "probes", "-v"]
    words += ["-n", workers]
    environ = {**os.environ, "VFIO_HARNESS_RUNS": str(tmp_path)}
    with subprocess.Popen(
        words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.count("PASSED"):
                break
        for pid in _qemus(str(tmp_path)) if frozen else ():
            os.kill(pid, signal.SIGSTOP)
        os.killpg(child.pid, signal.SIGINT)
        said = child.communicate(timeout=60)
        assert child.returncode == ExitCode.INTERRUPTED
        assert "Traceback" not in "".join(said)
    (directory,) = (path for path in tmp_path.iterdir() if path.is_dir())
    outcomes = Counter(case.outcome for case in load(directory).cases)
    assert outcomes[Outcome.PASS] >= 1
    assert outcomes[Outcome.NOT_RUN] >= 1
    assert (directory / "junit.xml").is_file()
    assert not _qemus(str(tmp_path))
