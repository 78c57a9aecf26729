# SPDX-License-Identifier: GPL-2.0-only
"""A toolchain is a row, and the only place that knows compilers and linkers by name."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

import harness.kernel
from harness.base.errors import HostError, InfraError, UsageError
from harness.base.process import find_tool
from harness.kernel.arch import host_arch
from harness.kernel.hostneeds import build_needs, require_build_tools
from harness.kernel.toolchain import GCC, TOOLCHAINS, find_toolchain, label_of, named_in

_NAMES = re.compile(r"\b(?:gcc|clang|binutils)\b|\"ld\"|\b(?:HOST)?(?:CC|LD)=|\bCROSS_COMPILE=|\bLLVM=")


def test_nothing_else_names_a_compiler() -> None:
    directory = Path(harness.kernel.__file__).parent
    naming = [path.name for path in directory.glob("*.py") if _NAMES.search(path.read_text(encoding="utf-8"))]
    assert naming == ["toolchain.py"]


@pytest.mark.parametrize(
    ("name", "programs", "arguments"),
    [
        ("gcc", ("gcc", "ld"), ()),
        ("gcc-13", ("gcc-13", "ld"), ("CC=gcc-13", "HOSTCC=gcc-13")),
        ("llvm", ("clang", "ld.lld"), ("LLVM=1",)),
        ("llvm-19", ("clang-19", "ld.lld-19"), ("LLVM=-19",)),
        (
            "x86_64-linux-gnu-",
            ("x86_64-linux-gnu-gcc", "x86_64-linux-gnu-ld"),
            ("CROSS_COMPILE=x86_64-linux-gnu-",),
        ),
        (
            "/opt/x/bin/x86_64-linux-",
            ("/opt/x/bin/x86_64-linux-gcc", "/opt/x/bin/x86_64-linux-ld"),
            ("CROSS_COMPILE=/opt/x/bin/x86_64-linux-",),
        ),
    ],
)
def test_names(name: str, programs: tuple[str, str], arguments: tuple[str, ...]) -> None:
    found = find_toolchain(name)
    assert (found.name, found.programs, found.make_arguments) == (name, programs, arguments)


def test_a_versioned_cross_compiler_leaves_the_hosts_alone() -> None:
    found = dataclasses.replace(find_toolchain("gcc-13"), prefix="aarch64-linux-gnu-")
    assert found.programs == ("aarch64-linux-gnu-gcc-13", "aarch64-linux-gnu-ld")
    assert found.make_arguments == ("CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc-13")


def fake_tools(directory: Path, version: str, *names: str) -> None:
    """Make programs that only print *version*; the compilers say that they compile for x86_64."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = directory / name
        path.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo '{version}' || echo x86_64-linux\n")
        path.chmod(0o755)


def llvm_tools(suffix: str = "") -> list[str]:
    row = TOOLCHAINS["llvm"]
    return [name + suffix for name in (row.compiler, row.linker, *row.binutils)]


def test_a_directory_has_the_toolchain_that_is_in_it(tmp_path: Path) -> None:
    """kbuild takes a directory in LLVM= and in CROSS_COMPILE=."""
    for name, tools in (("llvm", llvm_tools()), ("gcc", ["gcc", "ld", *GCC.binutils])):
        fake_tools(tmp_path / name, "x 1.0", *tools)
        found = find_toolchain(f"{tmp_path / name}/")
        variable = "LLVM" if name == "llvm" else "CROSS_COMPILE"
        assert found.make_arguments == (f"{variable}={tmp_path / name}/",)
        assert found.is_complete


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clang", "did you mean 'llvm'?"),
        ("clang-19", "did you mean 'llvm-19'?"),
        ("lvm-19", "did you mean 'llvm'?"),
        ("xyz", "known: gcc, llvm, llvm-19 and such"),
        ("a b-", "known: "),
        ("gcc-", ""),
        ("gcc-013", "did you mean 'gcc'?"),
        ("bin/x-", "give an absolute path"),
    ],
)
def test_a_name_that_means_nothing(name: str, hint: str) -> None:
    if not hint:
        assert find_toolchain(name).prefix == name
        return
    with pytest.raises(UsageError) as caught:
        find_toolchain(name)
    assert hint in str(caught.value)


