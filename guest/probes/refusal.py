# SPDX-License-Identifier: GPL-2.0-only
"""Configurations without a feature: the kernel refuses the calls that the missing feature would serve."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from guest import caps, memory, pci, taint, vfio
from guest import iommufd as api
from guest.case import Test, case
from guest.iommufd import NO_SUCH_ID, Iommufd
from guest.opened import through_cdev, usable


@case(
    needs=("!noiommu",),
    cites="drivers/vfio/vfio_main.c module_param_named() under CONFIG_VFIO_NOIOMMU",
)
def without_noiommu_there_is_no_parameter(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU there is no enable_unsafe_noiommu_mode parameter."""
    t.check(not pci.PARAMETER.exists(), f"{pci.PARAMETER} exists")


@case(
    needs=("!noiommu", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c __vfio_register_dev()",
)
def without_noiommu_nothing_binds(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU binding a device without an IOMMU is EINVAL and does not taint the
    kernel."""
    bdf = t.device("edu", iommu=False)
    before = taint.mask()
    t.errno(errno.EINVAL, pci.bind, bdf)
    t.equal(pci.driver(bdf), None, "the device's driver")
    t.equal(pci.vfio_dev_name(bdf), None, "the device's vfio-dev device")
    t.equal(pci.iommu_group(bdf), None, "the device's IOMMU group")
    t.equal(taint.mask(), before, "the taint")
    pci.release(bdf)


@case(
    needs=("!noiommu-group", "container"),
    cites="drivers/vfio/container.c vfio_container_ioctl_check_extension()",
)
def without_noiommu_containers_do_not_offer_it(t: Test) -> None:
    """Without no-IOMMU mode for groups a native container supports type1 but not VFIO_NOIOMMU_IOMMU."""
    with vfio.open_container() as container:
        t.equal(container.check_extension(vfio.NOIOMMU_IOMMU), 0, "CHECK_EXTENSION(VFIO_NOIOMMU_IOMMU)")
        t.equal(container.check_extension(vfio.TYPE1V2_IOMMU), 1, "CHECK_EXTENSION(VFIO_TYPE1v2_IOMMU)")


@case(
    needs=("iommufd", "!noiommu-cdev"),
    cites="drivers/iommu/iommufd/iommufd_private.h iommufd_ioas_noiommu_get_pa() (CONFIG_IOMMUFD_NOIOMMU)",
)
def without_cdev_get_pa_is_compiled_out(t: Test) -> None:
    """Without CONFIG_IOMMUFD_NOIOMMU every GET_PA is EOPNOTSUPP, for any caller and any arguments."""
    with Iommufd() as iommufd:
        ioas = iommufd.ioas_alloc()
        for arguments in ((ioas, 0, 1), (ioas, 0, 0), (NO_SUCH_ID, 0, 1), (ioas, api.LAST_IOVA, 1)):
            t.errno(errno.EOPNOTSUPP, iommufd.get_pa, *arguments)

        def without_rawio() -> None:
            caps.drop(caps.CAP_SYS_RAWIO)
            t.errno(errno.EOPNOTSUPP, iommufd.get_pa, ioas, 0, 1)

        t.in_child(without_rawio)


@case(needs=("!iommufd",), cites="drivers/iommu/iommufd/Kconfig IOMMUFD; main.c iommu_misc_dev")
def without_iommufd_there_is_no_node(t: Test) -> None:
    """Without CONFIG_IOMMUFD there is no /dev/iommu."""
    t.errno(errno.ENOENT, Iommufd)


@case(
    needs=("!group",),
    cites="drivers/vfio/Kconfig VFIO_GROUP, VFIO_CONTAINER; Documentation/driver-api/vfio.rst",
)
def without_group_there_is_no_container(t: Test) -> None:
    """Without CONFIG_VFIO_GROUP there is no /dev/vfio/vfio and no group class."""
    t.errno(errno.ENOENT, vfio.open_container)
    t.check(not Path("/sys/class/vfio").exists(), "/sys/class/vfio exists")


@case(needs=("!cdev", "edu"), cites="drivers/vfio/vfio.h without CONFIG_VFIO_DEVICE_CDEV")
def without_cdev_nothing_opens_by_node(t: Test) -> None:
    """Without VFIO_DEVICE_CDEV a bound device has no device number, and there is no /dev/vfio/devices."""
    bdf = usable(t)
    with pci.bound(bdf):
        t.errno(errno.ENOENT, vfio.open_cdev, bdf)
        t.check(not Path("/dev/vfio/devices").exists(), "/dev/vfio/devices exists")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_init(); fs/char_dev.c chrdev_open()",
)
def nodes_do_not_open_without_a_device(t: Test) -> None:
    """Opening a device number kept from an earlier bind is ENXIO after the device is unbound."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        assert nodes.cdev is not None
        number = os.stat(nodes.cdev).st_rdev
    with pci.kept_node(number) as kept:
        t.errno(errno.ENXIO, os.open, kept, os.O_RDWR)


def _symbols(*prefixes: str) -> list[str]:
    """Return the kernel's functions whose names begin with *prefixes*, without suffixes added by the
    compiler."""
    text = Path("/proc/kallsyms").read_text(encoding="ascii")
    names = {line.split()[2].partition(".")[0] for line in text.splitlines()}
    return sorted(name for name in names if name.startswith(prefixes))


# Every kernel has a function of this name: it makes the group of mediated devices without an IOMMU.
MEDIATED = "vfio_noiommu_group_alloc"


@case(
    needs=("!noiommu-cdev",),
    cites="drivers/iommu/iommufd/Makefile hwpt_noiommu.o; Kconfig IOMMUFD_NOIOMMU",
)
def without_cdev_there_is_no_software_page_table(t: Test) -> None:
    """Without CONFIG_IOMMUFD_NOIOMMU the kernel has no page table for devices without an IOMMU."""
    t.check(_symbols("vfio_pci_"), "/proc/kallsyms has no function of vfio-pci")
    t.equal(_symbols("noiommu_", "iommufd_bind_noiommu"), [], "functions of the software page table")


@case(
    needs=("!noiommu",),
    cites="drivers/vfio/container.c vfio_noiommu_ops (IS_ENABLED(CONFIG_VFIO_NOIOMMU))",
)
def without_noiommu_the_code_is_gone(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU the kernel has no no-IOMMU driver for containers."""
    t.check(_symbols("vfio_pci_"), "/proc/kallsyms has no function of vfio-pci")
    found = [name for name in _symbols("vfio_noiommu_") if name != MEDIATED]
    t.equal(found, [], "functions of VFIO's no-IOMMU driver")


@case(
    needs=("!noiommu", "iommufd"),
    cites="drivers/iommu/iommufd/vfio_compat.c iommufd_vfio_check_extension(), iommufd_vfio_set_iommu()",
)
def without_noiommu_iommufds_do_not_offer_it(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU an iommufd used as a container offers type1 only and refuses any other
    type."""
    with vfio.open_container(api.PATH) as container:
        t.equal(container.check_extension(vfio.NOIOMMU_IOMMU), 0, "CHECK_EXTENSION(VFIO_NOIOMMU_IOMMU)")
        t.equal(container.check_extension(vfio.TYPE1V2_IOMMU), 1, "CHECK_EXTENSION(VFIO_TYPE1v2_IOMMU)")
        t.errno(errno.EINVAL, container.set_iommu, vfio.NOIOMMU_IOMMU)


@case(
    needs=("!noiommu", "!viommu", "edu"),
    cites="drivers/vfio/vfio_main.c __vfio_register_dev(); drivers/base/dd.c",
)
def without_noiommu_nothing_is_made_of_a_refusal(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU every bind of a device without an IOMMU is refused and leaves no node, no
    class device and no log line about noiommu."""
    bdf = t.device("edu", iommu=False)
    before = sorted(os.listdir("/dev/vfio"))
    for _ in range(3):
        t.errno(errno.EINVAL, pci.bind, bdf)
    t.equal(sorted(os.listdir("/dev/vfio")), before, "names in /dev/vfio")
    classes = [entry.name for place in Path("/sys/class").glob("vfio*") for entry in place.iterdir()]
    t.equal([name for name in classes if "noiommu" in name], [], "class devices named noiommu")
    t.equal([line for line in t.dmesg() if "noiommu" in line], [], "log lines about noiommu")
    pci.release(bdf)


@case(
    needs=("viommu", "!noiommu", "cdev", "edu"),
    cites="drivers/iommu/iommufd/iommufd_private.h; drivers/iommu/iommufd/device.c iommufd_device_bind()",
)
def without_noiommu_a_real_iommu_does_everything(t: Test) -> None:
    """Without CONFIG_VFIO_NOIOMMU a device behind an IOMMU opens by its plain name, attaches and maps, and
    GET_PA is refused."""
    with through_cdev(t.device("edu", iommu=True)) as user, memory.anonymous() as page:
        page.touch()
        user.map(page, 0x4000_0000)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{user.device.fd}"))
        t.check(name.startswith("vfio"), f"the device node's name is {name}")
        t.equal(user.device.read_config(vfio.PCI_VENDOR_ID, 2), 0x1234, "vendor ID")
        t.errno(errno.EOPNOTSUPP, user.iommufd.get_pa, user.ioas, 0x4000_0000, 1)
