# SPDX-License-Identifier: GPL-2.0-only
"""Races: users of a device against each other, unbinding, removal, the parameter, and being killed.

The same must hold for any schedule: the only errnos are those that the kernel's code has for a lost race, the
kernel logs no complaint, no pin, page table or file is left, and the device works afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from guest import edu, forked, libc, memory, pci, racing, vfio
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import PAGE
from guest.opened import CdevUser, open_files, opened, through_cdev

SMP = ("noiommu-cdev", "edu", "smp", "!viommu")
GROUP_SMP = ("noiommu-group", "container", "edu", "smp", "!viommu")

BASE = 0x1000_0000
PAUSE = 0.06
"""The most seconds that a device stays bound between rebinds."""

PLACES = 4
AREA = 4 * PAGE
IDS = 6
"""The number of object IDs that are used and destroyed at random."""

GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
"""The device does not exist, is gone, or its device number is free (fs/char_dev.c chrdev_open())."""

TAKEN = (errno.EINVAL, errno.EAGAIN)
"""Another process has bound the device (vfio_df_open()), or an unbind of a device that can be reset holds its
lock (vfio_pci_core_enable(), pci_try_reset_function())."""

GROUP_GONE = (errno.ENODEV, errno.EAGAIN, errno.EINVAL)
"""The group has lost its device and has left the container; an empty container refuses SET_IOMMU (EINVAL,
vfio_ioctl_set_iommu()). EAGAIN as above."""

UNMAPPED = (errno.ENOENT, errno.EOPNOTSUPP)
"""The errnos of GET_PA without a mapping and without a page table."""


@contextlib.contextmanager
def _no_trace(t: Test, bdf: str) -> Iterator[None]:
    """Fail unless the block leaves no pin, table, file or kernel complaint, and a device that works."""
    before = _level()
    yield
    t.check_no_complaint()
    t.wait_until(
        lambda: _level() == before,
        lambda: f"the return of pins, table pages and files from {_level()} to {before}",
        5,
    )
    with opened(t, bdf) as device, device.bar() as bar:
        t.equal(edu.Edu(bar).factorial(5), 120, "5! computed by the device afterwards")
        t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the device's vendor afterwards")


def _level() -> tuple[int, int, int]:
    return memory.held_pins(), memory.table_pages(), open_files()


def _session(bdf: str) -> Callable[[racing.Tally], racing.Act]:
    """Return a maker of users that open *bdf*, use it as far as they are allowed, and close at any point."""

    def make(tally: racing.Tally) -> racing.Act:
        buffer = memory.anonymous(PLACES * AREA)
        buffer.touch()
        return lambda choices: _use_once(tally, choices, bdf, buffer)

    return make


def _use_once(tally: racing.Tally, choices: random.Random, bdf: str, buffer: memory.Buffer) -> None:
    with contextlib.ExitStack() as stack:
        device = tally.attempt("open", GONE, lambda: stack.enter_context(vfio.open_cdev(bdf)))
        if device is None or choices.random() < 0.2:
            return
        iommufd = stack.enter_context(Iommufd())
        devid = tally.attempt("bind", TAKEN, lambda: device.bind_iommufd(iommufd.fd))
        if devid is None:
            return
        ioas = iommufd.ioas_alloc()
        if choices.random() < 0.8:
            device.attach(ioas)
            iommufd.map(ioas, buffer.address, AREA, 0)
            iommufd.get_pa(ioas, 0, AREA)
        _use(choices, CdevUser(device=device, iommufd=iommufd, ioas=ioas, devid=devid), buffer)
        if choices.random() < 0.5:
            iommufd.close()


def _use(choices: random.Random, user: CdevUser, buffer: memory.Buffer) -> None:
    """Map, unmap and read the device, of which this is the only user: nothing here may be refused."""
    for place in choices.sample(range(PLACES), choices.randint(0, PLACES)):
        user.iommufd.map(user.ioas, buffer.address + place * AREA, AREA, BASE + place * AREA)
        if choices.random() < 0.3:
            user.iommufd.unmap(user.ioas, BASE + place * AREA, AREA)
    if choices.random() < 0.3:
        assert user.device.read_config(vfio.PCI_VENDOR_ID, 2) == edu.VENDOR_ID, (
            "the device reads another vendor"
        )
    if choices.random() < 0.2:
        user.device.detach()


def _rebinder(bdf: str) -> racing.Act:
    """Return an act that unbinds the device, binds it again, and leaves its users a moment."""

    def rebind(choices: random.Random) -> None:
        pci.unbind(bdf)
        pci.write(pci.BUS / "drivers" / pci.VFIO_PCI / "bind", bdf)
        time.sleep(choices.random() * PAUSE)

    return rebind


@case(needs=SMP, timeout=60, cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); device_cdev.c")
def users_against_unbinding(t: Test) -> None:
    """While the device is unbound and bound again, each user that opens it gets an errno of a lost race or
    can use it fully."""
    bdf = t.device("edu")
    with _no_trace(t, bdf), pci.bound(bdf):
        racing.race(t, [_session(bdf)] * 2, "open ok", "bind ok", meanwhile=_rebinder(bdf))


@case(needs=SMP, timeout=60, cites="drivers/pci/pci-sysfs.c remove_store(), dev_rescan_store(); vfio_main.c")
def users_against_removal(t: Test) -> None:
    """While the device is removed and found again, each user that opens it gets an errno of a lost race or
    can use it fully."""
    bdf = t.device("edu")

    def replug(choices: random.Random) -> None:
        pci.remove(bdf)
        pci.rescan()
        pci.bind(bdf)
        time.sleep(choices.random() * PAUSE)

    with _no_trace(t, bdf), pci.bound(bdf):
        racing.race(t, [_session(bdf)] * 2, "open ok", "bind ok", meanwhile=replug)


@case(needs=SMP, timeout=60, cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name(); group.c")
def users_against_the_parameter(t: Test) -> None:
    """While the unsafe mode is toggled, a bind works or is EINVAL, and every user that opens the device can
    use it fully."""
    bdf = t.device("edu")

    def toggle(choices: random.Random) -> None:
        pci.set_parameter(choices.random() < 0.5)
        time.sleep(choices.random() * PAUSE / 10)

    def rebind(tally: racing.Tally) -> racing.Act:
        return lambda choices: _rebind_if_allowed(tally, choices, bdf)

    with _no_trace(t, bdf), pci.bound(bdf):
        racing.race(t, [_session(bdf), rebind], "open ok", "rebind ok", "rebind EINVAL", meanwhile=toggle)
        pci.set_parameter(True)
        pci.bind(bdf)


def _rebind_if_allowed(tally: racing.Tally, choices: random.Random, bdf: str) -> None:
    pci.unbind(bdf)
    bind = pci.BUS / "drivers" / pci.VFIO_PCI / "bind"
    tally.attempt("rebind", (errno.EINVAL,), lambda: pci.write(bind, bdf))
    if pci.driver(bdf) is not None:
        time.sleep(choices.random() * PAUSE)


@case(needs=SMP, timeout=60, cites="drivers/vfio/vfio_main.c vfio_df_open() (open_count); device_cdev.c")
def one_binder_wins(t: Test) -> None:
    """Of several processes that bind one device at once, exactly one has it until it closes; the others get
    EINVAL."""
    bdf = t.device("edu")
    with memory.shared_file(memory.memfd(), PAGE) as owner, _no_trace(t, bdf), pci.bound(bdf):

        def make(tally: racing.Tally) -> racing.Act:
            return lambda _: _bind_alone(tally, bdf, owner)

        racing.race(t, [make] * 3, "bind ok", "bind EINVAL")


def _bind_alone(tally: racing.Tally, bdf: str, owner: memory.Buffer) -> None:
    """Bind, and for a moment mark the device with this process's own name, which must stay there."""
    with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        if tally.attempt("bind", (errno.EINVAL,), lambda: device.bind_iommufd(iommufd.fd)) is None:
            return
        mine = os.getpid().to_bytes(4, "little")
        other = owner.read(0, 4)
        owner.write(mine)
        time.sleep(0.002)
        assert other == bytes(4), f"bound although process {int.from_bytes(other, 'little')} has the device"
        assert owner.read(0, 4) == mine, "another process bound the device at the same time"
        owner.write(bytes(4))


