# SPDX-License-Identifier: GPL-2.0-only
"""A device behind an IOMMU and one without an IOMMU in the same iommufd."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from guest import edu, memory, pci, vfio
from guest.case import Test, case
from guest.memory import PAGE
from guest.opened import CdevUser, round_trip, through_cdev

MIXED = ("mixed", "noiommu-cdev", "iommufd", "edu2")

IOVA = 0x40_0000_0000


@contextlib.contextmanager
def _bare_in_use(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int]]:
    """Yield an attached device without an IOMMU, and one behind an IOMMU bound to the same iommufd."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with through_cdev(bare) as user, pci.bound(real), vfio.open_cdev(real) as device:
        yield user, device, device.bind_iommufd(user.iommufd.fd)


@contextlib.contextmanager
def _real_in_use(t: Test) -> Iterator[tuple[CdevUser, vfio.Device, int]]:
    """Yield an attached device behind an IOMMU, and one without an IOMMU bound to the same iommufd."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with through_cdev(real) as user, pci.bound(bare), vfio.open_cdev(bare) as device:
        yield user, device, device.bind_iommufd(user.iommufd.fd)


@case(
    needs=MIXED, cites="drivers/iommu/iommufd/device.c iommufd_device_bind(); io_pagetable.c iopt_get_phys()"
)
def one_iommufd_serves_both_kinds(t: Test) -> None:
    """A device behind an IOMMU and one without have separate IOASes in one iommufd: GET_PA is refused on the
    first IOAS and works on the second, whatever the first device does."""
    with _bare_in_use(t) as (user, real, devid), memory.anonymous() as page:
        page.touch()
        iommufd, ioas = user.iommufd, user.iommufd.ioas_alloc()
        for space in (ioas, user.ioas):
            iommufd.map(space, page.address, PAGE, IOVA)
        for _ in range(2):
            real.attach(ioas)
            t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, IOVA, PAGE)
            t.equal(user.physical(IOVA, PAGE), page.physical(), "the address beside a translated device")
            real.detach()
            t.equal(
                user.physical(IOVA, PAGE),
                page.physical(),
                "the address after the translated device was detached",
            )
        iommufd.get_hw_info(devid)
        t.errno(errno.EOPNOTSUPP, iommufd.get_hw_info, user.devid)


@case(needs=MIXED, cites="drivers/iommu/iommu.c __iommu_attach_group(), __iommu_attach_device()")
def translated_device_takes_no_software_table(t: Test) -> None:
    """Attaching a device behind an IOMMU to the page table of a no-IOMMU device is refused and changes
    nothing."""
    with _bare_in_use(t) as (user, real, _devid):
        table = user.iommufd.hwpt_alloc(user.devid, user.ioas)
        t.errno(errno.EINVAL, real.attach, table)
        own = user.iommufd.ioas_alloc()
        real.attach(own)
        t.errno((errno.EINVAL, errno.ENODEV), real.attach, table)
        t.errno(errno.EBUSY, user.iommufd.destroy, own)
        user.iommufd.destroy(table)


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_hwpt_attach_device(), iommufd_hwpt_replace_device()",
)
def bare_device_takes_no_translated_table(t: Test) -> None:
    """Attaching a device without an IOMMU to the page table of a device behind an IOMMU is refused."""
    with _bare_in_use(t) as (user, _real, devid):
        table = user.iommufd.hwpt_alloc(devid, user.iommufd.ioas_alloc())
        t.errno(errno.EINVAL, user.device.attach, table)


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); drivers/iommu/iommu.c "
    "iommu_replace_group_handle()",
)
def attached_device_moves_to_an_ioas_in_noiommu_use(t: Test) -> None:
    """A translated device that is attached elsewhere can move to the IOAS of a no-IOMMU device."""
    with _real_in_use(t) as (user, bare, _):
        shared = user.iommufd.ioas_alloc()
        table = bare.attach(shared)
        try:
            t.check(user.device.attach(shared) != table, "both devices share one page table")
        except OSError as error:
            t.fail(f"a replacing ATTACH to the IOAS of a no-IOMMU device failed: {error}")


@case(
    needs=MIXED,
    cites="drivers/iommu/iommufd/device.c iommufd_device_do_replace() (err_unresv)",
)
def failed_replacement_keeps_reserved_ranges(t: Test) -> None:
    """After a failed replacement the device's reserved IOVA ranges stay reserved."""
    window = pci.interrupt_window(t.device("edu", iommu=True))
    with _real_in_use(t) as (user, _, devid), memory.anonymous() as page:
        page.touch()
        t.errno(errno.EINVAL, user.map, page, window)
        before = user.iommufd.iova_ranges(user.ioas)[0]
        foreign = user.iommufd.hwpt_alloc(devid, user.ioas)
        t.errno((errno.EINVAL, errno.ENODEV), user.device.attach, foreign)
        t.equal(user.iommufd.iova_ranges(user.ioas)[0], before, "usable ranges after the failed ATTACH")
        t.errno(errno.EINVAL, user.map, page, window)


