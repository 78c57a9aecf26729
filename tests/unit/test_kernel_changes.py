# SPDX-License-Identifier: GPL-2.0-only
"""The lines that differ, read from git's diff."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.kernel.changes import Change, find_changes, parse_diff, read_file

DIFF = """\
diff --git a/drivers/vfio/group.c b/drivers/vfio/group.c
index 1..2 100644
--- a/drivers/vfio/group.c
+++ b/drivers/vfio/group.c
@@ -10,2 +10 @@ int f(void)
-	a();
--- a/looks/like/a/header
+	b();
@@ -20,0 +20,2 @@ int g(void)
+	c();
+	d();
diff --git a/Kconfig b/Kconfig
new file mode 100644
--- /dev/null
+++ b/Kconfig
@@ -0,0 +1 @@
+config X
\\ No newline at end of file
diff --git a/logo.bin b/logo.bin
Binary files a/logo.bin and b/logo.bin differ
"""


def test_hunks_of_each_file() -> None:
    assert list(parse_diff(DIFF)) == [
        Change("drivers/vfio/group.c", frozenset({10, 11}), frozenset({10, 20, 21})),
        Change("Kconfig", frozenset(), frozenset({1})),
        Change("logo.bin", frozenset(), frozenset()),
    ]


def test_no_difference() -> None:
    assert list(parse_diff("")) == []


BEFORE, AFTER = "a\nb\nc\nd\n", "a\nB\f\rB\nc\nD\n"
NAMES = ("plain.c", "with blank b/x.c", "ä.c", 'quote"\t\n\\.c', "-")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    "setting",
    [
        "diff.noprefix=true",
        "diff.mnemonicPrefix=true",
        "diff.srcPrefix=x/",
        "diff.dstPrefix=y/",
        "diff.interHunkContext=9",
        "diff.context=9",
        "diff.external=false",
        "core.quotePath=false",
    ],
)
def test_every_name_is_read_whatever_the_user_has_set(tmp_path: Path, setting: str) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(text: str) -> str:
        for name in NAMES:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, newline="")
        run("add", "-A")
        run("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "m")
        return run("rev-parse", "HEAD")

    run("init", "-q")
    run("config", *setting.split("="))
    before, after = commit(BEFORE), commit(AFTER)
    changes = find_changes(tmp_path, before, after)
    assert {(one.name, one.before, one.after) for one in changes} == {
        (name, frozenset({2, 4}), frozenset({2, 4})) for name in NAMES
    }
    assert all(read_file(tmp_path, after, one.name) == AFTER for one in changes)
