# SPDX-License-Identifier: GPL-2.0-only
"""Answer what a VFIO developer asks first about a dead or stopped kernel; a program that runs drgn.

    questions.py DUMP VMLINUX [MODULE.ko...]        print the answers
    questions.py --shell DUMP VMLINUX [...]         open drgn with the questions as functions

DUMP is a dump of a guest's memory.  VMLINUX and the modules have debug information, at least for the code
of these questions (harness/kernel/debugfile.py).  Each section stands alone: where this kernel's
structures differ, it says so, and the others follow.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import drgn
import drgn.cli
from drgn import FindObjectFlags, Object, Program, StackFrame
from drgn.helpers.linux.device import dev_name
from drgn.helpers.linux.fs import for_each_file
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.locking import mutex_owner
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each
from drgn.helpers.linux.sched import task_cpu
from drgn.helpers.linux.xarray import xa_for_each

_OURS = ("drivers/vfio/", "drivers/iommu/")
"""The code whose local variables are shown."""

_MOST_TASKS = 24
"""Stacks shown: a machine that hangs as a whole has hundreds of blocked tasks."""

_WIDTH = 110  # characters of a variable's value that are shown

_UNINTERRUPTIBLE, _NO_LOAD = 0x2, 0x400
"""TASK_UNINTERRUPTIBLE and TASK_NOLOAD, which idle kernel threads have as well."""

_RWSEM_FLAGS, _BLOCKER_MASK = 0x7, 0x3  # kernel/locking/rwsem.c; include/linux/hung_task.h

_FILES = {
    "vfio_device_fops": "vfio device",
    "vfio_group_fops": "vfio group",
    "vfio_fops": "vfio container",
    "iommufd_fops": "iommufd",
}
"""The symbol of the file operations of each kind of file that is of interest."""

Lines = Iterator[str]


def open_program(dump: str, files: list[Path], vmcoreinfo: str = "") -> Program:
    """Return the kernel in *dump* with the debug information of *files*, the first of which is its ELF file.

    *vmcoreinfo* is for a kernel that writes none itself.  Raises what drgn raises.
    """
    prog = _open(dump, files[0], "")
    if not prog.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        if not vmcoreinfo:
            raise ValueError(
                "the kernel wrote no VMCOREINFO (CONFIG_VMCORE_INFO, CONFIG_FW_CFG_SYSFS), without which one"
                " with KASLR (CONFIG_RANDOMIZE_BASE) cannot be found"
            )
        prog = _open(dump, files[0], vmcoreinfo)
        if _has_five_levels(prog, vmcoreinfo):
            prog = _open(dump, files[0], f"{vmcoreinfo}NUMBER(pgtable_l5_enabled)=1\n")
    # Their build-ids differ from those of what ran, because debug information counts.
    program, *modules = files
    main = next(module for module, _ in prog.loaded_modules() if isinstance(module, drgn.MainModule))
    main.try_file(program, force=True)
    by_name = {path.stem.replace("-", "_"): path for path in modules}
    with contextlib.suppress(Exception):
        for module, _ in prog.loaded_modules():
            if module.name in by_name:
                module.try_file(by_name.pop(module.name), force=True)
        listed = list_for_each_entry("struct module", prog["modules"].address_of_(), "list")
        prog.cache["unread"] = sorted({one.name.string_().decode() for one in listed} & by_name.keys())
    return prog


def _open(dump: str, program: Path, vmcoreinfo: str) -> Program:
    # e_machine is EM_AARCH64; libkdumpfile cannot always say.
    arch = drgn.Architecture.AARCH64 if program.read_bytes()[18] == 183 else drgn.Architecture.X86_64
    prog = Program(drgn.Platform(arch), vmcoreinfo=vmcoreinfo or None)
    try:
        prog.set_core_dump(dump)
    except Exception:
        if vmcoreinfo:
            raise
    return prog


def _has_five_levels(prog: Program, vmcoreinfo: str) -> bool:
    found = re.search(r"SYMBOL\(__pgtable_l5_enabled\)=(\w+)", vmcoreinfo)
    # __START_KERNEL_map: a kernel that was not moved is at its physical address above it.
    return found is not None and prog.read_u32(int(found[1], 16) - 0xFFFFFFFF80000000, physical=True) == 1


def task_name(task: Object) -> str:
    """`python3 (pid 123)`."""
    return f"{task.comm.string_().decode(errors='replace')} (pid {task.pid.value_()})"


def stack(prog: Program, task: Object) -> Lines:
    """Yield the stack of *task*, with the variables of the code that is tested."""
    for number, frame in enumerate(prog.stack_trace(task)):
        what = _place(prog, frame)
        yield f"    #{number:<2} {what}{' [inline]' * frame.is_inline}"
        if what.partition(" ")[2].startswith(_OURS):
            yield from _variables(frame)


def _place(prog: Program, frame: StackFrame) -> str:
    """Return function and line of *frame*, or its address as printk prints it: the harness decodes that."""
    with contextlib.suppress(LookupError):
        file, line, _ = frame.source()
        return f"{frame.name} {file.replace('../', '')}:{line}"
    with contextlib.suppress(LookupError):
        symbol, module = frame.symbol(), prog.module(frame.pc)
        name = "" if isinstance(module, drgn.MainModule) else f" [{module.name}]"
        return f"{symbol.name}+{frame.pc - symbol.address:#x}/{symbol.size:#x}{name}"
    return frame.name or hex(frame.pc)


def _variables(frame: StackFrame) -> Lines:
    for name in frame.locals():
        with contextlib.suppress(Exception):
            value = frame[name]
            if not value.absent_:
                text = " ".join(value.format_(dereference=False, symbolize=True).split())
                yield f"          {name} = {text if len(text) <= _WIDTH else text[:_WIDTH] + '...'}"


def running_tasks(prog: Program) -> dict[int, Object]:
    """CPU -> the task that it runs; idle CPUs are left out."""
    return {int(task_cpu(task)): task for task in for_each_task(prog) if task.on_cpu}


def state_of(task: Object) -> str:
    """R, S, D, I as in ps(1); any other state as a number (include/linux/sched.h)."""
    state = task.member_("__state").value_()
    if state & _UNINTERRUPTIBLE:
        return "I" if state & _NO_LOAD else "D"
    return {0: "R", 1: "S"}.get(state, hex(state))


def blocked_tasks(prog: Program) -> list[Object]:
    """The tasks in state D, uninterruptible, without idle kernel threads (state I)."""
    return [task for task in for_each_task(prog) if state_of(task) == "D"]


def tasks(prog: Program) -> Lines:
    """Yield every running or blocked task with its stack."""
    for cpu, task in running_tasks(prog).items():
        yield f"CPU {cpu} runs {task_name(task)}"
        yield from _answers(functools.partial(stack, prog, task), "    ")
    blocked = blocked_tasks(prog)
    yield f"blocked tasks (state D): {len(blocked)}"
    for task in blocked[:_MOST_TASKS]:
        yield task_name(task)
        yield from _answers(functools.partial(stack, prog, task), "    ")


class Open(NamedTuple):
    """An open file of vfio or iommufd."""

    kind: str
    task: Object
    number: int
    file: Object

    def __str__(self) -> str:
        return f"{task_name(self.task)} fd {self.number}"


def open_files(prog: Program) -> list[Open]:
    """Every open file of vfio and iommufd, once per process and descriptor."""
    if "vfio-harness files" not in prog.cache:
        kinds = {one.address: kind for symbol, kind in _FILES.items() for one in prog.symbols(symbol)}
        prog.cache["vfio-harness files"] = [
            Open(kinds[file.f_op.value_()], task, number, file)
            for task in for_each_task(prog)
            if task.pid == task.tgid and task.files
            for number, file in for_each_file(task)
            if file and file.f_op.value_() in kinds
        ]
    found: list[Open] = prog.cache["vfio-harness files"]
    return found


def _name(device: Object) -> str:
    """The name of a `struct device *`."""
    return dev_name(device).decode(errors="replace")


def _unique(objects: Iterator[Object]) -> list[Object]:
    return list({one.value_(): one for one in objects if one}.values())


def vfio_devices(prog: Program) -> list[Object]:
    """Every `struct vfio_device *` that is registered or open."""

    def found() -> Iterator[Object]:
        for _, entry in xa_for_each(prog["vfio_device_set_xa"].address_of_()):
            dev_set = drgn.cast("struct vfio_device_set *", entry)
            head = dev_set.device_list.address_of_()
            yield from list_for_each_entry("struct vfio_device", head, "dev_set_list")
        for one in open_files(prog):
            if one.kind == "vfio device":
                yield drgn.cast("struct vfio_device_file *", one.file.private_data).device

    return _unique(found())


def vfio_groups(prog: Program) -> list[Object]:
    """Every `struct vfio_group *`; none in a kernel without groups."""
    with contextlib.suppress(LookupError):
        head = prog.object("vfio", FindObjectFlags.VARIABLE, "group.c").group_list.address_of_()
        return _unique(list_for_each_entry("struct vfio_group", head, "vfio_next"))
    return []


def iommufd_contexts(prog: Program) -> list[Object]:
    """Every `struct iommufd_ctx *` of an open file, or of an open vfio device or group."""

    def found() -> Iterator[Object]:
        for one in open_files(prog):
            if one.kind == "iommufd":
                yield drgn.cast("struct iommufd_ctx *", one.file.private_data)
            elif one.kind == "vfio device":
                yield drgn.cast("struct vfio_device_file *", one.file.private_data).iommufd
        for group in vfio_groups(prog):
            yield group.iommufd

    return _unique(found())


def iommufd_objects(context: Object) -> list[Object]:
    """Every `struct iommufd_object *` of *context*."""
    entries = xa_for_each(context.objects.address_of_())
    return [drgn.cast("struct iommufd_object *", entry) for _, entry in entries]


def name_of(device: Object) -> str:
    """The name of the physical device of a `struct vfio_device *`."""
    return _name(device.dev) if device.dev else hex(device.value_())


def devices(prog: Program) -> Lines:
    """Each vfio_device with its state, its references and its open files."""
    found = vfio_devices(prog)
    for device in found:
        flags = [name for name in ("noiommu", "cdev_opened", "iommufd_attached") if _member(device, name)]
        yield (
            f"{name_of(device)} ({_name(device.device.address_of_())}):"
            f" ops {device.ops.name.string_().decode(errors='replace')},"
            f" open_count {device.open_count.value_()},"
            f" refcount {device.refcount.refs.counter.value_()}"
            f"{''.join(f', {flag}' for flag in flags)}"
            f", struct vfio_device {device.value_():#x}"
        )
        group = _member(device, "group")
        if group:
            name = _name(group.dev.address_of_())
            yield (
                f"    group {name}: {group.type.format_(type_name=False)}, drivers"
                f" {group.drivers.refs.counter.value_()}, container_users {group.container_users.value_()}"
                f"{', opened' if group.opened_file else ''}"
            )
        for one in open_files(prog):
            private = one.file.private_data
            if one.kind == "vfio device":
                opened = drgn.cast("struct vfio_device_file *", private)
                if opened.device == device:
                    yield f"    open: {one}{'' if opened.access_granted else ', no access granted yet'}"
            elif one.kind == "vfio group" and group and private.value_() == group.value_():
                yield f"    group open: {one}"
    if not found:
        yield "no vfio device is registered"


def _member(owner: Object, name: str) -> Object | None:
    """The member *name*, None in a kernel whose structure lacks it."""
    with contextlib.suppress(LookupError):
        return owner.member_(name)
    return None


def contexts(prog: Program) -> Lines:
    """Each iommufd context with its objects."""
    found = iommufd_contexts(prog)
    for context in found:
        mine = [one for one in open_files(prog) if one.file.private_data.value_() == context.value_()]
        yield f"struct iommufd_ctx {context.value_():#x}: {', '.join(map(str, mine)) or 'no open file'}"
        for one in iommufd_objects(context):
            kind = one.type.format_(type_name=False).removeprefix("IOMMUFD_OBJ_")
            yield (
                f"    {one.id.value_()}: {kind}, users {one.users.refs.counter.value_()}"
                f"{_more_of(kind, one)}, {one.value_():#x}"
            )
    if not found:
        yield "no iommufd context is open"


def _more_of(kind: str, one: Object) -> str:
    with contextlib.suppress(LookupError, drgn.FaultError):
        if kind == "DEVICE":
            device = drgn.container_of(one, "struct iommufd_device", "obj")
            return f", {_name(device.dev)}"
        if kind == "IOAS":
            ioas = drgn.container_of(one, "struct iommufd_ioas", "obj")
            areas = sum(1 for _ in rbtree_inorder_for_each(ioas.iopt.area_itree.rb_root.address_of_()))
            return f", mapped areas {areas}"
        if kind == "HWPT_PAGING":
            paging = drgn.container_of(one, "struct iommufd_hwpt_paging", "common.obj")
            return f", of IOAS {paging.ioas.obj.id.value_()}"
    return ""


def locks_in(what: str, owner: Object) -> Iterator[tuple[str, Object]]:
    """Yield name and address of each mutex and rw_semaphore in the structure *owner*, a pointer."""
    for member in owner.type_.type.members or ():
        tag = getattr(member.type, "tag", None) if member.name else None
        if tag in ("mutex", "rw_semaphore"):
            yield f"{tag} {what}.{member.name}", owner.member_(member.name).address_of_()
        elif tag == "io_pagetable":
            yield from locks_in(f"{what}.{member.name}", owner.member_(member.name).address_of_())


def known_locks(prog: Program) -> Iterator[tuple[str, Object]]:
    """Yield name and address of each lock of vfio and iommufd that can be found."""
    for file in ("group.c", "container.c", "vfio_main.c"):
        with contextlib.suppress(LookupError):
            static = prog.object("vfio", FindObjectFlags.VARIABLE, file)
            yield from locks_in(f"vfio ({file})", static.address_of_())
    for group in vfio_groups(prog):
        yield from locks_in(f"group {_name(group.dev.address_of_())}", group)
        if container := _member(group, "container"):
            yield from locks_in("container", container)
    for device in vfio_devices(prog):
        yield from locks_in(f"dev_set of {name_of(device)}", device.dev_set)
        if device.ops.name.string_().startswith(b"vfio-pci"):
            core = drgn.container_of(device, "struct vfio_pci_core_device", "vdev")
            yield from locks_in(f"vfio_pci_core_device {name_of(device)}", core)
    for context in iommufd_contexts(prog):
        yield from locks_in("iommufd_ctx", context)
        for one in iommufd_objects(context):
            kind = one.type.format_(type_name=False).removeprefix("IOMMUFD_OBJ_")
            name = {"IOAS": "iommufd_ioas", "ACCESS": "iommufd_access"}.get(kind)
            if name:
                owner = drgn.container_of(one, f"struct {name}", "obj")
                yield from locks_in(f"{name} {one.id.value_()}", owner)
            if kind == "DEVICE":
                device = drgn.container_of(one, "struct iommufd_device", "obj")
                yield from locks_in(f"iommufd_group of {_name(device.dev)}", device.igroup)


def lock_owner(prog: Program, lock: Object) -> Object | None:
    """The task that holds *lock*; None if it is free or its holder is not known."""
    if lock.type_.type.tag == "mutex":
        return mutex_owner(lock) or None
    held = lock.owner.counter.value_() if lock.count.counter else 0
    return drgn.Object(prog, "struct task_struct *", held & ~_RWSEM_FLAGS) or None


def waiters(prog: Program) -> dict[int, list[Object]]:
    """Address of a lock -> the tasks that wait for it."""
    found: dict[int, list[Object]] = {}
    for task in for_each_task(prog):
        blocker = int(_member(task, "blocker") or 0) & ~_BLOCKER_MASK
        if address := int(_member(task, "blocked_on") or 0) or blocker:
            found.setdefault(address, []).append(task)
    return found


def lock_lines(prog: Program) -> Lines:
    """Yield one line for each lock that is held or waited for."""
    waiting = waiters(prog)
    named: dict[int, tuple[str, Object]] = {}
    with contextlib.suppress(LookupError, drgn.FaultError):
        for name, lock in known_locks(prog):
            named.setdefault(lock.value_(), (name, lock))
    for address in waiting:
        if address not in named:
            symbols = [one.name for one in prog.symbols(address)] or [hex(address)]
            named[address] = f"lock {symbols[0]}", Object(prog, "struct mutex *", address)
    for address, (name, lock) in named.items():
        owner = lock_owner(prog, lock)
        if owner is None and address not in waiting:
            continue
        held = f"held by {task_name(owner)}, state {state_of(owner)}" if owner else "holder not known"
        names = ", ".join("itself" if task == owner else task_name(task) for task in waiting.get(address, ()))
        yield f"{name}: {held}; {f'waiting: {names}' if names else 'nobody waits'}"


def locks(prog: Program) -> Lines:
    """Each lock of vfio and iommufd that is held, and each that a task waits for, with the holder's stack."""
    told = {task.value_() for task in (*running_tasks(prog).values(), *blocked_tasks(prog))}
    yield from list(lock_lines(prog)) or ["no lock of vfio or iommufd is held, and no task waits for a lock"]
    for lock in {int(address) for address in waiters(prog)}:
        owner = lock_owner(prog, Object(prog, "struct mutex *", lock))
        if owner and owner.value_() not in told:
            told.add(owner.value_())
            yield f"{task_name(owner)}, holds a lock that others wait for, state {state_of(owner)}:"
            yield from _answers(functools.partial(stack, prog, owner), "    ")