@case(
    needs=("mixed", "noiommu-cdev", "edu2"),
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(), iommufd_hwpt_attach_device()",
)
def attach_after_a_real_device_is_honest(t: Test) -> None:
    """A no-IOMMU device that attaches to a translated device's IOAS either gets addresses or is refused."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with (
        through_cdev(real) as user,
        pci.bound(bare),
        vfio.open_cdev(bare) as device,
        memory.anonymous() as page,
    ):
        page.touch()
        user.map(page, IOVA)
        device.bind_iommufd(user.iommufd.fd)
        try:
            device.attach(user.ioas)
        except OSError as error:
            t.equal(error.errno, errno.EINVAL, "the errno of the refused ATTACH")
            return
        try:
            t.equal(user.physical(IOVA, PAGE), page.physical(), "the address")
        except OSError as error:
            t.fail(f"ATTACH succeeded, but GET_PA failed: {error}")


@case(
    needs=("mixed", "noiommu-cdev", "edu2"),
    cites="drivers/iommu/iommufd/device.c iommufd_device_auto_get_domain(); io_pagetable.c iopt_get_phys()",
)
def noiommu_device_first_keeps_its_addresses(t: Test) -> None:
    """A no-IOMMU device keeps its addresses when a translated device attaches to its IOAS."""
    bare, real = t.device("edu", iommu=False), t.device("edu", iommu=True)
    with (
        through_cdev(bare) as user,
        pci.bound(real),
        vfio.open_cdev(real) as device,
        memory.anonymous() as page,
    ):
        page.touch()
        user.map(page, IOVA)
        before = user.device.attach(user.ioas)
        device.bind_iommufd(user.iommufd.fd)
        t.check(device.attach(user.ioas) != before, "both devices share one page table")
        t.equal(user.physical(IOVA, PAGE), page.physical(), "the address")


@case(
    needs=("mixed", "noiommu-cdev", "cdev", "iommufd", "edu"),
    cites="Documentation/driver-api/vfio.rst; drivers/iommu/iommufd/device.c iommufd_device_is_noiommu()",
    timeout=60,
)
def two_kinds_of_address_side_by_side(t: Test) -> None:
    """In one machine a device behind an IOMMU reaches a page by its IOVA, and a device without one reaches
    the same page by its physical address."""
    real, fake = t.device("edu", iommu=True), t.device("edu", iommu=False)
    with through_cdev(real) as one, through_cdev(fake) as other, memory.anonymous(2 * PAGE) as buffer:
        buffer.fill(0)
        one.map(buffer, IOVA)
        other.map(buffer, IOVA)
        t.errno(errno.EOPNOTSUPP, one.iommufd.get_pa, one.ioas, IOVA, PAGE)
        source, target = other.physical(IOVA, PAGE), other.physical(IOVA + PAGE, PAGE)
        t.equal((source, target), (buffer.physical(), buffer.physical(PAGE)), "physical addresses")
        one.device.set_bus_master()
        other.device.set_bus_master()
        with one.device.bar() as bar, other.device.bar() as other_bar:
            round_trip(t, edu.Edu(bar), buffer, IOVA)
            data = memory.pattern(t.random, 512)
            buffer.write(data)
            edu.Edu(other_bar).copy_from_ram(source, 512)
            edu.Edu(other_bar).copy_to_ram(target, 512)
        t.equal(buffer.read(PAGE, 512), data, "the data copied by physical address")
