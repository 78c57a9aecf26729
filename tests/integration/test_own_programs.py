# SPDX-License-Identifier: GPL-2.0-only
"""The user's own programs and probes in VMs: on both roots, and in a VM restored from a snapshot."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TREE

from harness.base import process
from harness.base.deadline import Deadline
from harness.kernel.provide import Kernel

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "own-tests.md"

PYTHON = """
import os, sys
from guest import iommufd, vfio

def point(number, ok, name, why=""):
    print("ok" if ok else "not ok", number, name)
    print("#", why)

print("TAP version 13")
print("1..4")
point(1, sys.argv[1:] == ["a", "b c"], "arguments", sys.argv)
with vfio.open_cdev(os.environ["VFIO_EDU0_BDF"]) as device, iommufd.Iommufd() as iommu:
    point(2, device.bind_iommufd(iommu.fd) > 0, "binds")
point(3, open("data").read() == "42", "data")
try:
    open("new", "w")
    point(4, False, "read_only")
except OSError as error:
    point(4, True, "read_only", error)
if os.fork() == 0:
    # It keeps the device open, in a session of its own.
    os.setsid()
    os.open(os.environ["VFIO_CDEV"], os.O_RDWR)
"""

PROBES = '''
"""A probe of the user's own."""
from guest import pci
from guest.case import Test, case

@case(needs=("noiommu", "edu"), cites="drivers/vfio/vfio_main.c vfio_noiommu")
def ground_is_restored(t: Test) -> None:
    """Nothing is bound and the parameter is off after an own program."""
    t.equal((pci.driver(t.device("edu")), pci.parameter()), (None, False), "the ground")
'''


def run(*words: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return exit code, address -> outcome and reason, and the timing of the VM of a run of *words*."""
    argv = [sys.executable, "-m", "harness", "run", "--json", "--tree", TREE, "--topology", "edu", "-n", "0"]
    done = process.run([*argv, *words], deadline=Deadline.after(3600))
    report = json.loads(done.stdout)
    cases = {case["address"]: f"{case['outcome']} {case['reason']}".strip() for case in report["cases"]}
    timing = next(Path(report["directory"]).glob("vm/*/timing.json"))
    return done.status, cases, json.loads(timing.read_text(encoding="utf-8"))


@pytest.fixture(name="example")
def _example(tmp_path: Path, group_cdev: Kernel) -> Path:
    """The program in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (program,) = re.findall(r"```c\n(.*?)```", text, re.DOTALL)
    assert len(program.splitlines()) == 15
    path = tmp_path / "open_cdev.c"
    path.write_text(program, encoding="utf-8")
    return path


def test_own_programs_run_and_are_judged(example: Path, tmp_path: Path) -> None:
    """C, Python in a directory, scripts by their status, and probes; then in a restored VM."""
    directory, probes = tmp_path / "dir", tmp_path / "probes"
    directory.mkdir()
    probes.mkdir()
    (directory / "dir.py").write_text(PYTHON, encoding="utf-8")
    (directory / "data").write_text("42", encoding="utf-8")
    (probes / "own_ground.py").write_text(PROBES, encoding="utf-8")
    (tmp_path / "ends").write_text("#!/bin/sh\necho it ends; exit $1\n", encoding="utf-8")
    (tmp_path / "dies.sh").write_text("#!/bin/sh\necho it dies; kill -SEGV $$\n", encoding="utf-8")
    for name in ("ends", "dies.sh"):
        os.chmod(tmp_path / name, 0o755)  # noqa: PTH101
    own = [f"{example}", f"{directory} a 'b c'", f"{tmp_path}/ends 2", f"{tmp_path}/dies.sh"]
    words = [word for program in own for word in ("--program", program)]
    words += ["--probes", str(probes), "--suite", "own", "--suite", "probes"]
    status, cases, _ = run(*words, "--case", "own/*", "--case", "probes/own_ground/*")
    assert status == 1
    assert cases == {
        "own/open_cdev/exit": "PASS",
        "own/dir/arguments": "PASS",
        "own/dir/binds": "PASS",
        "own/dir/data": "PASS",
        "own/dir/read_only": "PASS",
        "own/ends/exit": "XFAIL exit status 2: it ends",
        "own/dies/exit": "FAIL the program was killed by SIGSEGV: it dies",
        "probes/own_ground/ground_is_restored": "PASS",
    }
    example.write_text(example.read_text(encoding="utf-8").replace("== 0", "!= 0"), encoding="utf-8")
    status, cases, timing = run("--program", str(example))
    assert (status, cases) == (1, {"own/open_cdev/exit": "FAIL exit status 1"})
    assert timing["restored"]


def test_own_program_is_in_the_shell(example: Path) -> None:
    """With the script that starts it as a test."""
    argv = [sys.executable, "-m", "harness", "shell", "--tree", TREE, "--topology", "edu"]
    own = ["--program", str(example), "--", "sh", "/run/vfio-harness/open_cdev.sh"]
    done = process.run([*argv, *own], deadline=Deadline.after(3600))
    assert done.status == 0, done.stderr
    assert "open_cdev runs as in a test by: sh /run/vfio-harness/open_cdev.sh" in done.stderr


def test_own_program_runs_on_the_hosts_root(example: Path) -> None:
    status, cases, _ = run("--program", str(example), "--root", "virtme")
    assert (status, cases) == (0, {"own/open_cdev/exit": "PASS"})
