# SPDX-License-Identifier: GPL-2.0-only
"""Two tasks that share files and change the same thing at once: each call is done completely or refused.

`races` has users against unbinding, removal and being killed; here nobody goes away. What one lock of the
kernel protects is changed by one task while another depends on it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from guest import edu, forked, igb, libc, memory, pci, racing, vfio
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import HUGE, PAGE
from guest.opened import (
    container_type,
    open_files,
    opened,
    through_cdev,
    through_group,
    usable,
)
from guest.touching import Touch
from guest.uapi import errno_of, errnos_at_once

SMP = ("noiommu-cdev", "edu", "smp", "!viommu")
ANY = ("cdev", "iommufd", "edu", "smp")
EDU = ("noiommu", "edu", "smp", "!viommu")
IGB = ("noiommu", "igb", "smp", "!viommu")

BRIEF = 0.5
"""Duration of a race in seconds: hundreds of turns under emulation."""

BINDS, PLACES = 12, 200

BASE = 0x40_0000_0000
AREA = 4 * PAGE

UNMAPPED = (errno.ENOENT, errno.EOPNOTSUPP)
"""The errnos of GET_PA without a mapping and without a page table."""


@contextlib.contextmanager
def _balanced(t: Test, *, files: bool = True) -> Iterator[None]:
    """Fail unless the block leaves as many pins, table pages and open files as it found, and no complaint."""

    def level() -> tuple[int, ...]:
        return (memory.held_pins(), memory.table_pages(), *((open_files(),) if files else ()))

    before = level()
    yield
    t.check_no_complaint()
    t.wait_until(lambda: level() == before, f"the return to {before} pins, table pages and files", 5)


@case(
    needs=ANY,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_attach_pt(), vfio_df_ioctl_detach_pt() (dev_set lock)",
    timeout=60,
)
def attaching_races_with_detaching(t: Test) -> None:
    """Two tasks that attach, replace and detach one device at once always succeed, and afterwards one DETACH
    frees the device, its address spaces and all pages."""
    bdf = usable(t, "edu", "cdev")
    fd = memory.memfd(AREA)
    with _balanced(t), through_cdev(bdf) as user:
        iommufd, spaces = user.iommufd, (user.ioas, user.iommufd.ioas_alloc())
        for ioas in spaces:
            iommufd.map_file(ioas, fd, AREA, BASE)

        def change(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                if choices.random() < 0.5:
                    tally.attempt("attach", (), lambda: user.device.attach(choices.choice(spaces)))
                else:
                    tally.attempt("detach", (), user.device.detach)

            return act

        racing.race(t, [change, change], "attach ok", "detach ok", stress=BRIEF)
        user.device.detach()
        t.equal([errno_of(iommufd.destroy, ioas) for ioas in spaces], [0, 0], "errno of destroying each IOAS")


@case(
    needs=SMP,
    cites="drivers/iommu/iommufd/io_pagetable.c iopt_get_phys() (iova_rwsem), iopt_unmap_iova_range()",
    timeout=60,
)
def long_answers_race_with_unmapping(t: Test) -> None:
    """GET_PA of a 2 MiB page that is mapped, unmapped and detached meanwhile answers for all of it or not at
    all: never a shorter piece, never another address."""
    bdf = t.device("edu", iommu=False)
    if not memory.set_hugepages(1):
        t.skip("no 2 MiB page can be reserved")
    fd = memory.memfd(HUGE, huge=True)
    with through_cdev(bdf) as user, memory.shared_file(fd, HUGE) as view:
        view.touch(HUGE)
        frame, iommufd = view.physical(), user.iommufd

        def change(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                if choices.random() < 0.2:
                    user.device.detach()
                    user.device.attach(user.ioas)
                tally.attempt("map", (), lambda: iommufd.map_file(user.ioas, fd, HUGE, BASE))
                tally.attempt("unmap", (), lambda: iommufd.unmap(user.ioas, BASE, HUGE))

            return act

        def ask(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                skipped = choices.choice((0, 0, 1, PAGE, 255 * PAGE + 8))
                got = tally.attempt(
                    "ask", UNMAPPED, lambda: iommufd.get_pa(user.ioas, BASE + skipped, LAST_IOVA)
                )
                want = (frame + skipped, HUGE - skipped)
                assert got in (None, want), f"GET_PA at {skipped:#x} says {got}, and not {want}"

            return act

        racing.race(t, [change, ask, ask], "map ok", "ask ok", "ask ENOENT", stress=BRIEF)
        t.check_no_complaint()


class _Phase:
    """What one process says about the state of a device and others read: odd while it is off for certain."""

    def __init__(self) -> None:
        self._page = memory.shared_file(memory.memfd(), PAGE)

    def get(self) -> int:
        """Return the number of the phase: even on, odd off, and between two changes 0."""
        return int.from_bytes(self._page.read(0, 8), "little")

    def set(self, number: int) -> None:
        """Begin a phase; 0 while the state changes."""
        self._page.write(number.to_bytes(8, "little"))


Way = tuple[Callable[[], object], Callable[[], object]]
"""How a device's registers disappear for a mapping, and how they come back."""