@case(
    needs=(*GROUP_SMP, "noiommu-cdev"),
    timeout=60,
    cites="drivers/vfio/group.c vfio_group_fops_open(), vfio_device_block_group() (group_lock)",
)
def group_and_cdev_exclude_each_other(t: Test) -> None:
    """While the group is open binding the cdev is EBUSY, and while the cdev is bound opening the group is
    EBUSY."""
    bdf = t.device("edu")
    with memory.shared_file(memory.memfd(), PAGE) as owner, _no_trace(t, bdf), pci.bound(bdf):

        def bind(tally: racing.Tally) -> racing.Act:
            return lambda _: _hold_cdev(tally, bdf, owner)

        def group(tally: racing.Tally) -> racing.Act:
            return lambda _: _hold_group(tally, bdf, owner)

        racing.race(t, [bind, group], "bind ok", "bind EBUSY", "group ok", "group EBUSY")


def _hold_cdev(tally: racing.Tally, bdf: str, flags: memory.Buffer) -> None:
    with vfio.open_cdev(bdf) as device, Iommufd() as iommufd:
        if tally.attempt("bind", (errno.EBUSY,), lambda: device.bind_iommufd(iommufd.fd)) is not None:
            _hold(flags, 0)


def _hold_group(tally: racing.Tally, bdf: str, flags: memory.Buffer) -> None:
    group = tally.attempt("group", (errno.EBUSY,), lambda: vfio.open_group(bdf))
    if group is not None:
        with group:
            _hold(flags, 1)


