# SPDX-License-Identifier: GPL-2.0-only
"""Make debug information for the tested code of a finished kernel, for drgn and gdb.

A whole kernel with -g costs as much as a build.  Instead the objects of DEBUGGED are compiled once more in a
copy of the build tree, by the commands that kbuild recorded, with -g, and the kernel is linked again.  The
same code is at the same addresses, which is proved by comparing the symbols.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
import shutil
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.base.errors import HostError
from harness.base.host import usable_cpus
from harness.kernel.build import BuildTree, build_tree_of, profile_arguments
from harness.kernel.elf import find_symbols, symbols_of
from harness.kernel.kconfig import ResolvedConfig
from harness.kernel.lines import recorded_line
from harness.kernel.make import Make
from harness.kernel.plan import KernelPlan
from harness.kernel.ready import ReadyKernel
from harness.kernel.relatives import copy_objects
from harness.kernel.store import OURS, Built, find_built, kernel_entry, provide_entry

DEBUGGED = (
    *("drivers/vfio", "drivers/vfio/pci", "drivers/iommu/iommufd"),
    *("kernel/sched/core.o", "kernel/locking/mutex.o", "kernel/locking/rwsem.o", "kernel/pid.o"),
    *("init/init_task.o", "fs/file.o", "fs/namespace.o", "lib/xarray.o", "mm/page_alloc.o", "mm/slub.o"),
    *("kernel/module/main.o", "kernel/module/sysfs.o"),
)
"""Directories, without those below them, and objects: the tested code, and what drgn's helpers need."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DebugInformation:
    """What a debugger needs to read the memory of a kernel."""

    program: Path
    """The kernel's ELF file."""
    modules: tuple[Path, ...] = ()
    vmcoreinfo: str = ""
    """The VMCOREINFO of a kernel that writes none itself; empty if it is unknown: KASLR moves a kernel, and
    not every row of harness.kernel.arch has one."""


def _entry(key: str) -> Path:
    """Return the directory with the debug information of the kernel *key*, there or not."""
    # Not the name alone, which is that of the lock: VMs hold their kernel.
    return paths.cache_dir() / "debug" / f"debug-{key}"


def _information(vmlinux: Path, built: Built, modules: Path | None) -> DebugInformation:
    """Return what a debugger needs of *built*; its modules with debug information are below *modules*."""
    modules_found = tuple(sorted(modules.rglob("*.ko"))) if modules is not None else ()
    config = ResolvedConfig.parse(built.config.read_text(encoding="utf-8"))
    form = built.arch.vmcoreinfo
    names = {name for _, name, _, _ in string.Formatter().parse(form) if name}
    symbols = find_symbols(vmlinux, names)
    if not form or config.get("RANDOMIZE_BASE") == "y" or names - symbols.keys():
        return DebugInformation(program=vmlinux, modules=modules_found)
    text = f"OSRELEASE={built.release}\n{form.format(**symbols)}"
    return DebugInformation(program=vmlinux, modules=modules_found, vmcoreinfo=text)


def symbols_only(built: Built) -> DebugInformation:
    """Return the kernel *built* as it ran, with symbols but without types and lines."""
    return DebugInformation(program=built.vmlinux)


def find_debug_information(built: Built) -> DebugInformation | None:
    """Return the debug information of the kernel *built*; None if it is not made yet."""
    made = _entry(built.digest) / "vmlinux"
    return _information(made, built, made.parent) if made.is_file() else None


def provide_debug_information(plan: KernelPlan | ReadyKernel, deadline: Deadline) -> DebugInformation:
    """Return the debug information of the kernel of *plan*, which is in the store; it is made once.

    A kernel that was handed in must have its own.  Raises HostError with the reason when there is none.
    """
    if isinstance(plan, ReadyKernel):
        if plan.config.get("DEBUG_INFO") != "y":
            raise HostError("this kernel was handed in without debug information (CONFIG_DEBUG_INFO)")
        return _information(plan.built.vmlinux, plan.built, plan.built.modules_dir)

    def waiting() -> None:
        if deadline.expired:
            raise HostError("another process kept building from the same source")

    def make(partial: Path) -> None:
        with plan.tree.held(waiting):
            _make(plan, partial, deadline)

    busy = f"another process is making the debug information of {plan.tree.label}"
    provide_entry(_entry(plan.key), busy, make, waiting)
    built = find_built(plan.key)
    if built is None:
        raise HostError("the kernel is not in the store any more")
    return _information(_entry(plan.key) / "vmlinux", built, _entry(plan.key))


