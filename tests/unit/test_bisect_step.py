# SPDX-License-Identifier: GPL-2.0-only
"""The VM tester keeps the kernel's failures apart from the host's, and recognises equal kernels."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_fake_tree import git, make_fake_tree
from test_coverage_model import COVERAGE

from harness.base.errors import HarnessError, InfraError
from harness.base.process import Completed
from harness.bisect import step as step_module
from harness.bisect.evidence import _machine
from harness.bisect.on_fleet import Method
from harness.bisect.start import start
from harness.bisect.state import BisectRequest, End, Rules, Status, StepOptions
from harness.bisect.step import BOOT_CASE, BuiltCommit, VMTester
from harness.cli.bisect_options import Asked
from harness.kernel.trees import open_tree
from harness.results.coverage.reports import write_reports
from harness.session.own import TakenOwn
from harness.session.wishes import KernelWish, MachineWish, OwnWish
from harness.suites.probes import probe_cases

OPTIONS = StepOptions(
    kernel=KernelWish(variant="group-cdev", compilers=1),
    suites=("probes",),
    cases=("probes/a/*",),
    keyword="x",
    machine=("-m",),
)

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", "gcc", "ld", "flex", "bison", "bc")),
    reason="the tools of a kernel build are missing",
)


def commit(tree: Path, name: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--allow-empty", f"--message={name}")
    git(tree, "tag", name)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree like Linux, tagged `base`."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    tree = make_fake_tree(tmp_path / "linux")
    git(tree, "init", "--quiet")
    commit(tree, "base")
    return tree


def a_tester(repository: Path) -> VMTester:
    return VMTester(str(repository), OPTIONS, repository.parent / "runs")


def test_equal_code_is_an_equal_image(repository: Path) -> None:
    """A comment does not change the image; code does."""
    source = repository / "init" / "main.c"
    source.write_text("void start(void) {} /* a comment */\n")
    commit(repository, "comment")
    source.write_text("int more = 1; void start(void) {}\n")
    commit(repository, "code")
    tester = a_tester(repository)
    made = [tester.build(name) for name in ("base", "comment", "code")]
    images = [one.image for one in made if isinstance(one, BuiltCommit)]
    assert images[0] == images[1] != images[2]


def test_commit_that_cannot_be_built(repository: Path) -> None:
    """A commit that does not compile, lacks the mode or is not Linux has a status of its own."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    commit(repository, "broken")
    git(repository, "checkout", "--quiet", "base", "--", "init")
    kconfig = repository / "Kconfig"
    kconfig.write_text(kconfig.read_text().replace("IOMMUFD_NOIOMMU", "SOMETHING"))
    commit(repository, "older")
    git(repository, "rm", "--quiet", "-r", "Makefile")
    commit(repository, "elsewhere")
    tester = a_tester(repository)
    expected = {"broken": Status.NO_BUILD, "older": Status.MISSING, "elsewhere": Status.INVALID}
    for name, status in expected.items():
        seen = tester.build(name)
        assert not isinstance(seen, BuiltCommit)
        assert (seen.status, bool(seen.why)) == (status, True), seen


def test_runs_are_no_change_of_the_tree(repository: Path) -> None:
    """The runs of a step in the tree do not change the tree's identity."""
    before = open_tree(str(repository))
    runs = repository / "runs" / "bisect-step"
    step_module.make_runs(runs)
    (runs / "0-x.log").write_text("x")
    step_module.make_runs(runs)
    assert open_tree(str(repository)) == before


def test_full_disk_names_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of write(2) has none."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(TakenOwn, "keep", full)
    monkeypatch.setattr(tarfile.TarFile, "add", full)
    program = OwnWish(programs=(str(tmp_path / "mine"),))
    end, options = End(name="x", commit="c"), StepOptions(own=program)
    request = BisectRequest(repository="/src", root=str(tmp_path), old=end, new=end, options=options)
    failing: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: step_module.make_runs(tmp_path / "runs"), f"cannot write {tmp_path / 'runs'}: "),
        (lambda: start(request, Rules()), f"cannot write {tmp_path / 'bisect-'}"),
        (lambda: Method.of(options, boot=False, conduct=()), f"cannot read {tmp_path / 'mine'}: "),
        (lambda: write_reports(COVERAGE, lcov=tmp_path / "x.info"), f"cannot write {tmp_path / 'x.info'}: "),
    )
    for what, place in failing:
        with pytest.raises(HarnessError, match=re.escape(place)):
            what()