def _hold(flags: memory.Buffer, mine: int) -> None:
    """Hold the device, mark that in one byte, and check that the other byte stays zero."""
    flags.write(b"\1", mine)
    time.sleep(0.003)
    other = flags.read(1 - mine, 1)
    flags.write(b"\0", mine)
    assert other == b"\0", "group and cdev both have the device"


@case(needs=GROUP_SMP, timeout=60, cites="drivers/vfio/group.c vfio_group_ioctl_get_device_fd(); container.c")
def group_users_against_unbinding(t: Test) -> None:
    """While the device is unbound and bound again, each user of its group gets an errno of a lost race or can
    use it."""
    bdf = t.device("edu")
    with _no_trace(t, bdf), pci.bound(bdf):

        def make(tally: racing.Tally) -> racing.Act:
            return lambda choices: _use_group_once(tally, choices, bdf)

        racing.race(t, [make] * 2, "group ok", "device ok", meanwhile=_rebinder(bdf))


def _use_group_once(tally: racing.Tally, choices: random.Random, bdf: str) -> None:
    with contextlib.ExitStack() as stack:
        busy = (errno.EBUSY, *GONE)
        group = tally.attempt("group", busy, lambda: stack.enter_context(vfio.open_group(bdf)))
        if group is None:
            return
        container = stack.enter_context(vfio.open_container())
        device = tally.attempt(
            "device",
            GROUP_GONE,
            lambda: stack.enter_context(_device_of(group, container, bdf)),
        )
        if device is not None:
            assert device.read_config(vfio.PCI_VENDOR_ID, 2) == edu.VENDOR_ID, (
                "the device reads another vendor"
            )
            if choices.random() < 0.5:
                device.bar(length=PAGE).close()


def _device_of(group: vfio.Group, container: vfio.Container, bdf: str) -> vfio.Device:
    group.set_container(container)
    container.set_iommu(vfio.NOIOMMU_IOMMU)
    return group.device(bdf)


@case(
    needs=SMP,
    timeout=60,
    cites="drivers/iommu/iommufd/main.c iommufd_fops_release(); vfio_main.c vfio_device_fops_release()",
)
def killed_users_leave_nothing(t: Test) -> None:
    """Users killed at any moment while opening, mapping and closing free the device and their memory, and an
    unbind ends."""
    bdf = t.device("edu")
    t.log(f"seed {t.seed}")
    with _no_trace(t, bdf), pci.bound(bdf):
        end, turn, rebind = time.monotonic() + racing.STRESS, 0, _rebinder(bdf)
        while time.monotonic() < end:
            turn += 1
            with contextlib.ExitStack() as stack:
                seeds = (t.random.getrandbits(32) for _ in range(2))
                users = [stack.enter_context(_endless(_session(bdf), seed)) for seed in seeds]
                time.sleep(t.random.random() * PAUSE)
                for user in users:
                    t.check(not user.ended(), "a user ended before it was killed")
                    user.kill()
                rebind(t.random)
        t.log(f"killed two users, {turn} times")


def _endless(make: Callable[[racing.Tally], racing.Act], seed: int) -> forked.Child:
    return forked.Child(lambda: racing.until(60, seed, make(racing.Tally())))