def summary(prog: Program) -> Lines:
    """Yield a few lines that sum up the other sections."""
    if unread := prog.cache.get("unread"):
        yield f"drgn cannot use the debug information of the modules {', '.join(unread)}"
    for cpu, task in running_tasks(prog).items():
        yield f"CPU {cpu} runs {task_name(task)}{_where(prog, task)}"
    for task in blocked_tasks(prog)[:_MOST_TASKS]:
        yield f"blocked: {task_name(task)}{_where(prog, task)}"
    yield from lock_lines(prog)
    for device in vfio_devices(prog):
        if device.open_count:
            yield f"{name_of(device)} is open, refcount {device.refcount.refs.counter.value_()}"


def _where(prog: Program, task: Object) -> str:
    """` in FUNCTION FILE:LINE`: the first function of the tested code in a stack; empty if there is none."""
    places = (_place(prog, frame) for frame in prog.stack_trace(task))
    return next((f" in {what}" for what in places if what.partition(" ")[2].startswith(_OURS)), "")


SECTIONS: dict[str, Callable[[Program], Lines]] = {
    "summary": summary,
    "tasks that run or are blocked": tasks,
    "locks": locks,
    "vfio devices": devices,
    "iommufd contexts": contexts,
}
"""Title -> the function that yields the lines of the section."""


