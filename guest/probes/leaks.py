# SPDX-License-Identifier: GPL-2.0-only
"""Leaks: no pin, page table, file or slab is left after each way to end use, or after many cycles of it."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from guest import edu, forked, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.leftovers import eventfds_come_back
from guest.memory import PAGE
from guest.opened import CdevUser, open_files, opened, reopened, through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
EDU = ("noiommu", "edu", "!viommu")

BASE = 0x1000_0000

CYCLES, REBINDS = 700, 30
"""So many leaks of the smallest object of vfio, 64 bytes, are more than SLAB_NOISE_KIB."""

WARM_UP = 0.15

SETTLE_SECONDS = 5.0

ROUNDS = 4
"""Slabs that grow by more than noise in this many rounds are a leak."""

SLAB_NOISE_KIB = 8 * PAGE // 1024
"""Growth of unreclaimable slabs that is no leak: one slab of order 3."""


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_fops_release(); hw_pagetable.c; iommu-pages.c")
def every_end_gives_everything_back(t: Test) -> None:
    """Unmap, detach, close, exit and kill each release all pins and, with the page table, all of its
    pages."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        before = (memory.held_pins(), memory.table_pages())
        for end in ("unmap", "detach", "close", "exit", "kill"):
            t.log(f"ending use by {end}")
            ready = forked.Gate()

            def use(how: str = end, ready: forked.Gate = ready) -> None:
                _use_until(bdf, how, ready)

            with forked.Child(use) as child:
                ready.wait()
                if end != "exit":
                    left = (memory.held_pins() - before[0], memory.table_pages() > before[1])
                    want = {"kill": (64, True), "unmap": (0, True)}.get(end, (0, False))
                    t.equal(left, want, f"pins, and whether page tables are left, after {end}")
                    child.kill()
                child.wait()
            t.equal((memory.held_pins(), memory.table_pages()), before, f"pins and table pages after {end}")


def _use_until(bdf: str, how: str, ready: forked.Gate) -> None:
    """Map 64 pages and undo that in the way *how*; then wait to be killed, unless *how* is exit."""
    device, iommufd = vfio.open_cdev(bdf), Iommufd()
    devid = device.bind_iommufd(iommufd.fd)
    user = CdevUser(device=device, iommufd=iommufd, ioas=iommufd.ioas_alloc(), devid=devid)
    device.attach(user.ioas)
    buffer = memory.anonymous(64 * PAGE)
    buffer.touch()
    user.map(buffer, BASE)
    if how == "unmap":
        iommufd.unmap(user.ioas, 0, LAST_IOVA)
    elif how == "detach":
        device.detach()
    elif how == "close":
        device.close()
        iommufd.close()
    ready.open()
    if how != "exit":
        forked.Gate().wait(60)


def _meminfo(*names: str) -> list[int]:
    values = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value = line.split()[:2]
        values[name.rstrip(":")] = int(value)
    return [values[name] for name in names]


def _level() -> list[int]:
    """Return what must be the same before and after: pins, table pages, unevictable pages, open files."""
    stuck = _meminfo("Unevictable", "Mlocked")
    return [memory.held_pins(), memory.table_pages(), *stuck, open_files()]


def _expect_no_growth(t: Test, cycle: Callable[[], None], turns: int) -> None:
    """Run *cycle* until caches are warm, then check that *turns* more of it leave nothing behind.

    Slabs of other users come and go; a leak grows in every round.
    """
    for _ in range(int(turns * WARM_UP)):
        cycle()
    level, growths = _level(), []
    for _ in range(ROUNDS):
        (slab,), caches = _meminfo("SUnreclaim"), _slabs()
        for _ in range(turns):
            cycle()
        t.wait_until(lambda: _level() == level, f"return to {level} (now {_level()})", 2)
        growth = _growth_when_settled(slab)
        t.log(f"{turns} turns, slabs grew by {growth} KiB")
        if growth <= SLAB_NOISE_KIB:
            return
        growths.append(growth)
        grown = {name: pages - caches.get(name, 0) for name, pages in _slabs().items()}
        t.log(f"pages by cache: {sorted(grown.items(), key=lambda one: -one[1])[:8]}")
    t.fail(f"{turns} turns grew unreclaimable slabs in each of {ROUNDS} rounds, by KiB: {growths}")