@case(
    needs=SMP,
    timeout=60,
    cites="drivers/iommu/iommufd/io_pagetable.c (iova_rwsem, domains_rwsem), device.c",
)
def changes_of_one_space_race_cleanly(t: Test) -> None:
    """Concurrent maps, copies, unmaps, GET_PAs, replacements and page tables on two IOASes give correct
    answers and only the expected errnos."""
    bdf = t.device("edu")
    # A file, since its pages can be pinned again after the process that mapped them has finished.
    fd = memory.memfd(PLACES * AREA)
    with memory.shared_file(fd, PLACES * AREA) as buffer, _no_trace(t, bdf), through_cdev(bdf) as user:
        buffer.touch()
        spaces = (user.ioas, user.iommufd.ioas_alloc())
        frames = memory.frames(buffer.address, buffer.length)

        def change(tally: racing.Tally) -> racing.Act:
            return lambda choices: _change(tally, choices, user.iommufd, spaces, fd)

        def ask(tally: racing.Tally) -> racing.Act:
            return lambda choices: _ask(tally, choices, user, spaces, frames)

        def replace(tally: racing.Tally) -> racing.Act:
            return lambda choices: _replace(tally, choices, user, spaces)

        met = ("map ok", "unmap ok", "copy ok", "ask ok", "attach ok", "table ok")
        racing.race(t, [change, change, ask, replace], *met)


def _change(
    tally: racing.Tally, choices: random.Random, iommufd: Iommufd, spaces: Sequence[int], fd: int
) -> None:
    """Map, copy or unmap one area, which always has the same pages."""
    one, other = choices.sample(spaces, 2)
    start = choices.randrange(PLACES) * AREA
    iova = BASE + start
    kind = choices.choice(("map", "map", "map", "copy", "copy", "copy", "unmap", "unmap", "all"))
    if kind == "map":
        tally.attempt(kind, (errno.EEXIST,), lambda: iommufd.map_file(one, fd, AREA, iova, start=start))
    elif kind == "copy":
        allowed = (errno.EEXIST, errno.ENOENT)
        tally.attempt(kind, allowed, lambda: iommufd.copy(one, other, AREA, iova, iova))
    elif kind == "unmap":
        tally.attempt(kind, (errno.ENOENT, errno.EBUSY), lambda: iommufd.unmap(one, iova, AREA))
    else:
        tally.attempt(kind, (errno.EBUSY,), lambda: iommufd.unmap(one, 0, LAST_IOVA))


def _ask(
    tally: racing.Tally, choices: random.Random, user: CdevUser, spaces: Sequence[int], frames: Sequence[int]
) -> None:
    """Call GET_PA for a page: an answer must be the page's frame at any time."""
    page, ioas = choices.randrange(len(frames)), choices.choice(spaces)
    got = tally.attempt("ask", UNMAPPED, lambda: user.iommufd.get_pa(ioas, BASE + page * PAGE, PAGE))
    assert got in (None, (frames[page], PAGE)), (
        f"GET_PA says that page {page} is at {got}, not {frames[page]:#x}"
    )


def _replace(tally: racing.Tally, choices: random.Random, user: CdevUser, spaces: Sequence[int]) -> None:
    """Move the device to another IOAS, or allocate a page table and destroy it."""
    ioas = choices.choice(spaces)
    kind = choices.choice(("attach", "attach", "attach", "detach", "table", "table"))
    if kind == "attach":
        tally.attempt(kind, (), lambda: user.device.attach(ioas))
    elif kind == "detach":
        tally.attempt(kind, (), user.device.detach)
    else:
        table = tally.attempt(kind, (), lambda: user.iommufd.hwpt_alloc(user.devid, ioas))
        assert table is not None
        user.iommufd.destroy(table)


@case(
    needs=SMP,
    timeout=60,
    cites="drivers/iommu/iommufd/main.c iommufd_object_remove(), iommufd_destroy(), iommufd_get_object()",
)
def destroying_races_with_use(t: Test) -> None:
    """Destroying an IOAS in use by other tasks is EBUSY for the destroyer, or succeeds and is ENOENT for the
    others."""
    bdf = t.device("edu")
    fd = memory.memfd()
    with _no_trace(t, bdf), through_cdev(bdf) as user:
        user.device.detach()
        first = user.ioas

        def use(tally: racing.Tally) -> racing.Act:
            return lambda choices: _use_any(tally, choices, user, first, fd)

        def destroy(tally: racing.Tally) -> racing.Act:
            return lambda choices: _destroy_any(tally, choices, user, first)

        racing.race(t, [use, use, destroy], "destroy ok", "alloc ok", "map ok", "attach ok")


