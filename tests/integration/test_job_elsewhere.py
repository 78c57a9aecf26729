# SPDX-License-Identifier: GPL-2.0-only
"""A planned Job runs as another user, in another directory, with only a read-only copy of the store."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TREE

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.kernel.provide import Kernel
from harness.kernel.store import kernel_entry, selftests_entry
from harness.lab.boot import Recipe
from harness.plan import Job, Plan, load_plan
from harness.results import Outcome
from harness.results.store import load

OTHER = "nobody"
CASES = "probes/nodes/*"
PROGRAM = """
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) { return argc == 3 && getenv("VFIO_CDEV") && access(argv[2], R_OK) ? 0 : 1; }
"""


def _as_other(*words: str) -> list[str]:
    """Return the command that runs *words* as OTHER without any of our rights."""
    entry = pwd.getpwnam(OTHER)
    drop = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    return ["setpriv", *drop, "--inh-caps=-all", "--bounding-set=-all", "--", *words]


def _run(words: list[str], **environment: str) -> process.Completed:
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return process.run(words, cwd=Path("/"), env=env, deadline=Deadline.after(3600))


@pytest.fixture(name="plain")
def _plain() -> Iterator[Path]:
    """A directory that every user can enter, unlike pytest's own."""
    if os.getuid() != 0:
        pytest.skip("only root can run a job as another user")
    runs = _run(_as_other(sys.executable, "-c", "import harness.lab.carry_out"), PYTHONPATH=_checkout())
    if runs.status != 0:
        pytest.skip(f"{OTHER} cannot run this Python: {runs.stderr.strip()[-200:]}")
    directory = Path(tempfile.mkdtemp(prefix="vfio-harness-elsewhere-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def _checkout() -> str:
    return os.fspath(paths.guest_dir().parent)


@pytest.fixture(name="planned")
def _planned(group_cdev: Kernel, tmp_path: Path) -> tuple[Plan, Path]:
    """The plan of a run on this host, with a program of the user's own, and the run's directory."""
    (tmp_path / "mine.c").write_text(PROGRAM, encoding="utf-8")
    own = ("--suite", "probes", "--program", f"{tmp_path}/mine.c -x /gone", "--case", "own/*")
    words = ("run", "--tree", TREE, "--topology", "edu", *own, "--case", CASES, "-n", "0")
    done = process.run([sys.executable, "-m", "harness", *words], deadline=Deadline.after(3600))
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    assert where is not None, done.stderr
    return load_plan(Path(where[1]) / "plan.json"), Path(where[1])


def _copy_of_store(job: Job, target: Path) -> Path:
    """Copy what *job* names by digest; nobody may write to the copy."""
    source = paths.cache_dir()
    wanted = [kernel_entry(job.kernel.digest), *Recipe.of(job).machine.parts().files]
    wanted += [selftests_entry(job.kernel.selftests)] if job.kernel.selftests else []
    wanted += map(paths.programs_entry, job.own.digests)
    for path in wanted:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        process.run(["cp", "--archive", "--reflink=auto", path, copy]).check("copying the store")
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222 | 0o444)
            if path.is_dir():
                path.chmod(0o555)
    return target


def test_job_names_no_path_of_its_host(planned: tuple[Plan, Path]) -> None:
    """What is left of a plan without the commands for people holds no absolute path."""
    plan, run_dir = planned
    text = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))
    jobs = json.dumps(text["jobs"])
    for path in (paths.cache_dir(), run_dir, Path.home(), Path.cwd(), Path(tempfile.gettempdir())):
        assert f"{path}/" not in jobs
        assert f'"{path}"' not in jobs
    assert plan.jobs[0].root.disks


def test_job_runs_elsewhere(planned: tuple[Plan, Path], plain: Path) -> None:
    """Same outcomes as another user, with another home and directory and a read-only copy of the store."""
    plan, run_dir = planned
    (job,) = plan.jobs
    expected = {str(case.address): case.outcome.value for case in load(run_dir).cases}
    assert expected["own/mine/exit"] == Outcome.PASS.value
    assert Outcome.PASS.value in expected.values()
    store = _copy_of_store(job, plain / "store")
    shutil.copyfile(run_dir / "plan.json", plain / "job.json")
    lab = plain / "lab"
    lab.mkdir()
    os.chown(lab, pwd.getpwnam(OTHER).pw_uid, -1)
    done = _run(
        _as_other(sys.executable, "-m", "harness.lab", str(plain / "job.json"), str(lab), "--job", job.name),
        HOME="/nonexistent",
        PYTHONPATH=_checkout(),
        VFIO_HARNESS_CACHE=str(store),
    )
    assert done.status == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    told = "\n".join(one["reason"] for one in results if one["outcome"] == "NOT_RUN")
    assert {one["address"]: one["outcome"] for one in results} == expected, f"{done.stderr}{told}"
    assert stat.S_IMODE(store.stat().st_mode) == 0o555
    assert {path.name for path in store.iterdir()} <= {"kernels", "images", "selftests", "programs"}
    assert {path.stat().st_uid for path in lab.rglob("console.log")} == {pwd.getpwnam(OTHER).pw_uid}


def test_missing_disk_is_refused(planned: tuple[Plan, Path], plain: Path) -> None:
    """Without the root disk that the job names no other one is taken."""
    _, run_dir = planned
    text = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))
    text["jobs"][0]["root"]["disks"]["root"] = "0" * 24
    (plain / "job.json").write_text(json.dumps(text), encoding="utf-8")
    done = _run(
        [sys.executable, "-m", "harness.lab", str(plain / "job.json"), str(plain / "lab")],
        HOME=os.environ["HOME"],
        PYTHONPATH=_checkout(),
        VFIO_HARNESS_CACHE=str(paths.cache_dir()),
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    tried = [one for one in results if one["outcome"] != Outcome.SKIP.value]
    assert tried
    assert {one["cause"] for one in tried} == {"root-missing"}, done.stderr
