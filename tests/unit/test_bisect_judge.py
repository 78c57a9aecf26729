# SPDX-License-Identifier: GPL-2.0-only
"""The real judge tells what a commit cannot do from what the host cannot, and knows equal kernels."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree

from harness.bisect import judge as judge_module
from harness.bisect.finding import _machine
from harness.bisect.hunt import Prepared
from harness.bisect.judge import RealJudge, Trial
from harness.bisect.model import Aim, Sight
from harness.bisect.state import End, Quarry
from harness.errors import InfraError
from harness.kernel.make import Progress, ignore_progress
from harness.kernel.trees import open_tree
from harness.process import Completed
from harness.suites.probes import probe_cases

TRIAL = Trial(
    variant="group-cdev", jobs=1, suites=("probes",), cases=("probes/a/*",), keyword="x", machine=("-m",)
)

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", "gcc", "ld", "flex", "bison", "bc")),
    reason="the tools of a kernel build are missing",
)


def git(directory: Path, *arguments: str) -> None:
    argv = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(argv, check=True, capture_output=True)


def commit(tree: Path, name: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--allow-empty", f"--message={name}")
    git(tree, "tag", name)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What looks like Linux at `base`."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    tree = make_fake_tree(tmp_path / "linux")
    git(tree, "init", "--quiet")
    commit(tree, "base")
    return tree


@contextlib.contextmanager
def unseen(name: str) -> Iterator[Progress]:
    yield ignore_progress


def judge_of(repository: Path) -> RealJudge:
    return RealJudge(lambda name: f"{repository}@{name}", TRIAL, repository.parent / "runs", unseen)


def test_equal_code_is_equal_content(repository: Path) -> None:
    """A comment makes no other kernel; code does."""
    source = repository / "init" / "main.c"
    source.write_text("void start(void) {} /* a comment */\n")
    commit(repository, "comment")
    source.write_text("int more = 1; void start(void) {}\n")
    commit(repository, "code")
    judge = judge_of(repository)
    made = [judge.prepare(name) for name in ("base", "comment", "code")]
    contents = [one.content for one in made if isinstance(one, Prepared)]
    assert contents[0] == contents[1] != contents[2]


def test_what_the_commit_cannot(repository: Path) -> None:
    """Not compiling, not having the mode and not being Linux at all: none is the host's trouble."""
    (repository / "init" / "main.c").write_text("int broken = ;\n")
    commit(repository, "broken")
    git(repository, "checkout", "--quiet", "base", "--", "init")
    kconfig = repository / "Kconfig"
    kconfig.write_text(kconfig.read_text().replace("IOMMUFD_NOIOMMU", "SOMETHING"))
    commit(repository, "older")
    git(repository, "rm", "--quiet", "-r", "Makefile")
    commit(repository, "elsewhere")
    judge = judge_of(repository)
    expected = {"broken": Sight.UNBUILDABLE, "older": Sight.MISSING, "elsewhere": Sight.REFUSED}
    for name, sight in expected.items():
        seen = judge.prepare(name)
        assert not isinstance(seen, Prepared)
        assert (seen.sight, bool(seen.why)) == (sight, True), seen


def test_runs_are_no_change_of_the_tree(repository: Path) -> None:
    """Where the tree is the current directory, what a step leaves there makes it no other tree."""
    before = open_tree(str(repository))
    runs = repository / "runs" / "bisect-step"
    judge_module.make_runs(runs)
    (runs / "0-x.log").write_text("x")
    judge_module.make_runs(runs)
    assert open_tree(str(repository)) == before


def test_what_the_host_cannot(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk says nothing about the commit."""

    def full(*arguments: object, **named: object) -> None:
        raise InfraError("the disk is full", hint="free space")

    monkeypatch.setattr(judge_module, "provide_kernel", full)
    seen = judge_of(repository).prepare("base")
    assert not isinstance(seen, Prepared)
    assert (seen.sight, seen.why, seen.hint) == (Sight.NO_CHANCE, "the disk is full", "free space")


@pytest.mark.parametrize(
    ("status", "stderr", "sight", "why"),
    [
        (2, "tree: x\nerror: no case matches 'a/b'\n  see\n", Sight.MISSING, "no case matches 'a/b'"),
        (2, "error: something else\n", Sight.REFUSED, "something else"),
        (3, "Traceback\nerror: the harness itself failed\n", Sight.NO_CHANCE, "the harness itself failed"),
        (-9, "", Sight.NO_CHANCE, "was killed by SIGKILL"),
    ],
)
def test_run_without_a_report(status: int, stderr: str, sight: Sight, why: str) -> None:
    """A harness that dies is never the commit's fault; a case that is not there is its answer."""
    seen = judge_module._without_run(Completed(("x",), status, "", stderr), 1.0)
    assert (seen.sight, seen.why) == (sight, why)


def test_interrupted_run_interrupts_the_hunt() -> None:
    """Who stops the VM's process wants the hunt to stop."""
    with pytest.raises(KeyboardInterrupt):
        judge_module._without_run(Completed(("x",), 130, "", ""), 1.0)


def test_boot_is_tried_with_a_case_that_always_applies() -> None:
    """Whatever the variant and the machine, something runs, or nothing would be booted."""
    needs = {f"probes/{case.address}": case.needs for case in probe_cases()}
    assert needs[judge_module.BOOT_CASE] == ("iommufd",)


@pytest.mark.parametrize(
    ("boot", "cases", "keyword", "run"),
    [
        (True, (), "", (judge_module.BOOT_CASE,)),
        (True, (), "get_pa", ()),
        (True, ("probes/a/b",), "", ("probes/a/b",)),
        (False, (), "get_pa", ()),
    ],
)
def test_trial_of_what_was_asked(boot: bool, cases: tuple[str, ...], keyword: str, run: object) -> None:
    """Verb and step test alike: with nothing but --boot one case makes a VM boot."""
    end = End(name="v1", commit="0")
    asked = Quarry(repository="/x", root="", old=end, new=end, cases=cases, keyword=keyword)
    trial = Trial.of(asked, Aim(boot=boot), selftests=False)
    assert (trial.cases, trial.boot) == (run, boot)
    assert trial.jobs > 1


def test_options_narrow_down() -> None:
    """What was asked for, until the ends have told which cases they are."""
    assert TRIAL.options()[-6:] == ["--suite", "probes", "--case", "probes/a/*", "-k", "x"]
    assert TRIAL.options(["probes/a/b"])[-4:] == ["--suite", "probes", "--case", "probes/a/b"]


def test_machine_for_a_mail(tmp_path: Path) -> None:
    """Of QEMU's command line the machine is told, not our ways in, disks and directories."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "qemu.cmd").write_text(
        "cd /x && qemu-system-x86_64 -name x -machine q35 -qmp unix:a -device edu,id=edu0 "
        "-device virtio-net-pci,netdev=ssh -append 'a b'\n"
    )
    assert _machine(tmp_path, "vm") == ("-machine q35", "-device edu,id=edu0", "-append 'a b'")
