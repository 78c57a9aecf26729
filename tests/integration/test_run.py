# SPDX-License-Identifier: GPL-2.0-only
"""`vfio-harness run` as its users call it: real kernels, real VMs, the verdict they would see."""

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

from harness import process
from harness.deadline import Deadline
from harness.errors import ExitCode
from harness.kernel.store import Kernel
from harness.results import Outcome, Run, load
from harness.suites.known import shipped_issues
from harness.suites.probes import probe_cases

TREE = "debian:7.3"

CLI = (sys.executable, "-m", "harness")
TOLERATED = {Outcome.PASS, Outcome.SKIP, Outcome.XFAIL}


def harness(*words: str, seconds: float = 1500) -> tuple[process.Completed, Run | None]:
    """Run the command line; return how it ended and the Run it left, if any."""
    done = process.run([*CLI, *words], deadline=Deadline.after(seconds))
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    return done, load(Path(where[1])) if where else None


def told(done: process.Completed, run: Run | None) -> str:
    """What a failed test should show."""
    bad = [f"{c.outcome.value} {c.address}: {c.reason}" for c in run.cases if c.outcome.is_bad] if run else []
    return "\n".join([*bad, done.stdout[-3000:], done.stderr[-3000:]])


def probes_of(run: Run) -> dict[str, Outcome]:
    """The outcome of each probe, less those whose known defect is a race that a run may win."""
    racy = {issue.case for issue in shipped_issues() if issue.racy}
    outcomes = {str(c.address): c.outcome for c in run.cases if c.address.suite == "probes"}
    return {address: outcome for address, outcome in outcomes.items() if address not in racy}


@pytest.fixture(scope="module")
def one_shot(group_cdev: Kernel) -> tuple[process.Completed, Run]:
    """The main job: the default variant on the default topology, everything that runs there."""
    done, run = harness("run", "--tree", TREE)
    assert run is not None, done.stderr
    return done, run


def test_one_shot_is_green(one_shot: tuple[process.Completed, Run]) -> None:
    """On a good kernel the main job is good, and that is because things passed."""
    done, run = one_shot
    counts = Counter(case.outcome for case in run.cases)
    assert done.status == ExitCode.GOOD, told(done, run)
    assert set(counts) <= TOLERATED
    assert counts[Outcome.PASS] >= 150
    assert "GOOD" in done.stdout


def test_accelerator_is_announced_first(one_shot: tuple[process.Completed, Run]) -> None:
    """The first line says what executes the guest, and why, where it is not KVM."""
    first = one_shot[0].stderr.splitlines()[0]
    assert first.startswith("accelerator: ")
    assert "KVM" in first or "TCG" in first


def test_libvfio_on_a_noiommu_device_is_xfail_with_its_reason(
    one_shot: tuple[process.Completed, Run],
) -> None:
    """Upstream's selftests cannot find a noiommu node: expected, told, not hidden."""
    upstream = [c for c in one_shot[1].cases if c.address.suite == "kselftest:vfio"]
    failed = [c for c in upstream if c.outcome is Outcome.XFAIL]
    assert len(failed) >= 50
    assert all("libvfio" in case.reason for case in failed)


def test_run_directory_holds_everything(one_shot: tuple[process.Completed, Run]) -> None:
    """Database, JUnit with one testcase per Case, plan, config, console and QEMU command."""
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
    """`report` shows an earlier run in any format and exits as it did."""
    run = one_shot[1]
    again = process.run([*CLI, "report", run.directory, "--format", "json"])
    assert again.status == ExitCode.GOOD
    assert len(json.loads(again.stdout)["cases"]) == len(run.cases)


def test_roots_agree(one_shot: tuple[process.Completed, Run]) -> None:
    """Where the guest's user space comes from changes no outcome."""
    done, virtme = harness("run", "--tree", TREE, "--root", "virtme", "--suite", "probes")
    assert virtme is not None, done.stderr
    assert probes_of(one_shot[1]) == probes_of(virtme)


@pytest.mark.parametrize("variant", ["cdev", "group", "off"])
def test_variants_keep_their_promises(variant: str) -> None:
    """The probes pass on each shape of the configuration; what it lacks is not applicable, never failed."""
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
    """What only modules, virtual functions, slots or a second kind of device can show is shown there."""
    words = [word for module in modules for word in ("--case", f"probes/{module}/*")]
    done, run = harness("run", "--tree", TREE, "--variant", variant, "--topology", topology, *words)
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    passed = {case.address.program for case in run.cases if case.outcome is Outcome.PASS}
    assert passed == set(modules)


def test_blocked_variants_are_proved_without_a_build() -> None:
    """Kconfig itself refuses no-IOMMU mode without a container; the reason is told."""
    done, run = harness(
        "run", "--tree", TREE, "--variant", "blocked-group", "--variant", "blocked-group-cdev"
    )
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    assert [case.outcome for case in run.cases] == [Outcome.PASS, Outcome.PASS]
    assert all("VFIO_NOIOMMU" in case.reason for case in run.cases)


def test_real_iommu_probes_pass(group_cdev: Kernel) -> None:
    """Behind an intel-iommu nothing of no-IOMMU appears, and the probes of that promise pass."""
    done, run = harness("run", "--tree", TREE, "--topology", "iommu-intel", "--suite", "probes")
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    viommu = [c for c in run.cases if c.address.program == "viommu" and c.outcome is Outcome.PASS]
    assert len(viommu) >= 8


