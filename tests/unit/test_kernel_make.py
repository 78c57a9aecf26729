# SPDX-License-Identifier: GPL-2.0-only
"""make runs in a clean environment, its errors are told in a line, its progress is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import process
from harness.errors import BuildError, InfraError
from harness.kernel.make import BuildProgress, first_errors, run_make

COMPILE_ERROR = """\
  CC      drivers/vfio/vfio_main.o
/src/drivers/vfio/vfio_main.c: In function 'f':
/src/drivers/vfio/vfio_main.c:12:2: error: 'x' undeclared (first use in this function)
make[4]: *** [/src/scripts/Makefile.build:289: drivers/vfio/vfio_main.o] Error 1
make[3]: *** [/src/scripts/Makefile.build:548: drivers/vfio] Error 2
make: *** [Makefile:248: __sub-make] Error 2
"""


def test_first_errors_are_the_compilers_not_makes() -> None:
    """What the user needs to read is the first error, not the chain of makes that gave up."""
    assert first_errors(COMPILE_ERROR) == [
        "/src/drivers/vfio/vfio_main.c:12:2: error: 'x' undeclared (first use in this function)"
    ]


def test_first_errors_of_other_trouble() -> None:
    """The linker, the top Makefile's own words, and something unknown."""
    assert first_errors("ld: main.o: undefined reference to `f'\n")[0].endswith("`f'")
    assert first_errors("***\n*** The source tree is not clean\n") == ["*** The source tree is not clean"]
    assert first_errors("a\nlast\n") == ["last"]


def makefile(path: Path, body: str) -> Path:
    (path / "Makefile").write_text(f"all:\n{body}", encoding="utf-8")
    return path


def test_steps_are_counted(tmp_path: Path) -> None:
    """Progress counts kbuild's short lines, and C files by themselves."""
    body = "".join(f"\t@echo '  {word}      {i}.o'\n" for i, word in enumerate(["CC", "CC [M]", "LD", "AR"]))
    seen: list[BuildProgress] = []
    made = run_make(
        makefile(tmp_path, body),
        [],
        tmp_path / "log",
        what="x",
        progress=seen.append,
        expected_steps=8,
    )
    assert (made.steps, made.compiled) == (4, 2)
    assert (seen[-1].done, seen[-1].total) == (4, 8)


def test_only_makes_own_processor_time_counts(tmp_path: Path) -> None:
    """A QEMU that ends while a kernel is built has nothing to do with what the kernel cost."""
    burn = f"{sys.executable} -c 'import time\nwhile time.process_time() < {{}}: pass'"
    (tmp_path / "burn.sh").write_text(burn.format(0.5), encoding="utf-8")
    another = iter([burn.format(1.0)])

    def run_another(_: BuildProgress) -> None:
        for command in another:
            process.run(["sh", "-c", command])

    made = run_make(
        makefile(tmp_path, "\t@sh burn.sh\n"),
        [],
        tmp_path / "log",
        what="x",
        progress=run_another,
    )
    assert 0.5 <= made.cpu_seconds < 1.0


def test_callers_variables_do_not_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither flags nor a cross compiler leak from the user's shell into a build."""
    monkeypatch.setenv("KCFLAGS", "-O0")
    monkeypatch.setenv("CROSS_COMPILE", "arm-")
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("KBUILD_BUILD_USER", "me")
    body = "\t@echo user=$$KBUILD_BUILD_USER flags=$$KCFLAGS cross=$$CROSS_COMPILE arch=$(ARCH)\n"
    run_make(makefile(tmp_path, body), [], tmp_path / "log", what="x")
    assert "user=vfio flags= cross= arch=x86_64" in (tmp_path / "log").read_text(encoding="utf-8")


def test_failure_is_a_build_error_with_the_log(tmp_path: Path) -> None:
    """The message has the compiler's word, the error the whole output, the hint the file."""
    body = "\t@echo 'x.c:1: error: no'; exit 1\n"
    with pytest.raises(BuildError, match=r"x failed: x\.c:1: error: no") as caught:
        run_make(makefile(tmp_path, body), [], tmp_path / "log", what="x")
    assert "error: no" in caught.value.log
    assert str(tmp_path / "log") in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fatal error: error writing to /x/y.s: No space left on device", "disk is full"),
        ("gcc: fatal error: Killed signal terminated program cc1", "want of memory"),
        ("collect2: fatal error: ld terminated with signal 9 [Killed]", "want of memory"),
        ("make[2]: *** [scripts/Makefile.vmlinux:72: vmlinux] Error 137", "want of memory"),
        ("make[2]: *** [scripts/Makefile.build:7: a.o] Killed", "want of memory"),
    ],
)
def test_host_trouble_is_not_the_kernels_fault(tmp_path: Path, words: str, message: str) -> None:
    """A full disk and a killed compiler say nothing about the tree."""
    with pytest.raises(InfraError, match=message):
        run_make(makefile(tmp_path, f"\t@echo '{words}'; exit 1\n"), [], tmp_path / "log", what="x")


def test_mark_outlives_only_a_killed_make(tmp_path: Path) -> None:
    """make cleans up after itself unless it is killed outright; then the mark tells the next build."""
    mark = tmp_path / "mark"
    run_make(makefile(tmp_path, "\t@test -e mark\n"), [], tmp_path / "log", what="x", mark=mark)
    assert not mark.exists()
    with pytest.raises(BuildError):
        run_make(makefile(tmp_path, "\t@exit 1\n"), [], tmp_path / "log", what="x", mark=mark)
    assert not mark.exists()
    with pytest.raises(InfraError, match="killed by signal 9"):
        run_make(makefile(tmp_path, "\t@kill -9 $$PPID\n"), [], tmp_path / "log", what="x", mark=mark)
    assert mark.exists()
