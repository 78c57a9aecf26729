# SPDX-License-Identifier: GPL-2.0-only
"""That nothing is left behind: pins, page tables, files and slabs after every end and many cycles of use."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from guest import edu, forked, libc, memory, pci, vfio
from guest.case import Test, case
from guest.iommufd import LAST_IOVA, Iommufd
from guest.memory import PAGE
from guest.opened import CdevUser, open_files, opened, reopened, through_cdev

BARE = ("noiommu-cdev", "edu", "!viommu")
EDU = ("noiommu", "edu", "!viommu")

BASE = 0x1000_0000

CYCLES, REBINDS = 1000, 30

WARM_UP = 0.15

SETTLE_SECONDS = 5.0

ROUNDS = 4
"""How often slabs may grow by more than noise before that is a leak."""

EVENTFDS = 8
"""More than any block below makes."""

SLAB_NOISE_KIB = 32
"""What unreclaimable slabs may grow by without any leak, one slab of order 3; so many cycles of so small an
object as a struct vfio_device_file are more."""


@case(needs=BARE, cites="drivers/iommu/iommufd/main.c iommufd_fops_release(); hw_pagetable.c; iommu-pages.c")
def every_end_gives_everything_back(t: Test) -> None:
    """Unmap, detach, close, exit and kill each give back all pins and, with the table, all of its pages."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        before = (memory.held_pins(), memory.table_pages())
        for end in ("unmap", "detach", "close", "exit", "kill"):
            t.log(f"end by {end}")
            ready = forked.Gate()

            def use(how: str = end, ready: forked.Gate = ready) -> None:
                _use_until(bdf, how, ready)

            with forked.Child(use) as child:
                ready.wait()
                if end != "exit":
                    left = (memory.held_pins() - before[0], memory.table_pages() > before[1])
                    want = {"kill": (64, True), "unmap": (0, True)}.get(end, (0, False))
                    t.equal(left, want, f"pins, and whether tables are left, at {end}")
                    child.kill()
                child.wait()
            t.equal((memory.held_pins(), memory.table_pages()), before, f"pins and table pages after {end}")


def _use_until(bdf: str, how: str, ready: forked.Gate) -> None:
    """Map 64 pages, end that in the way *how*, and stay, or end as a process."""
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
    """What must be the same before and after: pins, table pages, pages that cannot go, open files."""
    stuck = _meminfo("Unevictable", "Mlocked")
    return [memory.held_pins(), memory.table_pages(), *stuck, open_files()]


def _expect_no_growth(t: Test, cycle: Callable[[], None], turns: int) -> None:
    """Run *cycle* till caches are warm, and then see that *turns* more of it leave nothing behind.

    Slabs of others come and go; a leak grows in every round.
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
    t.fail(f"{turns} turns left KiB in unreclaimable slabs, in each of {ROUNDS} rounds: {growths}")


def _growth_when_settled(before: int) -> int:
    """KiB that unreclaimable slabs have grown by from *before*, once what RCU is to free has been freed.

    After many turns on a slow processor that are thousands of objects; what has leaked is still there then.
    """
    end = time.monotonic() + SETTLE_SECONDS
    while (growth := _meminfo("SUnreclaim")[0] - before) > SLAB_NOISE_KIB and time.monotonic() < end:
        time.sleep(0.1)
    return growth


def _slabs() -> dict[str, int]:
    """Pages of each cache of slabs (slabinfo(5)); nothing on a kernel that does not tell."""
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
    """Open, bind, attach, map, ask, unmap and close, a thousand times: no page, pin, file or slab is left."""
    bdf = t.device("edu")
    with pci.bound(bdf), memory.anonymous(2 * PAGE) as buffer:
        buffer.touch()

        def cycle() -> None:
            with Iommufd() as iommufd, vfio.open_cdev(bdf) as device:
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
    """Bound and unbound 30 times, a device leaves no file, page or slab behind."""
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
    """An iommufd to which a device in use could not be bound goes when its own file is closed, although the
    device's file that was refused stays open."""
    bdf = t.device("edu")
    with through_cdev(bdf), vfio.open_cdev(bdf) as second:
        before = open_files()
        for _ in range(REBINDS):
            with Iommufd() as iommufd:
                t.errno(errno.EINVAL, second.bind_iommufd, iommufd.fd)
        t.wait_until(
            lambda: open_files() < before + REBINDS / 2, f"the end of {REBINDS} iommufds that were closed", 5
        )


def _free_eventfd_ids() -> list[str]:
    """The kernel's numbers for the next eventfds, which are the lowest that no eventfd has any more."""
    fds = [libc.eventfd() for _ in range(EVENTFDS)]
    told = [Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines() for fd in fds]
    for fd in fds:
        os.close(fd)
    return [line for lines in told for line in lines if line.startswith("eventfd-id:")]


@contextlib.contextmanager
def _eventfds_come_back(t: Test, what: str) -> Iterator[Callable[[], int]]:
    """A maker of eventfds, which are closed after the block; fail when the kernel keeps any of them then."""
    free, made = _free_eventfd_ids(), []

    def make() -> int:
        made.append(libc.eventfd())
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
    # ERR and REQ let theirs go when RCU says so.
    t.wait_until(lambda: _free_eventfd_ids() == free, f"return of all eventfds after {what}", 5)


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
    """An eventfd that an interrupt, a resample or an ioeventfd had is let go when another takes its place and
    when it is taken away, with the device still open."""
    with opened(t, t.device("edu")) as device:
        for index in (vfio.INTX, vfio.MSI, vfio.ERR, vfio.REQ):
            with _eventfds_come_back(t, f"interrupt {index} was replaced and switched off") as make:
                device.set_eventfds(index, make())
                device.set_eventfds(index, make())
                device.disable_irqs(index)
        with _eventfds_come_back(t, "an INTx with a resample was switched off") as make:
            device.set_eventfds(vfio.INTX, make())
            _resample(device, make())
            device.disable_irqs(vfio.INTX)
        with _eventfds_come_back(t, "an ioeventfd was taken away") as make:
            _write_on_signal(device, make())
            _write_on_signal(device, -1)


@case(
    needs=EDU, cites="drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_disable(), vfio_pci_core_close_device()"
)
def eventfds_are_let_go_with_the_device(t: Test) -> None:
    """Every eventfd that a device was given is let go when its user closes the device and does nothing
    else."""
    bdf = t.device("edu")
    with pci.bound(bdf):
        for kind in (vfio.INTX, vfio.MSI):
            with (
                _eventfds_come_back(t, f"the device was closed with interrupt {kind}") as make,
                reopened(t, bdf) as device,
            ):
                for index in (kind, vfio.ERR, vfio.REQ):
                    device.set_eventfds(index, make())
                if kind == vfio.INTX:
                    _resample(device, make())
                _write_on_signal(device, make())