def test_labels_are_parts_of_names() -> None:
    names = ("llvm-19", "x86_64-linux-gnu-", "/opt/x/bin/x86_64-linux-", "/opt/llvm/bin/")
    assert [label_of(name) for name in names] == [
        "llvm-19",
        "x86_64-linux-gnu",
        "opt-x-bin-x86_64-linux",
        "opt-llvm-bin",
    ]
    assert find_toolchain("gcc").label == ""


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([("", 19), ("-22", 22)], ""),
        ([("", 14), ("-19", 19), ("-22", 22)], "-22"),
        ([("", 14), ("-16", 16)], ""),
        ([("-19", 19)], "-19"),
        ([], ""),
    ],
)
def test_without_a_version_it_is_one_that_linux_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[tuple[str, int]], chosen: str
) -> None:
    """The one without a suffix, the newest if that is too old, as in Debian 12."""
    (tmp_path / "setpriv").symlink_to(find_tool("setpriv") or "")
    monkeypatch.setattr("harness.base.process._search_path", lambda _env: str(tmp_path))
    for suffix, major in there:
        fake_tools(tmp_path, f"Debian clang version {major}.0.6", *llvm_tools(suffix))
    assert find_toolchain("llvm").resolve(host_arch()).suffix == chosen
    assert find_toolchain("llvm-16").resolve(host_arch()).suffix == "-16"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")
def test_identity_is_what_the_programs_say() -> None:
    identity = GCC.resolve(host_arch()).identify(host_arch())
    assert identity.compiler.startswith("gcc ")
    assert str(identity) == f"{identity.compiler}; {identity.linker}"


def test_a_compiler_of_another_architecture_is_refused(tmp_path: Path) -> None:
    fake_tools(tmp_path, "gcc (GCC) 14.2.0", "x-gcc", "x-ld")
    other = dataclasses.replace(host_arch(), name="riscv64", host="riscv64")
    found = find_toolchain(f"{tmp_path}/x-")
    with pytest.raises(UsageError, match="x-gcc compiles for x86_64-linux, not for riscv64"):
        found.identify(other)


def test_a_compiler_that_cannot_be_run_is_the_hosts_fault(tmp_path: Path) -> None:
    fake_tools(tmp_path, "", "x-gcc", "x-ld")
    with pytest.raises(HostError, match="x-gcc --version printed no version"):
        find_toolchain(f"{tmp_path}/x-").identify(host_arch())
    (tmp_path / "x-gcc").write_text("#!/bin/sh\nkill -11 $$\n")
    with pytest.raises(HostError, match="x-gcc --version was killed by SIGSEGV"):
        find_toolchain(f"{tmp_path}/x-").identify(host_arch())


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "no-such-",
            "no-such-gcc, no-such-ld, no-such-as and 6 more",
            "install gcc-no-such binutils-no-such, ",
        ),
        (
            "gcc-99",
            "gcc-99",
            "install gcc-99 libc6-dev, or run: vfio-harness doctor --toolchain gcc-99 --fix",
        ),
        (
            "llvm-99",
            "clang-99, ld.lld-99, llvm-ar-99 and 5 more",
            "install clang-99 libc6-dev lld-99 llvm-99, ",
        ),
        ("/no/x-", "/no/x-gcc, /no/x-ld, /no/x-as and 6 more", "check the prefix /no/x-"),
    ],
)
def test_a_missing_compiler_is_named(name: str, message: str, hint: str) -> None:
    toolchain = find_toolchain(name)
    with pytest.raises(InfraError) as caught:
        require_build_tools(toolchain)
    assert caught.value.message == f"a kernel build needs {message}"
    assert (caught.value.hint or "").startswith(hint)
    assert len({need.name for need in build_needs(toolchain)}) == len(build_needs(toolchain))


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"LLVM": "1"}, "llvm"),
        ({"LLVM": "-19", "CC": "gcc"}, "llvm-19"),
        ({"LLVM": "/opt/llvm/bin/"}, "/opt/llvm/bin/"),
        ({"LLVM": "0"}, ""),
        ({"CC": "ccache gcc-13"}, "gcc-13"),
        ({"CC": "clang-19"}, "llvm-19"),
        ({"CC": "gcc"}, "gcc"),
        ({"CC": "aarch64-linux-gnu-gcc"}, "aarch64-linux-gnu-"),
        ({"CC": "/opt/b/gcc"}, "/opt/b/"),
        ({"CC": "icc"}, ""),
        ({"CROSS_COMPILE": "x86_64-linux-gnu-"}, "x86_64-linux-gnu-"),
        ({}, ""),
    ],
)
def test_what_the_callers_variables_mean(environ: dict[str, str], name: str) -> None:
    """They do not reach a build, but the message that says so has the option to use."""
    assert named_in(environ) == name
