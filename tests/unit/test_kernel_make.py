# SPDX-License-Identifier: GPL-2.0-only
"""make runs in a clean environment, its errors are told in a line, its progress is counted."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from harness.base import process
from harness.base.cause import Cause
from harness.base.errors import BuildError, InfraError
from harness.kernel.arch import host_arch
from harness.kernel.make import BuildProgress, Make, MakeResult, Progress, ignore_progress
from harness.kernel.toolchain import GCC

COMPILE_ERROR = """\
  CC      drivers/vfio/vfio_main.o
/src/drivers/vfio/vfio_main.c: In function 'f':
/src/drivers/vfio/vfio_main.c:12:2: error: 'x' undeclared (first use in this function)
make[4]: *** [/src/scripts/Makefile.build:289: drivers/vfio/vfio_main.o] Error 1
make[3]: *** [/src/scripts/Makefile.build:548: drivers/vfio] Error 2
make: *** [Makefile:248: __sub-make] Error 2
"""


def fail(tree: Path, output: str) -> BuildError | InfraError:
    """What comes of a make that prints *output* and fails."""
    (tree / "printed").write_text(output, encoding="utf-8")
    with pytest.raises((BuildError, InfraError)) as caught:
        run_make(makefile(tree, "\t@cat printed; exit 1\n"))
    assert isinstance(caught.value, BuildError | InfraError)
    return caught.value


def test_first_errors_are_the_compilers_not_makes(tmp_path: Path) -> None:
    """What the user needs to read is the first error, not the chain of makes that gave up."""
    assert fail(tmp_path, COMPILE_ERROR).message == (
        "x failed: /src/drivers/vfio/vfio_main.c:12:2: error: 'x' undeclared (first use in this function)"
    )


def test_last_word_of_a_tool_is_told(tmp_path: Path) -> None:
    """Where no compiler spoke, the line that tells most is shown, not make's."""
    told = fail(tmp_path, "***\n*** The source tree is not clean\nmake: *** [Makefile:2: x] Error 1\n")
    assert "*** The source tree is not clean" in told.message
    assert fail(tmp_path, "a\nthe last\nmake: *** [Makefile:2: x] Error 1\n").message.endswith(": the last")


def makefile(path: Path, body: str) -> Path:
    (path / "Makefile").write_text(f"all:\n{body}", encoding="utf-8")
    return path


def run_make(
    tree: Path,
    *,
    progress: Progress = ignore_progress,
    expected_steps: int | None = None,
    mark: Path | None = None,
) -> MakeResult:
    make = Make(tree=tree, log=tree / "log", arch=host_arch(), toolchain=GCC, progress=progress)
    return make.run([], what="x", expected_steps=expected_steps, mark=mark)