def _make(plan: KernelPlan, target: Path, deadline: Deadline) -> None:
    objects = build_tree_of(plan.tree.path, plan.config)
    if not objects.facts.finished or objects.is_under_way:
        raise HostError(f"the objects of this kernel are gone: {objects.path} holds no finished build")
    # As long as the name of the build tree, because coverage counters have its path in the kernel's data.
    copy = objects.path.with_name(f"{OURS}debug-{plan.key[:10]}")
    shutil.rmtree(copy, ignore_errors=True)
    try:
        if not copy_objects(objects.path, copy, copy):
            raise HostError(f"the objects of this kernel cannot be copied to {copy}")
        BuildTree(copy).disown()
        found = sorted(set(_debugged(copy, (*DEBUGGED, *plan.arch.debugged))))
        with concurrent.futures.ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(lambda path: _compile(copy, path, deadline), found))
        _link(plan, BuildTree(copy))
        # The objects may be of another commit: those of one configuration share a place.
        if symbols_of(copy / "vmlinux") != symbols_of(kernel_entry(plan.key) / "vmlinux"):
            raise HostError("the kernel with debug information differs from the one that ran")
        shutil.copy2(copy / "vmlinux", target)
        for path in _modules(copy, found):
            shutil.copy2(path, target)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


_OBJECT = re.compile(r"[\w./+-]+\.o\b")


def _debugged(copy: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the objects that *names* stands for, as DEBUGGED does, that were compiled from C."""
    for name in names:
        paths = [copy / name] if name.endswith(".o") else _linked(copy / name)
        yield from (path for path in paths if path.with_name(f".{path.name}.cmd").is_file())


def _linked(directory: Path) -> list[Path]:
    """Return the objects in *directory* that the kernel or a module has, without those that only the kernel
    had whose objects this build began with."""
    listed = (path for path in (directory / ".built-in.a.cmd", *directory.glob("*.mod")) if path.is_file())
    named = {Path(word).name for path in listed for word in _OBJECT.findall(path.read_text(encoding="utf-8"))}
    return [path for path in directory.glob("*.o") if path.name in named]


def _compile(copy: Path, path: Path, deadline: Deadline) -> None:
    """Compile the object *path* of the build tree *copy* again, in place, as kbuild does."""
    command = recorded_line(path.with_name(f".{path.name}.cmd").read_text(encoding="utf-8"))
    if f" -c -o {path.relative_to(copy)} " not in command:
        return  # linked from others
    path.unlink()
    command = command.replace(" -c -o ", " -g -c -o ", 1)
    done = process.run(["sh", "-c", command], cwd=copy, deadline=deadline)
    done.check(f"cannot compile {path.relative_to(copy)} again")


def _link(plan: KernelPlan, copy: BuildTree) -> None:
    log = copy.path / "debug.log"
    log.touch()
    make = Make(
        tree=plan.tree.path, log=log, arch=plan.arch, toolchain=plan.toolchain, compilers=usable_cpus()
    )
    targets = ["vmlinux", "modules"] if plan.config.modular else ["vmlinux"]
    arguments = profile_arguments(plan.config_plan.profile)
    words = [f"O={copy.path}", "LOCALVERSION=", *arguments, *targets]
    make.run(words, what="linking with debug information")


def _modules(copy: Path, objects: list[Path]) -> Iterator[Path]:
    """Yield the modules that were linked from one of *objects*."""
    again = {os.fspath(path.relative_to(copy)) for path in objects}
    for listed in copy.rglob("*.mod"):
        if again & set(listed.read_text(encoding="utf-8").split()) and listed.with_suffix(".ko").is_file():
            yield listed.with_suffix(".ko")