def _growth_when_settled(before: int) -> int:
    """Return by how many KiB unreclaimable slabs have grown from *before*, after RCU has freed its objects.

    After many turns on a slow CPU those are thousands of objects; leaked objects are still there then.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while (growth := _meminfo("SUnreclaim")[0] - before) > SLAB_NOISE_KIB and time.monotonic() < end:
        time.sleep(0.1)
    return growth


def _slabs() -> dict[str, int]:
    """Return the pages of each slab cache (slabinfo(5)), or nothing on a kernel without slabinfo."""
    try:
        lines = Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:]
    except FileNotFoundError:
        return {}
    fields = [line.split() for line in lines]
    return {field[0]: int(field[5]) * int(field[14]) for field in fields}


@case(
    needs=(*BARE, "!debug"),
    cites="drivers/vfio/device_cdev.c; drivers/iommu/iommufd/main.c, pages.c iopt_release_pages()",
    timeout=120,
)
def cycles_of_use_leave_nothing(t: Test) -> None:
    """700 cycles of open, bind, attach, map, GET_PA, unmap and close leave no page, pin, file or slab
    behind."""
    bdf = t.device("edu")
    with pci.bound(bdf) as nodes, memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()

        def cycle() -> None:
            with Iommufd() as iommufd, vfio.Device(os.open(str(nodes.cdev), os.O_RDWR)) as device:
                device.bind_iommufd(iommufd.fd)
                ioas = iommufd.ioas_alloc()
                device.attach(ioas)
                iova, _ = (iommufd.map(ioas, buffer.address + page * PAGE, PAGE) for page in range(2))
                iommufd.get_pa(ioas, iova, PAGE)
                iommufd.unmap(ioas, iova, PAGE)

        _expect_no_growth(t, cycle, CYCLES)


@case(
    needs=("noiommu", "edu", "!viommu", "!debug"),
    cites="drivers/vfio/vfio_main.c vfio_device_release()",
    timeout=60,
)
def cycles_of_binding_leave_nothing(t: Test) -> None:
    """Binding and unbinding a device 30 times leaves no file, page or slab behind."""
    bdf = t.device("edu")
    pci.set_parameter(True)
    pci.set_override(bdf, pci.VFIO_PCI)

    def cycle() -> None:
        pci.write(pci.BUS / "drivers" / pci.VFIO_PCI / "bind", bdf)
        pci.write(pci.path_of(bdf) / "driver" / "unbind", bdf)

    _expect_no_growth(t, cycle, REBINDS)
    pci.release(bdf)
    pci.set_parameter(False)


@case(needs=BARE, cites="drivers/vfio/device_cdev.c vfio_df_ioctl_bind_iommufd() (iommufd_ctx_put())")
def refused_bind_lets_go_of_its_iommufd(t: Test) -> None:
    """An iommufd to which binding a device in use was refused is released when its own file is closed,
    although the device file that was refused stays open."""
    bdf = t.device("edu")
    with through_cdev(bdf), vfio.open_cdev(bdf) as second:
        before = open_files()
        for _ in range(REBINDS):
            with Iommufd() as iommufd:
                t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        t.wait_until(
            lambda: open_files() < before + REBINDS / 2, f"the release of {REBINDS} closed iommufds", 5
        )


def _resample(device: vfio.Device, fd: int) -> None:
    flags = vfio.SET_DATA_EVENTFD | vfio.SET_ACTION_UNMASK
    device.set_irqs(vfio.INTX, flags, data=struct.pack("<i", fd))


def _write_on_signal(device: vfio.Device, fd: int) -> None:
    where = device.region(vfio.BAR0).offset + edu.REG_LIVENESS
    device.call(vfio.DEVICE_IOEVENTFD, vfio.Ioeventfd(flags=4, offset=where, data=1, fd=fd))


@case(
    needs=EDU,
    cites="drivers/vfio/pci/vfio_pci_intrs.c, virqfd.c virqfd_shutdown() (eventfd_ctx_put()); fs/eventfd.c "
    "eventfd_free_ctx()",
)
def eventfds_are_let_go_when_they_are_taken_away(t: Test) -> None:
    """The eventfd of an interrupt, a resample or an ioeventfd is released when another replaces it and when
    it is removed, with the device still open."""
    with opened(t, t.device("edu")) as device:
        for index in (vfio.INTX, vfio.MSI, vfio.ERR, vfio.REQ):
            with eventfds_come_back(t, f"interrupt {index} was replaced and disabled") as make:
                device.set_eventfds(index, make())
                device.set_eventfds(index, make())
                device.disable_irqs(index)
        with eventfds_come_back(t, "an INTx with a resample eventfd was disabled") as make:
            device.set_eventfds(vfio.INTX, make())
            _resample(device, make())
            device.disable_irqs(vfio.INTX)
        with eventfds_come_back(t, "an ioeventfd was removed") as make:
            _write_on_signal(device, make())
            _write_on_signal(device, -1)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(), vfio_pci_core_close_device()"
)
def eventfds_are_let_go_with_the_device(t: Test) -> None:
    """Every eventfd given to a device is released when its user closes the device without removing them
    first."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for kind in (vfio.INTX, vfio.MSI):
            with (
                eventfds_come_back(t, f"the device was closed with interrupt {kind}") as make,
                reopened(t, bdf) as device,
            ):
                for index in (kind, vfio.ERR, vfio.REQ):
                    device.set_eventfds(index, make())
                if kind == vfio.INTX:
                    _resample(device, make())
                _write_on_signal(device, make())