def test_upstream_selftests_pass_behind_an_iommu(group_cdev: Kernel) -> None:
    """What cannot run on a no-IOMMU device passes on a real IOMMU: the expectation is no blanket."""
    address = "kselftest:vfio/vfio_*_*_test@edu0"
    done, run = harness(
        "run", "--tree", TREE, "--topology", "iommu-intel", "--suite", "kselftest:vfio", "--memory", "1024",
        "--case", address,
    )  # fmt: skip
    assert done.status == ExitCode.GOOD, told(done, run)
    assert run is not None
    assert sum(case.outcome is Outcome.PASS for case in run.cases) >= 20


def test_two_workers_agree_with_one(group_cdev: Kernel) -> None:
    """Two jobs on two workers, each with its own VM, give what they give one after the other."""
    words = ("run", "--tree", TREE, "--topology", "edu", "--topology", "igb", "--case", "probes/nodes/*")
    _, alone = harness(*words)
    done, together = harness(*words, "-n", "2")
    assert alone is not None
    assert together is not None, told(done, together)
    key = {(c.job, c.address, c.outcome) for c in alone.cases}
    assert key == {(c.job, c.address, c.outcome) for c in together.cases}
    assert any(c.outcome is Outcome.PASS for c in together.cases)


def test_cases_that_may_run_at_the_same_time_do(group_cdev: Kernel) -> None:
    """In one VM, where no begin tells them apart, and to what each comes to when they run one by one."""
    words = ("run", "--tree", TREE, "--topology", "edu", "--case", "probes/iommufd/*", "-n", "1")
    _, together = harness(*words)
    done, alone = harness(*words, "--isolation", "program")
    assert together is not None
    assert alone is not None, told(done, alone)
    beside = {one.address for one in probe_cases() if one.alongside and one.module == "iommufd"}
    assert probes_of(together) == probes_of(alone)
    assert len(beside) >= 8
    assert _announced(together, "end") - _announced(together, "begin") == beside
    assert _announced(alone, "end") == _announced(alone, "begin") >= beside


def _announced(run: Run, word: str) -> set[str]:
    """The cases that the kernels' logs call begun or ended."""
    logs = [path.read_text(errors="replace") for path in Path(run.directory).glob("vm/*/console.log")]
    return {address for log in logs for address in re.findall(rf"vfio-harness: {word} (\S+)", log)}


def test_twenty_runs_at_once_do_not_disturb_each_other(group_cdev: Kernel) -> None:
    """They share kernels, snapshots, the history and the host, and nothing that one takes from another."""
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
    """Four cases of two modules in as many VMs as asked for, with the same outcomes."""
    cases = (
        "get_pa/offset_in_page_is_kept",
        "get_pa/refusals_come_in_order",
        "mapping/bar_is_no_memory",
        "mapping/map_refuses_nonsense",
    )
    words = [word for case in cases for word in ("--case", f"probes/{case}")]
    done, run = harness("run", "--tree", TREE, "--topology", "edu", "--isolation", isolation, *words)
    assert run is not None, done.stderr
    assert [case.outcome for case in run.cases] == [Outcome.PASS] * 4, told(done, run)
    assert len({case.vm_dir for case in run.cases}) == machines


def test_bench_measures(group_cdev: Kernel) -> None:
    """bench prints figures of this host, with medians and ratios."""
    words = ("bench", "--tree", TREE, "--topology", "edu", "--repeat", "1", "--json")
    done, _ = harness(*words, "--only", "startup", "--only", "boot", "--only", "roundtrip")
    assert done.status == ExitCode.GOOD, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(done.stdout)["figures"]}
    assert figures["snapshot, SSH"]["baseline"] == "image root, SSH"
    assert 0 < figures["snapshot, SSH"]["ratio"] < 1
    assert all(figure["median"] > 0 for figure in figures.values())


def test_shell_runs_a_command_in_the_machine(group_cdev: Kernel) -> None:
    """`shell -- COMMAND` runs it in the VM and exits with its status."""
    done, _ = harness("shell", "--tree", TREE, "--topology", "edu", "--", "uname", "-r;", "exit", "7")
    assert group_cdev.release in done.stdout
    assert done.status == 7


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
    """However the harness is killed, QEMU goes with it."""
    words = [*CLI, "run", "--tree", TREE, "--topology", "edu", "--suite", "probes", *workers]
    environ = {**os.environ, "VFIO_HARNESS_RUNS": str(tmp_path)}
    with subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        assert _wait_for(lambda: _qemus(str(tmp_path)), 120)
        child.send_signal(number)
        child.wait(30)
    assert _wait_for(lambda: not _qemus(str(tmp_path)), 20)


def test_interrupt_keeps_what_is_finished(group_cdev: Kernel, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, finished results kept, the rest NOT_RUN, no QEMU left."""
    # Who starts the tests in the background of a shell has SIGINT ignored in all that it starts.
    listening = ("env", "--default-signal=INT")
    words = [*listening, *CLI, "run", "--tree", TREE, "--topology", "edu", "--suite", "probes", "-v"]
    environ = {**os.environ, "VFIO_HARNESS_RUNS": str(tmp_path)}
    with subprocess.Popen(
        words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.count("PASSED"):
                break
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
        assert child.returncode == ExitCode.INTERRUPTED
    (directory,) = (path for path in tmp_path.iterdir() if path.is_dir())
    outcomes = Counter(case.outcome for case in load(directory).cases)
    assert outcomes[Outcome.PASS] >= 1
    assert outcomes[Outcome.NOT_RUN] >= 1
    assert (directory / "junit.xml").is_file()
    assert not _qemus(str(tmp_path))
