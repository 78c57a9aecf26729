# SPDX-License-Identifier: GPL-2.0-only
"""What a verb asked for is saved and loaded, from any directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernel.arch import ARCHES, host_arch
from harness.session.wishes import (
    Conduct,
    JobWish,
    KernelWish,
    MachineWish,
    line_of,
    load_wishes,
    save_wishes,
    split_program,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home directory with `linux` in it the current directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "linux").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("linux", "{home}/linux"),
        ("./linux", "{home}/linux"),
        ("~/linux", "{home}/linux"),
        ("~/linux@topic", "{home}/linux@topic"),
        ("linux@topic/a", "{home}/linux@topic/a"),
        ("@topic", "{home}@topic"),
        ("debian:7.3", "debian:7.3"),
        (None, "debian:latest"),
        ("nowhere@topic", "nowhere@topic"),
    ],
)
def test_a_tree_is_said_so_that_it_is_found(home: Path, spec: str | None, line: str) -> None:
    """The line of development and the repeated command have absolute paths."""
    said = line.format(home=home)
    assert line_of(spec) == said
    assert KernelWish(tree=spec, variant="cdev").options() == ["--tree", said, "--variant", "cdev"]


def test_a_toolchain_is_repeated_unless_it_is_the_default() -> None:
    wish = KernelWish(tree="/", variant="cdev", toolchain="llvm-19")
    assert wish.options() == ["--tree", "/", "--variant", "cdev", "--toolchain", "llvm-19"]
    assert (wish.name, KernelWish(tree="/", variant="cdev").name) == ("cdev-llvm-19", "cdev")


def test_an_architecture_is_repeated_unless_it_is_that_of_this_host() -> None:
    foreign = next(arch.name for arch in ARCHES.values() if arch.label)
    wish = KernelWish(tree="/", variant="cdev", arch=foreign)
    assert wish.options() == ["--tree", "/", "--variant", "cdev", "--arch", foreign]
    assert wish.name == f"cdev-{foreign}"
    assert KernelWish(tree="/", variant="cdev", arch=host_arch().name).name == "cdev"


def test_what_is_kept_is_found_from_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run uses the same files from another directory."""
    kernel = KernelWish(tree="linux", variant="cdev", configs=(Path("my.config"),))
    wish = JobWish(kernel=kernel, machine=MachineWish(topology="./my.yaml"))
    conduct = Conduct(cases=("probes/*",), elsewhere=("debian:7.3 cdev edu",))
    save_wishes(home, [wish], conduct)
    monkeypatch.chdir("/")
    ((found,), kept) = load_wishes(home)
    assert kept == conduct
    assert found.kernel.tree == str(home / "linux")
    assert found.kernel.configs == (home / "my.config",)
    assert found.machine.topology == str(home / "my.yaml")


def test_a_program_may_have_more_arguments_than_a_name_has_room() -> None:
    assert split_program(f"./x.c {'a' * 300}") == (Path("x.c"), ["a" * 300])
