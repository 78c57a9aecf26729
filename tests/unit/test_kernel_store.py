# SPDX-License-Identifier: GPL-2.0-only
"""The store builds once, from the nearest objects, atomically, and tells trouble in a sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_fake_tree import make_fake_tree, needs_build_tools

from harness.base.environment import warn_ignored
from harness.base.errors import BuildError, HostError, InfraError, KernelError
from harness.kernel import elf
from harness.kernel.kconfig import ResolvedConfig, read_fragment
from harness.kernel.plan import plan_kernel, prove_blocked
from harness.kernel.proof import prove_built
from harness.kernel.provide import Kernel, provide_kernel, seconds_lately
from harness.kernel.store import list_kernels, read_facts
from harness.kernel.toolchain import find_toolchain
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

pytestmark = needs_build_tools


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Path:
    return make_fake_tree(tmp_path / "linux")


def provide(
    source: Path, name: str = "group-cdev", addons: tuple[str, ...] = (), toolchain: str = "gcc"
) -> Kernel:
    return provide_kernel(
        open_tree(str(source)),
        load_catalogue().variant(name),
        addons,
        toolchain=find_toolchain(toolchain),
        compilers=1,
    )


def compiled(kernel: Kernel) -> int:
    return int(read_facts(kernel.vmlinux.parent)["compiled"])


def test_kernel_is_what_it_says(source: Path) -> None:
    """The value carries the facts, and the build-id is the one in the ELF file."""
    kernel = provide(source)
    assert kernel.release == "7.3.0-rc1"
    assert kernel.build_id == elf.build_id(kernel.vmlinux)
    assert len(kernel.build_id) == 40
    assert kernel.features >= {"noiommu-cdev", "group"}
    assert kernel.modules_dir is None
    assert kernel.selftests is None
    assert "CONFIG_VFIO_NOIOMMU=y" in kernel.config.read_text(encoding="utf-8")


def test_second_time_is_cached(source: Path) -> None:
    """The same inputs give the same key, and nothing is built."""
    tree, variant = open_tree(str(source)), load_catalogue().variant("group-cdev")
    assert not plan_kernel(tree, variant).cached
    first = provide(source)
    before = first.vmlinux.stat().st_ino
    assert plan_kernel(tree, variant).cached
    assert provide(source) == first
    assert first.vmlinux.stat().st_ino == before


def test_nothing_is_written_into_the_tree(source: Path) -> None:
    """Configuring and building leave the source as it was."""
    before = open_tree(str(source)).identity
    provide(source)
    assert open_tree(str(source)).identity == before


def test_next_variant_starts_from_a_copy(source: Path) -> None:
    """Only what the configuration touches is compiled again, and the first variant's objects stay good."""
    assert compiled(provide(source, "group-cdev")) == 2
    assert compiled(provide(source, "cdev")) == 1
    (source / "init" / "main.c").write_text("void start(void) { int edited; }\n", encoding="utf-8")
    assert compiled(provide(source, "group-cdev")) == 1


def test_edit_rebuilds_incrementally(source: Path) -> None:
    """An edited file is compiled again, the rest is not, and the kernel is another one."""
    first = provide(source)
    (source / "init" / "main.c").write_text("void start(void) { for (;;); }\n", encoding="utf-8")
    second = provide(source)
    assert second.digest != first.digest
    assert second.build_id != first.build_id
    assert compiled(second) == 1
    assert first.vmlinux.is_file()


def test_edit_with_an_old_time_is_not_missed(source: Path) -> None:
    """rsync keeps times: a changed file older than its object would fool make, and must not fool us."""
    first = provide(source)
    main = source / "init" / "main.c"
    main.write_text("void start(void) { for (;;); }\n", encoding="utf-8")
    os.utime(main, (1_000_000_000, 1_000_000_000))
    assert provide(source).build_id != first.build_id


def test_same_content_gives_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two caches, one source: one build-id."""
    first = provide(source)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "other"))
    assert provide(source).build_id == first.build_id


def test_the_callers_environment_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the key nor the bytes of a kernel depend on what the caller exports."""
    first = provide(source)
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "other"))
    for name in (
        *("MAKEFLAGS", "GNUMAKEFLAGS", "MAKEFILES", "CPATH", "C_INCLUDE_PATH", "COMPILER_PATH", "LD_PRELOAD"),
        *(
            "KBUILD_OUTPUT",
            "KCONFIG_CONFIG",
            "KCFLAGS",
            "LLVM",
            "CC",
            "LD",
            "CROSS_COMPILE",
            "ARCH",
            "O",
            "HOOK",
        ),
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "PYTHONHOME", "LC_ALL"),
    ):
        monkeypatch.setenv(name, "/no/such/nonsense")
    again = provide(source)
    assert again.is_new
    assert again.digest == first.digest
    assert again.vmlinux.read_bytes() == first.vmlinux.read_bytes()


