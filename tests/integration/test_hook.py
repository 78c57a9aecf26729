# SPDX-License-Identifier: GPL-2.0-only
"""A push to a bare repository runs the harness: git sets GIT_DIR and more in its hooks.

The tree is fake: its Makefile copies the kernel of the other tests.  Everything else is real.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.base import itself, paths, process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode
from harness.kernel.kconfig import ResolvedConfig, read_fragment
from harness.kernel.provide import Kernel

CASE = "probes/nodes/iommufd_node_is_for_its_group"

MAKEFILE = """\
VERSION = {version}
PATCHLEVEL = {patchlevel}
SUBLEVEL = {sublevel}

tinyconfig olddefconfig:
	@cp {kernel}/config $(O)/.config

vmlinux $(O)/vmlinux:
	@cp {kernel}/vmlinux $(O)/vmlinux
	@mkdir -p $(O)/include/config && echo {release} > $(O)/include/config/kernel.release
"""

HOOK = """\
#!/bin/sh
while read -r old new ref; do
	{run} --tree ".@$new" >{out}/$new.json 2>{out}/$new.log </dev/null
	echo "exit $?"
done
"""


def git(directory: Path, *words: str) -> str:
    identity = ("-c", "user.name=A. Developer", "-c", "user.email=dev@example.org")
    return process.run(["git", "-C", directory, *identity, *words]).check("git").stdout.strip()


def make_tree(path: Path, kernel: Kernel) -> None:
    """Write a tree that looks like Linux to the harness and builds *kernel*."""
    for name in ("drivers/empty", "scripts/empty", "Kbuild", "MAINTAINERS"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    version, patchlevel, sublevel = kernel.release.split(".")
    makefile = MAKEFILE.format(
        version=version,
        patchlevel=patchlevel,
        sublevel=sublevel,
        kernel=kernel.vmlinux.parent,
        release=kernel.release,
    )
    (path / "Makefile").write_text(makefile, encoding="utf-8")
    files = paths.kconfigs_dir().glob("*.config")
    asked = {setting.symbol for file in files for setting in read_fragment(file).settings}
    built = ResolvedConfig.parse(kernel.config.read_text(encoding="utf-8")).values
    # The tree's symbols decide which no-IOMMU variants it supports.
    symbols = sorted({*(symbol for symbol in asked if "NOIOMMU" not in symbol), *built})
    text = "".join(f'config {symbol}\n    tristate "x"\n' for symbol in symbols)
    (path / "Kconfig").write_text(text, encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, group_cdev: Kernel) -> Path:
    """A checkout with one commit, whose origin is the bare repository beside it."""
    checkout = tmp_path / "linux"
    make_tree(checkout, group_cdev)
    git(checkout, "init", "--quiet", "--initial-branch=main")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=one")
    git(tmp_path, "init", "--quiet", "--bare", "bare.git")
    git(checkout, "remote", "add", "origin", str(tmp_path / "bare.git"))
    return checkout


def write_hook(path: Path, text: str, out: Path, words: Sequence[str] = ()) -> None:
    """Write the hook *path*, which leaves what the harness printed in *out*."""
    run = itself.argv(
        ["run", "-n", "0", "--no-compare", "--json", "--topology", "edu", "--case", CASE, *words]
    )
    python_path = itself.env()["PYTHONPATH"]
    runs = os.environ["VFIO_HARNESS_RUNS"]
    command = shlex.join(["env", f"PYTHONPATH={python_path}", f"VFIO_HARNESS_RUNS={runs}", *run])
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(run=command, out=out), encoding="utf-8")
    path.chmod(0o755)


def report_of(out: Path, name: str) -> dict[str, Any]:
    log = (out / f"{name}.log").read_text(encoding="utf-8")
    assert (out / f"{name}.json").stat().st_size, log
    return dict(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))


def test_each_push_to_a_bare_repository_is_judged(checkout: Path, tmp_path: Path) -> None:
    """Two pushes are two runs, each of its own commit; the repository is left alone."""
    bare = tmp_path / "bare.git"
    write_hook(bare / "hooks" / "post-receive", HOOK, tmp_path)
    for text in ("one", "two"):
        (checkout / "drivers" / "new.c").write_text(f"/* {text} */\n", encoding="utf-8")
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", f"--message={text}")
        commit = git(checkout, "rev-parse", "HEAD")
        done = process.run(["git", "-C", checkout, "push", "origin", "main"], deadline=Deadline.after(3600))
        assert done.ok, done.stderr
        assert f"exit {ExitCode.GOOD:d}" in done.stderr, (tmp_path / f"{commit}.log").read_text()
        (job,) = report_of(tmp_path, commit)["jobs"]
        assert commit[:12] in job["tree"]
        assert git(bare, "rev-parse", "main") == commit
        assert not (bare / "runs").exists()


def test_commit_in_a_checkout_is_judged(checkout: Path, tmp_path: Path) -> None:
    """A hook of the checkout has GIT_INDEX_FILE set, which may be another index than the checkout's."""
    text = '#!/bin/sh\n{run} --tree . >{out}/commit.json 2>{out}/commit.log </dev/null\necho "exit $?"\n'
    write_hook(checkout / ".git" / "hooks" / "post-commit", text, tmp_path)
    (checkout / "drivers" / "new.c").write_text("/* three */\n", encoding="utf-8")
    git(checkout, "add", "--all")
    words = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = process.run([*words, "commit", "--message=three", "drivers/new.c"], deadline=Deadline.after(3600))
    assert f"exit {ExitCode.GOOD:d}" in done.stdout + done.stderr, (tmp_path / "commit.log").read_text()
    (job,) = report_of(tmp_path, "commit")["jobs"]
    assert git(checkout, "rev-parse", "HEAD")[:12] in job["tree"]
    assert "local changes" not in job["tree"]