def test_steps_are_counted(tmp_path: Path) -> None:
    """Progress counts kbuild's short lines, and C files by themselves."""
    body = "".join(f"\t@echo '  {word}      {i}.o'\n" for i, word in enumerate(["CC", "CC [M]", "LD", "AR"]))
    seen: list[BuildProgress] = []
    made = run_make(
        makefile(tmp_path, body),
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
    run_make(makefile(tmp_path, body))
    assert "user=vfio flags= cross= arch=x86_64" in (tmp_path / "log").read_text(encoding="utf-8")


def test_failure_is_a_build_error_with_the_log(tmp_path: Path) -> None:
    """The message has the compiler's word, the error the whole output, the hint the file."""
    body = "\t@echo 'x.c:1: error: no'; exit 1\n"
    with pytest.raises(BuildError, match=r"x failed: x\.c:1: error: no") as caught:
        run_make(makefile(tmp_path, body))
    assert caught.value.cause is Cause.COMPILER
    assert "error: no" in caught.value.log
    assert str(tmp_path / "log") in (caught.value.hint or "")


KERNELS = {
    "compiler": "drivers/vfio/x.c:12:2: error: 'x' undeclared",
    "warning as an error": "x.c:3:9: error: unused variable 'a' [-Werror=unused-variable]",
    "missing header of the tree": "x.c:3:10: fatal error: linux/no_such.h: No such file or directory",
    "header that kernel code may not include": "x.c:3:10: fatal error: stdio.h: No such file or directory",
    "#error with the words of the host": "x.c:3:2: error: #error Permission denied",
    "assembler": "arch/x86/entry/x.S:7: Error: no such instruction: `nope'",
    "inline assembly": "{standard input}:1234: Error: bad register name `%rax0'",
    "assembly as a whole": "{standard input}: Error: open CFI at the end of file; missing .cfi_endproc",
    "linker": "ld: drivers/vfio/x.o: in function `f': x.c:(.text+0x9): undefined reference to `g'",
    "lld": "ld.lld: error: undefined symbol: g",
    "lld with a suffix": "ld.lld-19: error: duplicate symbol: f",
    "lld about a relocation": "ld.lld: error: r.o:(function f: .text+0x5): relocation R_X86_64_PLT32 out of "
    "range: 140737488351158 is not in [-2147483648, 2147483647]; references 'f'",
    "lld about a section": "ld.lld: error: section .a virtual address range overlaps with .b",
    "lld about a region": "ld.lld: error: section '.a' will not fit in region 'r': overflowed by 90 bytes",
    "lld about a script": "ld.lld: error: arch/x86/kernel/vmlinux.lds:1: malformed number: ;",
    "clang": "drivers/vfio/x.c:1:21: error: use of undeclared identifier 'x'",
    "clang, warning as an error": "x.c:1:23: error: unused variable 'a' [-Werror,-Wunused-variable]",
    "clang, missing header of the tree": "x.c:1:10: fatal error: 'linux/none.h' file not found",
    "clang, missing header of the command line": "<built-in>:1:10: fatal error: 'none.h' file not found",
    "clang, #error": "x.c:1:2: error: Permission denied",
    "clang, inline assembly": "x.c:1:28: error: invalid instruction mnemonic 'nope'",
    "clang, assembler": "arch/x86/entry/x.S:1:2: error: no matching '.endmacro' in definition",
    "clang, assembly after the preprocessor": "/tmp/cfi-8a9f36.s:9:1: error: Unfinished frame!",
    "clang, frame": "x.c:1:6: error: stack frame size (9) exceeds limit (4) in 'f' [-Werror,-Wframe-large]",
    "twice": "ld: b.o:(.data+0x0): multiple definition of `f'; a.o:(.data+0x0): first defined here",
    "modpost": 'ERROR: modpost: "g" [drivers/vfio/x.ko] undefined!',
    "objtool": "vmlinux.o: error: objtool: f+0x1: unreachable instruction",
    "device tree": "Error: arch/arm64/boot/dts/x.dts:3.1-2 syntax error",
    "rust": "error[E0425]: cannot find value `x` in this scope\n   --> drivers/x.rs:3:9",
    "rust without a code": "error: cannot find macro `x` in this scope\n --> drivers/x.rs:3:9",
    "what gcc cannot compile": "x.c:3:1: sorry, unimplemented: __int128 is not supported on this target",
    "linker about certs": "ld: certs/x.o: in function `f': x.c:(.text+0x9): undefined reference to `g'",
    "makefile": "drivers/vfio/Makefile:3: *** missing separator.  Stop.",
    "source that its makefile names": "make[3]: *** No rule to make target 'init/none.o', needed by 'x'.",
    "directory that its makefile names": "make[3]: *** No rule to make target '{tree}/none/Makefile'.  Stop.",
}


@pytest.mark.parametrize("words", KERNELS.values(), ids=KERNELS)
def test_what_refuses_the_source_is_the_kernels_fault(tmp_path: Path, words: str) -> None:
    words = words.replace("{tree}", str(tmp_path))
    # What quotes the source is no word of the host.
    quoted = '   12 |  pr_err("No space left on device");\n      |  ^~~~ Permission denied\n'
    error = fail(tmp_path, f"  CC      x.o\n{words}\n{quoted}make: *** [Makefile:2: x] Error 1\n")
    assert isinstance(error, BuildError)
    assert error.cause is Cause.COMPILER
    assert error.message == "x failed: " + re.sub(r"\n\s+", " ", words)


@pytest.mark.parametrize(
    "probe", ["/bin/sh: 1: pahole: not found", "gcc: error: unrecognized command-line option '-Wx'"]
)
def test_what_a_makefile_probes_for_does_not_hide_the_compilers_word(tmp_path: Path, probe: str) -> None:
    """make went on after it; where it did not, the host is to blame, as below."""
    assert fail(tmp_path, f"{probe}\n{COMPILE_ERROR}").message == fail(tmp_path, COMPILE_ERROR).message
    assert isinstance(
        fail(tmp_path, f"{probe}\n  CC      x.o\nmake: *** [Makefile:7: y.o] Error 1\n"), InfraError
    )


@pytest.mark.parametrize(
    "words",
    [
        "Kconfig:12: syntax error",
        "drivers/vfio/Kconfig:3:error: recursive dependency detected!",
        'drivers/Kconfig:5: can\'t open file "drivers/none/Kconfig"',
    ],
)
def test_kconfigs_own_word_is_the_kernels_fault(tmp_path: Path, words: str) -> None:
    error = fail(tmp_path, f"init/Kconfig:1:warning: x\n{words}\nmake: *** [Makefile:2: x] Error 1\n")
    assert isinstance(error, BuildError)
    assert (error.cause, error.message) == (Cause.KCONFIG, f"x failed: {words}")


HOSTS = {
    "as: can't create drivers/vfio/x.o: No space left on device": "the disk is full",
    "ld: final link failed: No space left on device": "the disk is full",
    "/tmp/ccX.s: Fatal error: can't write 12 bytes to x.o: 'No space left on device'": "the disk is full",
    "x.c:1:1: fatal error: error writing to /x/y.s: No space left on device": "the disk is full",
    "gcc: error: /tmp/ccX.s: Disk quota exceeded": "disk space is used up",
    "gcc: fatal error: cannot execute 'cc1': vfork: Resource temporarily unavailable": "out of processes",
    "make: fork: Resource temporarily unavailable": "out of processes or open files",
    "make[2]: vfork: Cannot allocate memory": "memory ran out",
    "/bin/sh: 1: Cannot fork": "processes ran out",
    "cc1: error: /usr/include/x.h: Input/output error": "a disk failed",
    "x.c:3:10: fatal error: linux/x.h: Input/output error": "a disk failed",
    "mv: cannot stat 'x': Stale file handle": "a disk failed",
    "x.c:3:10: fatal error: linux/x.h: Too many open files": "out of processes or open files",
    "cc1: out of memory allocating 65536 bytes after a total of 1 bytes": "memory ran out",
    "as: memory exhausted": "memory ran out",
    "virtual memory exhausted: Cannot allocate memory": "memory ran out",
    "terminate called after throwing an instance of 'std::bad_alloc'": "memory ran out",
    "gcc: fatal error: Killed signal terminated program cc1": "memory ran out",
    "collect2: fatal error: ld terminated with signal 9 [Killed]": "memory ran out",
    "make[2]: *** [scripts/Makefile.vmlinux:72: vmlinux] Error 137": "memory ran out",
    "make[2]: *** [scripts/Makefile.build:7: a.o] Killed": "memory ran out",
    "make[2]: *** [scripts/Makefile.build:7: vmlinux.o] Segmentation fault (core dumped)": "a tool crashed",
    "make[2]: *** [scripts/Makefile.build:7: vmlinux.o] Error 139": "a tool crashed",
    "x.c:12:3: internal compiler error: Segmentation fault": "a tool crashed",
    "clang: error: unable to execute command: Segmentation fault": "a tool crashed",
    "clang: error: unable to execute command: Killed": "memory ran out",
    "clang-19: error: clang frontend command failed with exit code 139 (use -v to see invocation)": "crashed",
    "PLEASE submit a bug report to https://x/ and include the crash backtrace": "a tool crashed",
    "fatal error: error in backend: Cannot select: t1: i64 = X86ISD::Y": "a tool crashed",
    "LLVM ERROR: out of memory": "memory ran out",
    "LLVM ERROR: IO failure on output stream: No space left on device": "the disk is full",
    "error: unable to open output file 'x.o': 'No space left on device'": "the disk is full",
    "error: unable to open output file 'x.o': 'Too many open files'": "out of processes or open files",
    "x.c:1:10: fatal error: cannot open file './x.h': Permission denied": "could not be used",
    "clang-22: error while loading shared libraries: libLLVM.so.22.1: failed to map segment": "missing",
    "clang-22: error: unknown argument: '-mnope'": "does not know an option",
    "clang-22: error: unsupported argument 'x' to option '-mcmodel=' for target 'y'": "not know an option",
    "error: unknown warning option '-Wnope' [-Werror,-Wunknown-warning-option]": "does not know an option",
    "error: unknown target triple 'nope-unknown-linux'": "does not know an option",
    "ld.lld: error: unknown emulation: nope": "does not know an option",
    "ld.lld: error: unknown argument '--nope'": "does not know an option",
    "ld.lld: error: unable to find library -lelf": "a tool is missing",
    "sign-file.c:25:10: fatal error: 'openssl/none.h' file not found": "this host has no <openssl",
    "scripts/Kconfig.include:45: Sorry, this C compiler is not supported.": "the toolchain does not work",
    "scripts/Kconfig.include:39: C compiler 'gcc-99' not found": "the toolchain does not work",
    "ccache: error: failed to create temporary file /c/tmp.x: Read-only file system": "could not be used",
    "ccache: error: Failed to open lock": "compiler's cache failed",
    "cc1: error: /root/include: Permission denied [-Werror=missing-include-dirs]": "could not be used",
    "/bin/sh: 1: ./scripts/x.sh: Permission denied": "could not be used",
    "/bin/sh: 1: flex: not found": "a tool is missing",
    "bash: line 1: bc: command not found": "a tool is missing",
    "/usr/bin/env: 'python3': No such file or directory": "a tool is missing",
    "gcc: fatal error: cannot execute 'cc1': execvp: No such file or directory": "a tool is missing",
    "make[1]: gcc: No such file or directory": "a tool is missing",
    "ld: cannot find -lelf: No such file or directory": "a tool is missing",
    "BTF: .tmp_vmlinux1: pahole (pahole) is not available": "a tool is missing",
    "/bin/sh: 1: /x/fixdep: Exec format error": "could not be started",
    "gcc: error: unrecognized command-line option '-m64'": "does not know an option",
    "clang: error: unsupported option '-mabi=lp64' for target 'x86_64'": "does not know an option",
    "as: unrecognized option '--64'": "does not know an option",
    "ld: unrecognised emulation mode: elf_x86_64": "does not know an option",
    "sign-file.c:25:10: fatal error: openssl/none.h: No such file or directory": "this host has no <openssl",
    "/usr/bin/ld: scripts/sign-file.o: undefined reference to `ERR_get_error'": "no compiler refused",
    "extract-cert.c:(.text+0x1): undefined reference to `f'\n"
    "make[1]: *** [/src/scripts/Makefile.host:116: certs/extract-cert] Error 1": "no compiler refused",
    "error: linking with `cc` failed: exit status: 1": "no compiler refused",
    "/bin/sh: 1: Syntax error: Unterminated quoted string": "no compiler refused",
    "make[3]: *** No rule to make target '/usr/lib/gcc/12/stddef.h', needed by 'x.o'.": "no compiler refused",
    "make[3]: *** No rule to make target 'there.o', needed by 'x.a'.": "no compiler refused",
    "FAILED: load BTF from vmlinux: Invalid argument": "no compiler refused",
    "": "no compiler refused",
}


BESIDE = {words: message for words, message in HOSTS.items() if not message.startswith("no compiler")}


@pytest.mark.parametrize(
    ("words", "message", "before"),
    [
        *((words, message, "") for words, message in HOSTS.items()),
        *((words, message, "x.c:1:2: error: 'x' undeclared\n") for words, message in BESIDE.items()),
    ],
    ids=[*HOSTS, *(f"beside an error, {words}" for words in BESIDE)],
)
def test_host_trouble_is_not_the_kernels_fault(tmp_path: Path, words: str, message: str, before: str) -> None:
    """Only a tool that refuses this source blames the kernel; the line that says so is shown, not make's."""
    (tmp_path / "there.c").touch()
    error = fail(tmp_path, f"{before}  CC      x.o\n{words}\nmake[1]: *** [/x/Makefile:7: x.o] Error 1\n")
    assert isinstance(error, InfraError)
    assert error.cause is Cause.HOST
    assert message in error.message
    assert words.partition("\n")[0] in error.message or "this host has no" in error.message


@pytest.mark.parametrize(
    "said",
    [
        "/usr/bin/ld: /tmp/cc7t.o: in function `main':\nsign-file.c:(.text+0x5): undefined reference to `f'",
        "ld.lld: error: undefined symbol: f\n>>> referenced by sign-file.c\n>>>      /tmp/s-9d614c.o:(main)",
    ],
)
@pytest.mark.parametrize(
    "target", ["/src/scripts/Makefile.host:112: scripts/sign-file", "Makefile:83: /out/tools/objtool/objtool"]
)
def test_programs_for_the_host_are_linked_with_the_hosts_libraries(
    tmp_path: Path, said: str, target: str
) -> None:
    """The linker names only a temporary file; make names the program."""
    error = fail(tmp_path, f"{said}\nmake[2]: *** [{target}] Error 1\n")
    assert isinstance(error, InfraError)
    kernels = fail(tmp_path, f"{said}\nmake[2]: *** [/src/scripts/Makefile.vmlinux:72: vmlinux] Error 1\n")
    assert isinstance(kernels, BuildError)


def test_lld_says_where_on_the_next_line(tmp_path: Path) -> None:
    printed = "ld.lld: error: undefined symbol: g\n>>> referenced by core.c\n>>>     vmlinux.o:(f)\n"
    assert (
        fail(tmp_path, printed).message == "x failed: ld.lld: error: undefined symbol: g referenced by core.c"
    )


def test_a_compiler_that_the_tree_refuses_is_named(tmp_path: Path) -> None:
    """scripts/min-tool-version.sh of the tree decides: another toolchain may do, but not this one."""
    printed = """\
***
*** C compiler is too old.
***   Your Clang version:    16.0.6
***   Minimum Clang version: 17.0.1
***
scripts/Kconfig.include:45: Sorry, this C compiler is not supported.
make[5]: *** [/src/scripts/kconfig/Makefile:85: allnoconfig] Error 1
"""
    error = fail(tmp_path, printed)
    assert isinstance(error, BuildError)
    assert error.cause is Cause.KCONFIG
    assert error.message == (
        "x failed: C compiler is too old, Your Clang version: 16.0.6, Minimum Clang version: 17.0.1"
    )
    assert "--toolchain" in (error.hint or "")


def test_mark_outlives_only_a_killed_make(tmp_path: Path) -> None:
    """make cleans up after itself unless it is killed outright; then the mark tells the next build."""
    mark = tmp_path / "mark"
    run_make(makefile(tmp_path, "\t@test -e mark\n"), mark=mark)
    assert not mark.exists()
    with pytest.raises(InfraError):
        run_make(makefile(tmp_path, "\t@exit 1\n"), mark=mark)
    assert not mark.exists()
    with pytest.raises(InfraError, match="killed by signal 9"):
        run_make(
            makefile(tmp_path, "\t@kill -9 $$PPID\n"),
            mark=mark,
        )
    assert mark.exists()