def test_compile_error_is_told_and_leaves_no_entry(source: Path, cache: Path) -> None:
    """The compiler's first line is the message; mending the file builds."""
    main = source / "init" / "main.c"
    main.write_text("void start(void) { wrong }\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"main\.c:1:\d+: error: 'wrong' undeclared"):
        provide(source)
    assert not [path for path in (cache / "kernels").iterdir() if not path.name.startswith(".")]
    main.write_text("void start(void) {}\n", encoding="utf-8")
    assert provide(source).vmlinux.is_file()


def put_in_path(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Have the *script* run instead of the program *name*; REAL in it is the real one."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script.replace('REAL', str(shutil.which(name)))}\n")
    (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    "words",
    [
        "gcc: error: x.o: Disk quota exceeded",
        "gcc: fatal error: cannot execute 'as': vfork: Resource temporarily unavailable",
        "init/main.c:1:1: fatal error: init/main.c: Input/output error",
        "cc1: fatal error: init/main.c: Too many open files",
        "cc1: out of memory allocating 65536 bytes after a total of 0 bytes",
        "init/main.c:1:1: internal compiler error: Segmentation fault",
        "ccache: error: Failed to create directory /ccache/tmp: Read-only file system",
        "gcc: error: unrecognized command-line option '-m64'",
    ],
)
def test_compiler_that_fails_is_not_the_kernels_fault(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """The line that says why is shown, nothing is stored, and once it works again the kernel is built."""
    say = f'case "$*" in *main.c*) test -e {source.parent}/mended || {{ echo "{words}" >&2; exit 1; }};; esac'
    put_in_path(source.parent / "bin", monkeypatch, "gcc", f'{say}\nexec REAL "$@"')
    with pytest.raises(InfraError) as caught:
        provide(source)
    assert words in caught.value.message
    assert not [path for path in (cache / "kernels").iterdir() if not path.name.startswith(".")]
    (source.parent / "mended").touch()
    assert provide(source).is_new


def test_missing_source_is_the_kernels_fault(source: Path) -> None:
    (source / "init" / "main.c").unlink()
    with pytest.raises(BuildError, match=r"No rule to make target '.*/init/main\.c'"):
        provide(source)


LIES = {
    "builds nothing": 'case "$*" in *vmlinux*) exec REAL -n "$@";; *) exec REAL "$@";; esac',
    "leaves an older kernel": 'case "$*" in *vmlinux*) exit 0;; *) exec REAL "$@";; esac',
    "another configuration": 'case "$*" in *vmlinux*) O=$(echo "$*" | sed "s/.* O=\\([^ ]*\\).*/\\1/");'
    ' cp $O/.config $O/kept; echo CONFIG_FOUND=y > $O/.config; REAL "$@"; s=$?; mv $O/kept $O/.config;'
    ' exit $s;; *) exec REAL "$@";; esac',
}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (LIES["builds nothing"], "built no vmlinux"),
        (LIES["leaves an older kernel"], "built no vmlinux"),
        (LIES["another configuration"], "with another configuration"),
    ],
    ids=LIES,
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "after another"])
def test_kernel_that_is_not_what_was_asked_for_is_not_stored(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str, first: bool
) -> None:
    """make may say that all went well: the kernel is asked itself, and the next build is right."""
    before = None if first else provide(source)
    (source / "init" / "main.c").write_text("void start(void) { int edited; }\n", encoding="utf-8")
    stored = set((cache / "kernels").glob("[!.]*"))
    with monkeypatch.context() as once:
        put_in_path(source.parent / "bin", once, "make", script)
        with pytest.raises(InfraError, match=said):
            provide(source)
    assert set((cache / "kernels").glob("[!.]*")) == stored
    after = provide(source)
    assert before is None or after.digest != before.digest
    assert b"CONFIG_FOUND" not in after.config.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Linux version 7.3.0-rc1 ", "Linux version 7.2.0 ", "kernel 7.2.0 instead of 7.3.0-rc1"),
        ("Linux version", "Lynux version", "without a release instead of 7.3.0-rc1"),
        ("echo 7.3.0-rc1 >", "echo 7.2.0 >", "kernel 7.3.0-rc1 instead of 7.2.0"),
        ("IKCFG_ED", "IKCFG_NO", "another configuration: it does not say which"),
    ],
)
def test_kernel_must_say_what_it_is(source: Path, old: str, new: str, said: str) -> None:
    """Release and configuration are read back from the vmlinux."""
    makefile = source / "Makefile"
    makefile.write_text(makefile.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(InfraError, match=said):
        provide(source)


@pytest.mark.parametrize(
    "setting", ['INITRAMFS_SOURCE="{0}"', 'EXTRA_FIRMWARE="x.fw"\nCONFIG_EXTRA_FIRMWARE_DIR="{0}"']
)
def test_files_that_the_configuration_names_are_in_the_key(source: Path, setting: str) -> None:
    """A kernel with another initramfs or firmware in it is another kernel."""
    place, fragment = source.parent / "elsewhere", source.parent / "own.config"
    place.mkdir()
    fragment.write_text(f"CONFIG_{setting.format(place)}\n", encoding="utf-8")
    with (source / "Kconfig").open("a", encoding="utf-8") as file:
        for symbol in ("INITRAMFS_SOURCE", "EXTRA_FIRMWARE", "EXTRA_FIRMWARE_DIR"):
            file.write(f'config {symbol}\n    string "x"\n')
    keys = []
    for text in ("one", "longer"):
        (place / "x.fw").write_text(text, encoding="utf-8")
        tree, variant = open_tree(str(source)), load_catalogue().variant("group-cdev")
        keys.append(plan_kernel(tree, variant, extra_fragments=[read_fragment(fragment)]).key)
    assert keys[0] != keys[1]


def test_kernel_without_ikconfig_is_compared_by_what_make_used(tmp_path: Path) -> None:
    vmlinux = tmp_path / "vmlinux"
    vmlinux.write_bytes(b"Linux version 7.3.4+ (vfio@harness)")
    wanted, other = (ResolvedConfig.parse(f"CONFIG_VFIO={value}\n") for value in "ym")
    prove_built(vmlinux, wanted, used=wanted, release="7.3.4+", version="7.3.4")
    for used, said in ((other, "CONFIG_VFIO=m instead of y"), (None, "does not say which")):
        with pytest.raises(InfraError, match=said):
            prove_built(vmlinux, wanted, used=used, release="7.3.4+", version="7.3.4")
    vmlinux.write_bytes(b"")
    with pytest.raises(HostError, match="built an empty vmlinux"):
        prove_built(vmlinux, wanted, used=wanted, release="7.3.4+", version="7.3.4")


def test_tree_edited_while_it_is_built(source: Path) -> None:
    """A kernel is built of the source as it was when its tree was opened, and the next one of the edit."""
    main, edited = source / "init" / "main.c", source.parent / "edited.c"
    edited.write_text("void start(void) { int edited; }\n", encoding="utf-8")
    (source / "hook.mk").write_text(f"HOOK := cp {edited} {main}\n", encoding="utf-8")
    main.write_text("void start(void) { for (;;); }\n", encoding="utf-8")
    first = provide(source)
    (source / "hook.mk").write_text("HOOK := true\n", encoding="utf-8")
    main.write_text("void start(void) { for (;;); }\n", encoding="utf-8")
    assert provide(source).build_id == first.build_id


def test_modular_variant_has_modules(source: Path) -> None:
    """Modules are installed beside the kernel when there are any."""
    kernel = provide(source, "modules")
    assert kernel.modules_dir is not None
    assert kernel.modules_dir.name == kernel.release
    assert "modular" in kernel.features


def test_addons_make_another_kernel(source: Path) -> None:
    """An add-on is part of the key and of the features."""
    plain, debug = provide(source), provide(source, addons=("debug",))
    assert plain.digest != debug.digest
    assert "debug" in debug.features


def test_a_toolchain_makes_another_kernel(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler that was asked for builds it, is part of the key, and is recorded with it."""
    plain = provide(source)
    say = 'case "$1" in --version) echo "gcc-99 (Fake) 99.1.0"; exit;; esac'
    put_in_path(source.parent / "bin", monkeypatch, "gcc-99", f'{say}\necho "$@" >> $0.log\nexec gcc "$@"')
    other = provide(source, toolchain="gcc-99")
    assert other.digest != plain.digest
    assert other.toolchain.startswith("gcc-99 (Fake) 99.1.0; ")
    assert "init/main.c" in (source.parent / "bin" / "gcc-99.log").read_text(encoding="utf-8")
    assert provide(source).digest == plain.digest


def test_callers_toolchain_is_named_with_its_option(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLVM", "1")
    warn_ignored.cache_clear()
    provide(source)
    with pytest.raises(InfraError, match="gcc-99"):
        provide(source, toolchain="gcc-99")
    told = "ignoring LLVM in the environment: --toolchain llvm chooses compiler and linker"
    assert caplog.text.count(told) == 1


def test_blocked_variant_is_never_built(source: Path) -> None:
    """It is proved by configuration; asking to build it is an error that says so."""
    with pytest.raises(KernelError, match="never built"):
        provide(source, "blocked-group")
    with pytest.raises(KernelError):
        prove_blocked(open_tree(str(source)), load_catalogue().variant("blocked-group"))


KILLED = """\
import signal, sys
# Who starts the tests in the background of a shell has SIGINT ignored in all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
from harness.kernel.provide import provide_kernel
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
provide_kernel(open_tree(sys.argv[1]), load_catalogue().variant("group-cdev"), compilers=1)
"""


def makes_of(source: Path) -> list[bytes]:
    """The command lines of the makes that work on *source*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"make") and os.fsencode(source) in words:
                found.append(b" ".join(words))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_build_leaves_the_store_sound(source: Path, cache: Path, number: signal.Signals) -> None:
    """Whatever ends the harness in the middle of a build, the next run builds the right kernel."""
    flag = source.parent / "flag"
    below = source.parent / "below.mk"
    below.write_text(f"{source}:\n\tsleep 60\n.PHONY: {source}\n", encoding="utf-8")
    submake = f"$(MAKE) -f {below} {source}"
    (source / "hook.mk").write_text(
        f"HOOK := if ! test -e {flag}; then echo broken > $(O)/main.o; touch {flag}; {submake}; fi\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, "-c", KILLED, str(source)], stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 30
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        child.wait(10)
    assert flag.exists()
    deadline = time.monotonic() + 10
    while makes_of(source) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not makes_of(source)
    assert not [path for path in (cache / "kernels").iterdir() if not path.name.startswith(".")]
    kernel = provide(source)
    assert kernel.build_id == elf.build_id(kernel.vmlinux)


def test_two_processes_build_one_kernel_once(source: Path) -> None:
    """The second waits for the first and finds the kernel."""
    count = source.parent / "count"
    (source / "hook.mk").write_text(f"HOOK := echo x >> {count}; sleep 0.3\n", encoding="utf-8")
    argv = [sys.executable, "-c", KILLED, str(source)]
    children = [subprocess.Popen(argv) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert count.read_text(encoding="utf-8") == "x\n"


def test_unwritable_cache_is_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written to is the host's trouble, said once."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", "/proc/no-such-place")
    with pytest.raises(InfraError, match="cannot write to the cache"):
        provide(source)


def test_full_disk_is_one_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk says nothing about the kernel."""

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "vmlinux")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(InfraError, match="cannot write to the cache: vmlinux: No space left"):
        provide(source)


def test_damaged_entry_is_named(source: Path) -> None:
    """A store entry someone spoilt is named, with the remedy."""
    kernel = provide(source)
    (kernel.vmlinux.parent / "kernel.json").write_text("{", encoding="utf-8")
    with pytest.raises(InfraError, match="damaged") as caught:
        provide(source)
    assert "remove" in (caught.value.hint or "")


def test_what_a_build_took_lately_is_of_the_same_features(source: Path) -> None:
    """A kernel with lockdep and KASAN says nothing about one without."""
    kernel = provide(source)
    tree, variant = open_tree(str(source)), load_catalogue().variant
    assert seconds_lately(plan_kernel(tree, variant("group-cdev"))) == kernel.build_seconds
    assert seconds_lately(plan_kernel(tree, variant("cdev"))) is None


def test_damaged_entry_does_not_hide_the_rest(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole kernels are listed whatever lies beside them; what is damaged is named."""
    kernel = provide(source)
    for name, text in {"half": "{", "other": "[]", "empty": "{}"}.items():
        (kernel.vmlinux.parent.parent / name).mkdir()
        (kernel.vmlinux.parent.parent / name / "kernel.json").write_text(text, encoding="utf-8")
    assert [facts["digest"] for facts in list_kernels()] == [kernel.digest]
    assert all(f"/kernels/{name} is damaged" in caplog.text for name in ("half", "other", "empty"))
