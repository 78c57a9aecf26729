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
from kernel_fake_tree import make_fake_tree

from harness.errors import BuildError, InfraError, KernelError
from harness.kernel import elf
from harness.kernel.store import (
    Kernel,
    list_kernels,
    plan_kernel,
    prove_blocked,
    provide_kernel,
    read_facts,
    seconds_lately,
)
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue

TOOLS = ("make", "gcc", "ld", "flex", "bison", "bc")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason="the tools of a kernel build are missing"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path, cache: Path) -> Path:
    return make_fake_tree(tmp_path / "linux")


def provide(source: Path, name: str = "group-cdev", addons: tuple[str, ...] = ()) -> Kernel:
    return provide_kernel(open_tree(str(source)), load_catalogue().variant(name), addons, jobs=1)


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


def test_compile_error_is_told_and_leaves_no_entry(source: Path, cache: Path) -> None:
    """The compiler's first line is the message; mending the file builds."""
    main = source / "init" / "main.c"
    main.write_text("void start(void) { wrong }\n", encoding="utf-8")
    with pytest.raises(BuildError, match=r"main\.c:1:\d+: error: 'wrong' undeclared"):
        provide(source)
    assert not [path for path in (cache / "kernels").iterdir() if not path.name.startswith(".")]
    main.write_text("void start(void) {}\n", encoding="utf-8")
    assert provide(source).vmlinux.is_file()


def test_tree_edited_while_it_is_built(source: Path) -> None:
    """A kernel that mixes two states of the source is not kept under either's name."""
    (source / "hook.mk").write_text(f"HOOK := touch {source}/init/new.c\n", encoding="utf-8")
    with pytest.raises(InfraError, match="changed while it was being built"):
        provide(source)
    (source / "hook.mk").write_text("", encoding="utf-8")
    assert provide(source).vmlinux.is_file()


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
from harness.kernel.store import provide_kernel
from harness.kernel.trees import open_tree
from harness.kernel.variants import load_catalogue
provide_kernel(open_tree(sys.argv[1]), load_catalogue().variant("group-cdev"), jobs=1)
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
    assert seconds_lately(plan_kernel(tree, variant(kernel.variant))) == kernel.build_seconds
    assert seconds_lately(plan_kernel(tree, variant("cdev"))) is None


def test_damaged_entry_does_not_hide_the_rest(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole kernels are listed whatever lies beside them; what is damaged is named."""
    kernel = provide(source)
    for name, text in {"half": "{", "other": "[]", "empty": "{}"}.items():
        (kernel.vmlinux.parent.parent / name).mkdir()
        (kernel.vmlinux.parent.parent / name / "kernel.json").write_text(text, encoding="utf-8")
    assert [facts["digest"] for facts in list_kernels()] == [kernel.digest]
    assert all(f"/kernels/{name} is damaged" in caplog.text for name in ("half", "other", "empty"))