def _memory_enable(device: vfio.Device) -> Way:
    command = device.read_config(vfio.PCI_COMMAND, 2)
    place = device.region(vfio.CONFIG).offset + vfio.PCI_COMMAND
    off, on = (struct.pack("<H", value) for value in (command & ~vfio.PCI_COMMAND_MEMORY, command))
    return (lambda: os.pwrite(device.fd, off, place), lambda: os.pwrite(device.fd, on, place))


def _low_power(device: vfio.Device) -> Way:
    enter, leave = (vfio.FEATURE_SET | feature for feature in (vfio.LOW_POWER_ENTRY, vfio.LOW_POWER_EXIT))
    return (lambda: device.feature(enter), lambda: device.feature(leave))


def _d3(device: vfio.Device, bdf: str) -> Way:
    control = pci.capability(bdf, pci.CAP_POWER) + 4
    return (lambda: device.write_config(control, 2, 3), lambda: device.write_config(control, 2, 0))


def _toggler(phase: _Phase, ways: Sequence[Way]) -> racing.Act:
    """Return an act that makes the registers disappear and come back, in one of *ways*."""
    number = 2

    def act(choices: random.Random) -> None:
        nonlocal number
        off, on = choices.choice(ways)
        phase.set(0)
        off()
        number += 2
        phase.set(number + 1)
        for _ in range(choices.randrange(200)):
            pass
        phase.set(0)
        on()
        phase.set(number)
        for _ in range(choices.randrange(200)):
            pass

    return act


def _touch_while_it_comes_and_goes(
    t: Test, device: vfio.Device, register: int, ways: Callable[[vfio.Device], Sequence[Way]]
) -> None:
    """Load from *register* of BAR 0 while another task makes it disappear and come back."""
    phase = _Phase()
    with device.bar(length=PAGE) as bar:
        want = bar.read32(register)

        def touch(tally: racing.Tally) -> racing.Act:
            place = Touch(device)

            def act(choices: random.Random) -> None:
                # Any page, so that nearly every load is a fault; only one has a register with a known value.
                page = choices.choice((0, choices.randrange(place.pages)))
                before = phase.get()
                got = tally.attempt("load", (errno.EFAULT,), lambda: place.read32(page * PAGE + register))
                same = before == phase.get()
                assert page or got in (None, want), f"a load gave {got:#x}, and not {want:#x}"
                if same and before % 2:
                    assert got is None, "a load worked while the BAR was off"
                elif same and before:
                    assert got is not None, "a load was SIGBUS while the BAR was on"

            return act

        phase.set(2)
        meanwhile = _toggler(phase, ways(device))
        racing.race(t, [touch], "load ok", "load EFAULT", meanwhile=meanwhile, stress=BRIEF)
        t.equal(bar.read32(register), want, "the register afterwards")


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_vmf_insert_pfn() (memory_lock), vfio_pci_zap_bars()",
    timeout=60,
)
def touching_a_bar_races_with_its_disappearance(t: Test) -> None:
    """A load from a mapped BAR that another task turns off and on, or puts in low power, is the register
    while it is on and SIGBUS while it is off, from the moment on that the call returned."""
    with _balanced(t, files=False), opened(t, t.device("edu")) as device:
        _touch_while_it_comes_and_goes(
            t,
            device,
            edu.REG_IDENTIFICATION,
            lambda device: (_memory_enable(device),) * 3 + (_low_power(device),),
        )


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_config.c vfio_lock_and_set_power_state() (memory_lock); vfio_pci_core.c",
    timeout=60,
)
def touching_a_bar_races_with_d3(t: Test) -> None:
    """A load from a mapped BAR of a card that another task puts in D3 and wakes is the register in D0 and
    SIGBUS in D3, from the moment on that the write returned."""
    bdf = t.device("igb")
    with _balanced(t, files=False), opened(t, bdf) as device:
        _touch_while_it_comes_and_goes(t, device, igb.VET, lambda device: (_d3(device, bdf),))