def _answers(ask: Callable[[], Lines], indent: str = "") -> Lines:
    """Yield the lines of *ask*, and its error if it raises one."""
    try:
        yield from ask()
    except Exception as error:
        # Structures differ between kernels, and a dead one may hold anything.
        yield f"{indent}(no further answer: {type(error).__name__}: {error})"


def report(prog: Program) -> Lines:
    """Yield all sections."""
    for title, answer in SECTIONS.items():
        yield f"== {title}"
        yield from _answers(functools.partial(answer, prog))
        yield ""


def _shell(prog: Program) -> None:
    """Open drgn's own shell."""

    def told(answer: Callable[[Program], Lines]) -> Callable[[], None]:
        return lambda: print("\n".join(_answers(functools.partial(answer, prog))))

    printing = (summary, tasks, locks, devices, contexts)
    finding = (vfio_devices, vfio_groups, iommufd_contexts, iommufd_objects, open_files, blocked_tasks)
    ours = {one.__name__: told(one) for one in printing} | {one.__name__: one for one in finding}
    drgn.cli.run_interactive(
        prog,
        banner_func=lambda usual: f"{usual}\nvfio-harness: {', '.join(f'{name}()' for name in ours)}",
        globals_func=lambda usual: {**usual, **ours},
        quiet=True,
    )


def main() -> int:
    """Print the report, or open a shell; return 1 when the dump cannot be opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shell", action="store_true")
    parser.add_argument("--vmcoreinfo", default="")
    parser.add_argument("dump")
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    try:
        prog = open_program(given.dump, given.files, given.vmcoreinfo)
    except Exception as error:
        print(f"drgn cannot open it: {error}", file=sys.stderr)
        return 1
    if given.shell:
        _shell(prog)
    else:
        print("\n".join(report(prog)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
