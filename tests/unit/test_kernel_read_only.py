# SPDX-License-Identifier: GPL-2.0-only
"""A cache that cannot be written to still gives the kernels that are in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_fake_tree import git, make_fake_tree, needs_build_tools

from harness.base.errors import SourceError
from harness.kernel import debian
from harness.kernel.provide import Kernel, provide_kernel
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

pytestmark = needs_build_tools


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    for name, value in {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Path:
    return make_fake_tree(tmp_path / "linux")


@pytest.fixture
def repository(source: Path) -> Path:
    git(source, "init", "--quiet", "--initial-branch=main")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message=one")
    return source


def provide(spec: str | Path, name: str = "group-cdev") -> Kernel:
    return provide_kernel(open_tree(str(spec)), load_catalogue().variant(name), compilers=1)


CHILD = """\
import errno, os, sys

from harness.kernel.provide import provide_kernel
from harness.kernel.store import hold
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

how, cache, spec = sys.argv[1:]

def refuse(event, args):
    wrote = event in ("os.mkdir", "os.rename", "os.remove", "os.utime", "os.rmdir")
    wrote = wrote or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if wrote and str(args[0]).startswith(cache):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), args[0])

if how == "hook":
    sys.addaudithook(refuse)
try:
    open(f"{cache}/probe", "w")
    sys.exit("the cache can be written to")
except OSError:
    pass
kernel = provide_kernel(open_tree(spec), load_catalogue().variant("group-cdev"), compilers=1)
with hold(kernel.digest):
    print(kernel.digest)
"""

MOUNTED = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def run_child(how: str, cache: Path, spec: str) -> str:
    """Do in a read-only cache what a run does: by a mount of the child's own, or by an audit hook."""
    argv = [sys.executable, "-c", CHILD, how, str(cache), spec]
    if how == "mount":
        maps = [] if os.geteuid() == 0 else ["--map-root-user"]
        enter = ["unshare", "--mount", *maps, "sh", "-c", MOUNTED, "sh", str(cache)]
        if (
            shutil.which("unshare") is None
            or subprocess.run([*enter, "true"], capture_output=True).returncode
        ):
            pytest.skip("this host lets us mount nothing")
        argv = [*enter, *argv]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def offline() -> list[debian.DebianSource]:
    raise SourceError("no network")


@pytest.mark.parametrize("how", ["mount", "hook"])
@pytest.mark.parametrize("locks", ["with locks", "without locks"])
@pytest.mark.parametrize("kind", ["directory", "debian"])
def test_finished_kernel_is_found(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, locks: str, how: str
) -> None:
    """All that is needed is there: no lock is waited for and nothing is asked of a mirror."""
    spec = str(source)
    if kind == "debian":
        monkeypatch.setattr(debian, "find_candidates", offline)
        shutil.copytree(source, cache / "sources" / "debian" / "linux-source-7.3_7.3.0-1")
        spec = "debian:7.3"
    kernel = provide(spec)
    if locks == "without locks":
        shutil.rmtree(cache / "locks")
    assert run_child(how, cache, spec) == kernel.digest


@pytest.mark.parametrize("how", ["mount", "hook"])
def test_finished_kernel_of_a_ref_is_found(repository: Path, cache: Path, how: str) -> None:
    """A worktree that is at the right commit already needs no writing either."""
    spec = f"{repository}@main"
    kernel = provide(spec)
    assert run_child(how, cache, spec) == kernel.digest