def _use_any(tally: racing.Tally, choices: random.Random, user: CdevUser, first: int, fd: int) -> None:
    """Use an ID that is an IOAS, a page table, or already destroyed."""
    some = choices.randrange(first, first + IDS)
    none = (errno.ENOENT,)
    kind = choices.choice(("alloc", "map", "map", "ask", "ask", "attach", "attach", "detach"))
    if kind == "alloc":
        tally.attempt(kind, (), user.iommufd.ioas_alloc)
    elif kind == "map":
        allowed = (*none, errno.EEXIST)
        tally.attempt(kind, allowed, lambda: user.iommufd.map_file(some, fd, PAGE, BASE))
    elif kind == "ask":
        tally.attempt(kind, UNMAPPED, lambda: user.iommufd.get_pa(some, BASE, PAGE))
    elif kind == "attach":
        tally.attempt(kind, none, lambda: user.device.attach(some))
    else:
        tally.attempt(kind, (), user.device.detach)


def _destroy_any(tally: racing.Tally, choices: random.Random, user: CdevUser, first: int) -> None:
    some = choices.randrange(first, first + IDS)
    tally.attempt("destroy", (errno.ENOENT, errno.EBUSY), lambda: user.iommufd.destroy(some))


@case(
    needs=SMP,
    timeout=60,
    cites="drivers/iommu/iommufd/pages.c pfn_reader_user_pin(); mm/gup.c (against munmap and madvise)",
)
def pinning_races_with_the_address_space(t: Test) -> None:
    """Memory that is unmapped, dropped and mapped again while it is pinned is either pinned completely or
    EFAULT."""
    bdf = t.device("edu")
    t.log(f"seed {t.seed}")
    with _no_trace(t, bdf), through_cdev(bdf) as user, memory.anonymous(PLACES * AREA) as buffer:
        stop = threading.Event()
        upheaval = threading.Thread(target=_upheave, args=(random.Random(t.seed), buffer, stop))
        upheaval.start()
        tally = racing.Tally()
        try:
            for number in range(racing.ROUNDS):
                seed = t.seed * racing.ROUNDS + number
                racing.until(racing.STRESS, seed, lambda choices: _pin(tally, choices, user, buffer))
                if len(tally.counts) == 2:
                    break
        finally:
            stop.set()
            upheaval.join()
        t.log(tally.counts)
        t.equal(memory.pinned_pages(), 0, "pages pinned afterwards")
        t.equal(sorted(tally.counts), ["map EFAULT", "map ok"], "the outcomes seen")


def _pin(tally: racing.Tally, choices: random.Random, user: CdevUser, buffer: memory.Buffer) -> None:
    offset = choices.randrange(PLACES) * AREA
    start, iova = buffer.address + offset, BASE + offset
    if tally.attempt("map", (errno.EFAULT,), lambda: user.iommufd.map(user.ioas, start, AREA, iova)) is None:
        return
    frames = [user.physical(iova + page * PAGE, PAGE) for page in range(AREA // PAGE)]
    assert len(set(frames)) == len(frames), f"the same frame twice: {frames}"
    assert 0 not in frames, f"a page without a frame: {frames}"
    user.iommufd.unmap(user.ioas, iova, AREA)


def _upheave(choices: random.Random, buffer: memory.Buffer, stop: threading.Event) -> None:
    """Unmap pages, drop them and map new ones in their place."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory.MAP_FIXED
    while not stop.is_set():
        address = buffer.address + choices.randrange(buffer.length // PAGE) * PAGE
        kind = choices.randrange(4)
        if kind == 0:
            # Inaccessible instead of unmapped, so that no other mapping gets their place.
            libc.mmap(PAGE, memory.PROT_NONE, flags, address=address)
        elif kind == 1:
            libc.mmap(PAGE, memory.READ_WRITE, flags, address=address)
        elif kind == 2:
            libc.madvise(address, PAGE, memory.MADV_DONTNEED)
        else:
            libc.mmap(
                AREA, memory.READ_WRITE, flags, address=buffer.address + choices.randrange(PLACES) * AREA
            )