@case(
    needs=IGB,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_reset() (memory_lock)",
    timeout=60,
)
def touching_a_bar_waits_for_a_reset(t: Test) -> None:
    """A load from a mapped BAR while another task resets the card is always the register, never a SIGBUS and
    never what a card in reset gives."""
    with _balanced(t, files=False), opened(t, t.device("igb")) as device, device.bar(length=PAGE) as bar:
        device.reset()
        want = bar.read32(igb.VET)  # a register that a reset sets to a number that is neither 0 nor -1
        t.check(want not in (0, 0xFFFFFFFF), f"the register is {want:#x}, so this case would prove nothing")

        def touch(tally: racing.Tally) -> racing.Act:
            place = Touch(device)

            def act(choices: random.Random) -> None:
                page = choices.choice((0, choices.randrange(place.pages)))
                got = tally.attempt("load", (), lambda: place.read32(page * PAGE + igb.VET))
                assert page or got == want, f"a load gave {got:#x}, and not {want:#x}"

            return act

        racing.race(t, [touch], "load ok", meanwhile=lambda _: device.reset(), stress=BRIEF)


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_rdwr.c VFIO_IOREAD(), VFIO_IOWRITE() (memory_lock); vfio_pci_config.c",
    timeout=60,
)
def reading_a_bar_races_with_memory_enable(t: Test) -> None:
    """A transfer through the file while another task turns memory decoding off and on moves the register's
    value or is EIO, and never anything else."""
    with opened(t, t.device("edu")) as device:
        command = device.read_config(vfio.PCI_COMMAND, 2)
        place = device.region(vfio.BAR0).offset
        config = device.region(vfio.CONFIG).offset + vfio.PCI_COMMAND

        def transfer(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                value = struct.pack("<I", edu.IDENTIFIES)
                got = tally.attempt("read", (errno.EIO,), lambda: os.pread(device.fd, 4, place))
                assert got in (None, value), f"a read gave {got!r}"
                two = struct.pack("<Q", choices.getrandbits(40))
                where = place + edu.REG_DMA_SOURCE
                tally.attempt("write", (errno.EIO,), lambda: os.pwrite(device.fd, two, where))

            return act

        def toggle(_: random.Random) -> None:
            for value in (command & ~vfio.PCI_COMMAND_MEMORY, command):
                os.pwrite(device.fd, struct.pack("<H", value), config)

        met = ("read ok", "read EIO", "write ok")
        racing.race(t, [transfer], *met, meanwhile=toggle, stress=BRIEF)
        t.check_no_complaint()


@case(
    needs=SMP,
    cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (access_granted, dev_set lock)",
    timeout=60,
)
def one_file_is_bound_once(t: Test) -> None:
    """Of two tasks that bind one device file at once, one succeeds and the other is EINVAL; after the file is
    closed the device can be bound again and its group, if it has one, opened."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf), _balanced(t), Iommufd() as one, Iommufd() as other:
        for _ in range(BINDS):
            with vfio.open_cdev(bdf) as device:
                results = errnos_at_once(
                    lambda: device.bind_iommufd(one.fd), lambda: device.bind_iommufd(other.fd)
                )
                t.equal(sorted(results), [0, errno.EINVAL], "errnos of the two BINDs")
            if "noiommu-group" in t.features:
                vfio.open_group(bdf).close()


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_ioctl_set_irqs() (igate); vfio_pci_intrs.c",
    timeout=60,
)
def interrupts_are_set_up_by_two_tasks(t: Test) -> None:
    """Two tasks that set up, trigger and disable MSI and INTx of one device at once get success or EINVAL;
    afterwards an interrupt of either kind can be set up and arrives."""
    with opened(t, t.device("edu")) as device, _balanced(t):

        def change(tally: racing.Tally) -> racing.Act:
            fds = [libc.eventfd() for _ in range(2)]

            def act(choices: random.Random) -> None:
                index = choices.choice((vfio.MSI, vfio.INTX))
                kind = choices.choice(("set", "set", "trigger", "disable"))
                if kind == "set":
                    fd = choices.choice(fds)
                    tally.attempt(kind, (errno.EINVAL,), lambda: device.set_eventfds(index, fd))
                elif kind == "trigger":
                    tally.attempt(kind, (errno.EINVAL,), lambda: device.trigger(index))
                else:
                    tally.attempt(kind, (errno.EINVAL,), lambda: device.disable_irqs(index))

            return act

        met = ("set ok", "set EINVAL", "trigger ok", "disable ok")
        racing.race(t, [change, change], *met, stress=BRIEF)
        for index in (vfio.MSI, vfio.INTX):
            with contextlib.suppress(OSError):
                device.disable_irqs(index)
        fd = libc.eventfd()
        for index in (vfio.MSI, vfio.INTX, vfio.MSI):
            device.set_eventfds(index, fd)
            device.trigger(index)
            t.equal(libc.eventfd_count(fd), 1, f"events of interrupt {index}")
            device.disable_irqs(index)
        os.close(fd)


@case(needs=EDU, cites="drivers/vfio/pci/vfio_pci_rdwr.c vfio_pci_ioeventfd() (ioeventfds_lock)", timeout=60)
def ioeventfds_are_set_by_two_tasks(t: Test) -> None:
    """Two tasks that add and remove the same ioeventfds at once get success, EEXIST or ENODEV; each can be
    removed at most once afterwards, and then added and used."""
    with opened(t, t.device("edu")) as device, device.bar() as bar, _balanced(t):
        place = device.region(vfio.BAR0).offset + edu.REG_LIVENESS

        def call(number: int, fd: int) -> None:
            device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=place, data=number, fd=fd))

        def change(tally: racing.Tally) -> racing.Act:
            fd = libc.eventfd()

            def act(choices: random.Random) -> None:
                number = choices.randrange(3)
                if choices.random() < 0.5:
                    tally.attempt("add", (errno.EEXIST,), lambda: call(number, fd))
                else:
                    tally.attempt("remove", (errno.ENODEV,), lambda: call(number, -1))

            return act

        met = ("add ok", "add EEXIST", "remove ok", "remove ENODEV")
        racing.race(t, [change, change], *met, stress=BRIEF)
        fd = libc.eventfd()
        for number in range(3):
            t.check(errno_of(call, number, -1) in (0, errno.ENODEV), "the last removal")
            t.errno(errno.ENODEV, call, number, -1)
            call(number, fd)
            bar.write32(edu.REG_LIVENESS, 0xFF)
            os.write(fd, struct.pack("<Q", 1))
            want = ~number & 0xFFFFFFFF
            t.wait_until(lambda want=want: bar.read32(edu.REG_LIVENESS) == want, "the write")  # type: ignore[misc]
            call(number, -1)
        os.close(fd)


@case(
    needs=("noiommu-group", "edu", "smp", "!viommu"),
    cites="drivers/vfio/group.c vfio_df_group_open(), vfio_df_group_close() (open_count); vfio_main.c",
    timeout=60,
)
def devices_of_one_group_are_opened_by_two_tasks(t: Test) -> None:
    """Two tasks that open, use and close the device of one group at once always succeed; bus mastering is on
    for neither after the last has closed it, and the group can leave its container."""
    bdf = t.device("edu", iommu=False)
    with _balanced(t), through_group(bdf) as user:
        user.device.close()

        def use(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                device = tally.attempt("open", (), lambda: user.group.device(bdf))
                assert device is not None
                with device:
                    assert device.read_config(vfio.PCI_VENDOR_ID, 2) == edu.VENDOR_ID, "another vendor"
                    if choices.random() < 0.5:
                        device.set_bus_master()
                    if choices.random() < 0.3:
                        with device.bar(length=PAGE) as bar:
                            assert bar.read32(0) == edu.IDENTIFIES, "another identification"

            return act

        racing.race(t, [use, use], "open ok", stress=BRIEF)
        t.check(
            not pci.config_number(bdf, vfio.PCI_COMMAND, 2) & 4, "bus mastering is on after the last close"
        )
        with user.group.device(bdf) as again:
            t.check(not again.read_config(vfio.PCI_COMMAND, 2) & 4, "bus mastering is on after an open")
        user.group.unset_container()


@case(
    needs=("noiommu-group", "container", "edu", "smp", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_ioctl_set_container(), vfio_group_ioctl_unset_container() "
    "(group_lock); container.c (group_lock of the container)",
    timeout=60,
)
def containers_are_changed_by_two_tasks(t: Test) -> None:
    """Two tasks that move one group in and out of two containers and open its device at once get success,
    EINVAL or EBUSY; afterwards the group joins, gives its device and leaves."""
    bdf = t.device("edu", iommu=False)
    with (
        _balanced(t),
        pci.bound(bdf),
        vfio.open_group(bdf) as group,
        vfio.open_container() as one,
        vfio.open_container() as two,
    ):

        def change(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                container = choices.choice((one, two))
                kind = choices.choice(("join", "type", "open", "open", "leave"))
                refused = (errno.EINVAL, errno.EBUSY)
                if kind == "join":
                    tally.attempt(kind, refused, lambda: group.set_container(container))
                elif kind == "type":
                    tally.attempt(kind, refused, lambda: container.set_iommu(vfio.NOIOMMU_IOMMU))
                elif kind == "leave":
                    tally.attempt(kind, refused, group.unset_container)
                else:
                    device = tally.attempt(kind, refused, lambda: group.device(bdf))
                    if device is not None:
                        with device:
                            assert device.read_config(vfio.PCI_VENDOR_ID, 2) == edu.VENDOR_ID

            return act

        met = ("join ok", "join EINVAL", "type ok", "open ok", "open EINVAL", "leave ok")
        racing.race(t, [change, change], *met, stress=BRIEF)
        with contextlib.suppress(OSError):
            group.unset_container()
        for container in (one, two):
            group.set_container(container)
            container.set_iommu(vfio.NOIOMMU_IOMMU)
            with group.device(bdf) as device:
                t.equal(device.read_config(vfio.PCI_VENDOR_ID, 2), edu.VENDOR_ID, "the vendor")
            group.unset_container()


@case(
    needs=SMP,
    cites="drivers/iommu/generic_pt/iommu_pt.h increase_top(), pt_table_install*() (cmpxchg); hwpt_noiommu.c "
    "noiommu_get_top_lock()",
    timeout=60,
)
def page_tables_grow_by_two_tasks(t: Test) -> None:
    """Pages that two tasks map at once into one address space, next to each other and far from all others,
    resolve all, and after UNMAP and DETACH no page of a table is left."""
    bdf = t.device("edu", iommu=False)
    fd, steps = memory.memfd(2 * PAGE), memory.memfd()
    # The first need one more level each, the others two more tables each.
    places = [0, *(1 << bits for bits in (21, 30, 39, 48, 57, 63)), *(n << 30 for n in range(2, PLACES))]
    with (
        _balanced(t),
        through_cdev(bdf) as user,
        memory.shared_file(fd, 2 * PAGE) as view,
        memory.shared_file(steps, PAGE) as turns,
    ):
        view.touch()
        frames, iommufd = memory.frames(view.address, view.length), user.iommufd

        def put(part: int, place: int) -> None:
            iommufd.map_file(user.ioas, fd, PAGE, place + part * PAGE, start=part * PAGE)

        def take(part: int, place: int) -> None:
            iommufd.unmap(user.ioas, place + part * PAGE, PAGE)

        _in_step(places, turns, put)
        for place in places:
            for part in (0, 1):
                got = iommufd.get_pa(user.ioas, place + part * PAGE, PAGE)
                t.equal(got, (frames[part], PAGE), f"the address of {place + part * PAGE:#x}")
        _in_step(places, turns, take)
        t.equal(iommufd.unmap(user.ioas, 0, LAST_IOVA), 0, "bytes left mapped")


def _in_step(places: Sequence[int], turns: memory.Buffer, act: Callable[[int, int], object]) -> None:
    """Let two processes *act* for the same one of *places* at the same time, one after the other."""
    turns.fill(0)

    def run(part: int) -> None:
        end = time.monotonic() + racing.LATE
        for turn, place in enumerate(places, 1):
            turns.write(turn.to_bytes(4, "little"), 4 * part)
            while int.from_bytes(turns.read(4 * (1 - part), 4), "little") < turn:
                assert time.monotonic() < end, "the other task does not come"
            act(part, place)

    with forked.Child(lambda: run(0)) as one, forked.Child(lambda: run(1)) as other:
        for child in (one, other):
            child.result(racing.LATE)


@case(
    needs=("viommu", "group", "edu", "smp"),
    cites="drivers/vfio/vfio_iommu_type1.c vfio_dma_do_map(), vfio_dma_do_unmap() (iommu->lock); "
    "iommufd/vfio_compat.c",
    timeout=60,
)
def container_maps_are_changed_by_two_tasks(t: Test) -> None:
    """Two tasks that map and unmap the same ranges of one container at once get success or an errno of the
    loser; afterwards nothing is pinned or locked, and every range can be mapped."""
    bdf = t.device("edu", iommu=True)
    fd = memory.memfd(4 * AREA)
    with (
        _balanced(t),
        through_group(bdf, container_type(bdf)) as user,
        memory.shared_file(fd, 4 * AREA) as view,
    ):
        view.touch()
        container = user.container

        def change(tally: racing.Tally) -> racing.Act:
            def act(choices: random.Random) -> None:
                part = choices.randrange(4) * AREA
                kind = choices.choice(("map", "map", "unmap", "all"))
                if kind == "map":
                    tally.attempt(
                        kind,
                        (errno.EEXIST,),
                        lambda: container.map_dma(view.address + part, BASE + part, AREA),
                    )
                elif kind == "unmap":
                    # iommufd says EBUSY while another task is mapping or unmapping the range.
                    got = tally.attempt(kind, (errno.EBUSY,), lambda: container.unmap_dma(BASE + part, AREA))
                    assert got in (None, 0, AREA), f"UNMAP_DMA says {got:#x}"
                else:
                    tally.attempt(kind, (errno.EBUSY,), lambda: container.unmap_dma(0, 0, vfio.UNMAP_ALL))

            return act

        # The racers are separate processes, whose memory is one file.
        racing.race(t, [change, change], "map ok", "map EEXIST", "unmap ok", "all ok", stress=BRIEF)
        container.unmap_dma(0, 0, vfio.UNMAP_ALL)
        container.map_dma(view.address, BASE, 4 * AREA)
        t.equal(container.unmap_dma(BASE, 4 * AREA), 4 * AREA, "bytes unmapped at the end")
        t.equal(memory.locked_pages(), 0, "pages locked afterwards")