def test_failure_of_the_host(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk shows nothing about the commit."""

    def full(*arguments: object, **named: object) -> None:
        raise InfraError("the disk is full", hint="free space")

    monkeypatch.setattr(step_module, "provide_kernel", full)
    seen = a_tester(repository).build("base")
    assert not isinstance(seen, BuiltCommit)
    assert (seen.status, seen.why, seen.hint) == (Status.UNTESTED, "the disk is full", "free space")


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "status", "why"),
    [
        (2, '{"error": {"message": "m", "hint": "h", "cause": "no-case"}}', "", Status.MISSING, "m"),
        (2, '{"error": {"message": "m", "hint": null, "cause": null}}', "", Status.INVALID, "m"),
        (2, "", "Usage: x\n", Status.INVALID, "Usage: x"),
        (3, '{"error": {"message": "m", "hint": "h", "cause": "host"}}', "", Status.UNTESTED, "m"),
        (3, "not JSON", "Traceback\nerror: y\n", Status.UNTESTED, "error: y"),
        (-9, "", "", Status.UNTESTED, "vfio-harness run was killed by SIGKILL"),
    ],
)
def test_run_without_a_report(code: int, stdout: str, stderr: str, status: Status, why: str) -> None:
    """A harness that fails is not the commit's fault; a case that does not exist is its answer."""
    error = step_module._parse(stdout).get("error")
    shown = step_module._without_report(Completed(("x",), code, stdout, stderr), error, 1.0)
    assert (shown.status, shown.why) == (status, why)


def test_error_as_json(tmp_path: Path) -> None:
    """A run with --json that ends with an error prints it, with its cause, for the step to read."""
    options = dataclasses.replace(OPTIONS, keyword="", machine=())
    tester = VMTester(os.fspath(tmp_path), options, tmp_path / "runs", as_is=True)
    shown = tester.run("base", ())
    assert (shown.status, shown.why) == (Status.MISSING, "no case matches 'probes/a/*'")
    assert "did you mean" in shown.hint


def test_interrupted_run_interrupts_the_bisect() -> None:
    """A run that was interrupted interrupts the bisect."""
    with pytest.raises(KeyboardInterrupt):
        step_module._without_report(Completed(("x",), 130, "", ""), None, 1.0)


def test_boot_case_always_applies() -> None:
    """The case that stands for the boot applies to every variant and machine, or nothing would be booted."""
    needs = {f"probes/{case.address}": case.needs for case in probe_cases()}
    assert needs[BOOT_CASE] == ("iommufd",)


@pytest.mark.parametrize(
    ("boot", "cases", "keyword", "chosen"),
    [
        (True, (), "", (BOOT_CASE,)),
        (True, (), "get_pa", ()),
        (True, ("probes/a/b",), "", ("probes/a/b",)),
        (False, (), "get_pa", ()),
    ],
)
def test_step_options(boot: bool, cases: tuple[str, ...], keyword: str, chosen: tuple[str, ...]) -> None:
    """With nothing but --boot, one case is chosen, so that a VM boots."""
    asked = Asked(
        kernel=KernelWish(variant="group-cdev"),
        suites=(),
        cases=cases,
        keyword=keyword,
        boot=boot,
        repeat=3,
        machine=MachineWish(topology="edu"),
    )
    assert asked.step_options().cases == chosen


def test_options_narrow_down() -> None:
    """The cases that differ between the ends replace those that were asked for."""
    assert OPTIONS.words()[-6:] == ["--suite", "probes", "--case", "probes/a/*", "-k", "x"]
    assert OPTIONS.words(("probes/a/b",))[-4:] == ["--suite", "probes", "--case", "probes/a/b"]


def test_machine_for_a_mail(tmp_path: Path) -> None:
    """The machine is described without the harness's own devices, disks and directories."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "qemu.cmd").write_text(
        "cd /x && qemu-system-x86_64 -name x -machine q35 -qmp unix:a -device edu,id=edu0 "
        "-device virtio-net-pci,netdev=ssh -append 'a b'\n"
    )
    assert _machine(tmp_path, "vm") == ("-machine q35", "-device edu,id=edu0", "-append 'a b'")
