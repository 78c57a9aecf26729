# SPDX-License-Identifier: GPL-2.0-only
"""Children get a short, named environment; what the caller's shell exports decides nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.base import itself, process
from harness.base.environment import PASS_VARIABLE, environment, warn_ignored
from harness.base.errors import UsageError
from harness.kernel import gittree

NONSENSE = (
    *(
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_CONFIG_GLOBAL",
        "GIT_CONFIG_COUNT",
        "GIT_CEILING_DIRECTORIES",
    ),
    *("CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("KBUILD_OUTPUT", "KBUILD_EXTRA_WARN", "KCONFIG_ALLCONFIG", "KCONFIG_CONFIG", "KCFLAGS", "KAFLAGS"),
    *(
        "MAKEFLAGS",
        "GNUMAKEFLAGS",
        "MFLAGS",
        "MAKEFILES",
        "LLVM",
        "CC",
        "LD",
        "HOSTCC",
        "CROSS_COMPILE",
        "ARCH",
        "O",
    ),
    *(
        "PYTEST_ADDOPTS",
        "PYTEST_PLUGINS",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "SSH_AUTH_SOCK",
        "LANGUAGE",
    ),
)


@pytest.fixture(autouse=True)
def told_anew() -> Iterator[None]:
    warn_ignored.cache_clear()
    yield
    warn_ignored.cache_clear()


@pytest.fixture
def nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NONSENSE:
        monkeypatch.setenv(name, "/no/such/nonsense")


def printed(**extra: str) -> dict[str, str]:
    """The environment that a child sees."""
    done = process.run(["env", "-0"], env=extra).check("asking a child")
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


@pytest.mark.usefixtures("nonsense")
def test_the_callers_variables_do_not_reach_children() -> None:
    seen = printed(MORE="1")
    assert not set(NONSENSE) & set(seen)
    assert (seen["LC_ALL"], seen["MORE"]) == ("C", "1")


def test_what_children_need_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        name: f"/{name}"
        for name in ("HOME", "TMPDIR", "USER", "LOGNAME", "XDG_CACHE_HOME", "VFIO_HARNESS_RUNS")
    }
    wanted |= {name: f"proxy:{name}" for name in ("http_proxy", "HTTPS_PROXY", "no_proxy", "ALL_PROXY")}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    assert wanted.items() <= printed().items()
    assert printed()["PATH"] == os.environ["PATH"]


def test_a_setting_passes_more_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("CCACHE_DIR", "/ccache")
    assert "SSH_AUTH_SOCK" not in environment()
    monkeypatch.setenv(PASS_VARIABLE, "SSH_AUTH_SOCK, CCACHE_DIR")
    assert (environment()["SSH_AUTH_SOCK"], environment()["CCACHE_DIR"]) == ("/agent", "/ccache")


def test_what_changes_a_kernel_cannot_be_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASS_VARIABLE, "KCFLAGS CC")
    with pytest.raises(UsageError, match=f"{PASS_VARIABLE} cannot pass CC, KCFLAGS"):
        environment()


@pytest.mark.usefixtures("nonsense")
def test_git_reads_the_tree_it_is_pointed_at(tmp_path: Path) -> None:
    gittree.git(tmp_path, ["init", "--quiet", "tree"]).check("git init")
    assert gittree.repository_root(tmp_path / "tree") == tmp_path / "tree" / ".git"


@pytest.mark.usefixtures("nonsense")
def test_what_is_ignored_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    with caplog.at_level(logging.WARNING):
        warn_ignored("--toolchain llvm")
        warn_ignored("--toolchain llvm")
    build, git, loader = (record.getMessage() for record in caplog.records)
    assert build.startswith("ignoring ARCH, CC, ")
    assert "LLVM" in build
    assert "MAKEFLAGS" in build
    assert build.endswith(": --toolchain llvm chooses compiler and linker")
    assert "GIT_DIR" in git
    assert PASS_VARIABLE in loader


def test_nothing_is_told_of_what_make_sets_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name not in ("PATH", "HOME")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setenv("MAKEFLAGS", "-j8")
    monkeypatch.setenv("CC", "")
    with caplog.at_level(logging.WARNING):
        warn_ignored("x")
    assert not caplog.records


def test_the_harness_keeps_terminal_and_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CC", "clang")
    own = printed(**itself.env())
    assert (own["LC_ALL"], own["TERM"]) == ("de_DE.UTF-8", "xterm")
    assert "CC" not in own
