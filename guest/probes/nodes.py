# SPDX-License-Identifier: GPL-2.0-only
"""What a device bound to vfio-pci shows in /dev and /sys: names, numbers, modes, its IOMMU group."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from guest import pci
from guest.case import Test, case
from guest.opened import through_cdev, usable

CDEVS = Path("/dev/vfio/devices")


def _describe(node: Path) -> tuple[str, str, str]:
    """Return (major's name in /proc/devices, mode, owner) of the character device *node*."""
    status = os.stat(node)
    if not stat.S_ISCHR(status.st_mode):
        return "not a character device", "", ""
    name = ""
    section = Path("/proc/devices").read_text(encoding="ascii").partition("Block devices")[0]
    for line in section.splitlines()[1:]:
        number, _, label = line.strip().partition(" ")
        if number == str(os.major(status.st_rdev)):
            name = label
    return name, oct(stat.S_IMODE(status.st_mode)), f"{status.st_uid}:{status.st_gid}"


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name(); Documentation/driver-api/vfio.rst",
)
def cdev_is_named_noiommu(t: Test) -> None:
    """A device without an IOMMU appears as /dev/vfio/devices/noiommu-vfioN, and under no other name."""
    with pci.bound(t.device("edu", iommu=False)) as nodes:
        t.check(nodes.cdev is not None, "no vfio-dev class device with a device number")
        assert nodes.cdev is not None
        t.check(re.fullmatch(r"noiommu-vfio\d+", nodes.cdev.name), f"the node's name is {nodes.cdev.name}")
        t.equal(_describe(nodes.cdev), ("vfio-dev", "0o600", "0:0"), f"major, mode, owner of {nodes.cdev}")
        t.equal(os.listdir(CDEVS), [nodes.cdev.name], f"names in {CDEVS}")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_create_group(), vfio_devnode(); Documentation/driver-api/vfio.rst",
)
def group_is_named_noiommu(t: Test) -> None:
    """A device without an IOMMU appears as /dev/vfio/noiommu-G, G being its IOMMU group's number."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        number = pci.iommu_group(bdf)
        t.check(number is not None, "no iommu_group link")
        t.equal(nodes.group, Path(f"/dev/vfio/noiommu-{number}"), "the group's node")
        assert nodes.group is not None
        t.equal(_describe(nodes.group), ("vfio", "0o600", "0:0"), f"major, mode, owner of {nodes.group}")
        t.check(not Path(f"/dev/vfio/{number}").exists(), f"/dev/vfio/{number} exists as well")


@case(
    needs=("noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_noiommu_group_alloc()",
)
def iommu_group_is_made_up(t: Test) -> None:
    """VFIO puts the device alone into a new IOMMU group `vfio-noiommu` with no domain and no reserved
    regions."""
    bdf = t.device("edu", iommu=False)
    t.equal(pci.iommu_group(bdf), None, "the device's IOMMU group before binding")
    with pci.bound(bdf):
        where = Path(f"/sys/kernel/iommu_groups/{pci.iommu_group(bdf)}")
        t.equal(pci.read(where / "name"), "vfio-noiommu", "the group's name")
        t.equal(pci.read(where / "type"), "unknown", "the group's domain type")
        t.equal(pci.read(where / "reserved_regions"), "", "the group's reserved regions")
        t.equal(os.listdir(where / "devices"), [bdf], "the group's devices")
    t.check(not where.exists(), "the group still exists after unbinding")


@case(
    needs=("noiommu-cdev", "!group", "edu", "!viommu"),
    cites="drivers/vfio/vfio.h without CONFIG_VFIO_GROUP; driver-api/vfio.rst Kconfig Support Matrix",
)
def cdev_only_makes_no_group(t: Test) -> None:
    """Without CONFIG_VFIO_GROUP a device gets its cdev, and no group, group node or container."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        t.check(nodes.cdev is not None and nodes.cdev.exists(), "there is no cdev node")
        t.equal(pci.iommu_group(bdf), None, "the device's IOMMU group")
        t.equal(nodes.group, None, "the group's node")
        t.equal(os.listdir("/dev/vfio"), ["devices"], "names in /dev/vfio")
        t.check(not Path("/sys/class/vfio").exists(), "the group class exists")


@case(
    needs=("noiommu-cdev", "group", "!noiommu-group", "edu", "!viommu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc() without CONFIG_VFIO_GROUP_NOIOMMU (v5 series)",
)
def cdev_alone_makes_no_group(t: Test) -> None:
    """Where only cdevs have no-IOMMU mode, a device gets its cdev and no group, although groups exist."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        t.check(nodes.cdev is not None and nodes.cdev.exists(), "there is no cdev node")
        t.equal(pci.iommu_group(bdf), None, "the device's IOMMU group")
        t.equal(nodes.group, None, "the group's node")
        t.equal(os.listdir("/sys/class/vfio"), [], "groups in /sys/class/vfio")


@case(
    needs=("noiommu-group", "!noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/device_cdev.c vfio_init_device_cdev(), vfio.h without CONFIG_VFIO_DEVICE_CDEV",
)
def group_only_makes_no_cdev(t: Test) -> None:
    """Without a cdev the device is vfioN in its class and has no device number and no node."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        t.check(
            re.fullmatch(r"vfio\d+", pci.vfio_dev_name(bdf) or ""),
            f"the device's name is {pci.vfio_dev_name(bdf)}",
        )
        t.equal(nodes.cdev, None, "the cdev's node")
        t.check(not CDEVS.exists(), f"{CDEVS} exists")
        t.check(nodes.group is not None and nodes.group.exists(), "there is no group node")


@case(
    needs=("noiommu", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_unregister_group_dev(); group.c vfio_device_remove_group()",
)
def nodes_go_with_the_binding(t: Test) -> None:
    """Unbinding removes every node, class device and no-IOMMU group."""
    bdf = t.device("edu", iommu=False)
    with pci.bound(bdf) as nodes:
        made = nodes.made
        t.check(made and all(node.exists() for node in made), f"not all of {made} exist")
    t.equal([str(node) for node in made if node.exists()], [], "nodes left after unbinding")
    t.equal(pci.vfio_dev_name(bdf), None, "the vfio-dev device left after unbinding")
    t.equal(pci.iommu_group(bdf), None, "the IOMMU group left after unbinding")


@case(
    needs=("viommu", "cdev", "edu"),
    cites="drivers/vfio/vfio_main.c vfio_device_set_noiommu_and_name() (dev->iommu)",
)
def real_iommu_keeps_plain_cdev_name(t: Test) -> None:
    """A device behind an IOMMU is named vfioN even with the unsafe mode on."""
    with pci.bound(t.device("edu", iommu=True), noiommu="noiommu" in t.features) as nodes:
        t.check(nodes.cdev is not None, "no cdev")
        assert nodes.cdev is not None
        t.check(re.fullmatch(r"vfio\d+", nodes.cdev.name), f"the node's name is {nodes.cdev.name}")
        t.equal(_describe(nodes.cdev), ("vfio-dev", "0o600", "0:0"), f"major, mode, owner of {nodes.cdev}")


@case(
    needs=("viommu", "group", "edu"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc()",
)
def real_iommu_keeps_plain_group_name(t: Test) -> None:
    """A device behind an IOMMU keeps its own group and group number even with the unsafe mode on."""
    bdf = t.device("edu", iommu=True)
    before = pci.iommu_group(bdf)
    t.check(before is not None, "the device has no IOMMU group before binding")
    with pci.bound(bdf, noiommu="noiommu" in t.features) as nodes:
        t.equal(pci.iommu_group(bdf), before, "the device's IOMMU group")
        t.equal(nodes.group, Path(f"/dev/vfio/{before}"), "the group's node")
        t.check(not Path(f"/dev/vfio/noiommu-{before}").exists(), "a noiommu- node exists as well")


@case(
    needs=("noiommu-group", "edu2", "!viommu", "!mixed"),
    cites="drivers/vfio/group.c vfio_noiommu_group_alloc()",
)
def every_device_has_its_own_group(t: Test) -> None:
    """Two no-IOMMU devices never share a group."""
    one, other = t.devices("edu", iommu=False)[:2]
    with pci.bound(one) as first, pci.bound(other) as second:
        t.check(first.group is not None and second.group is not None, "a group node is missing")
        t.check(first.group != second.group, f"both are in {first.group}")
        t.check(pci.iommu_group(one) != pci.iommu_group(other), "both are in one IOMMU group")


@case(
    needs=("mixed", "noiommu", "edu2"),
    cites="drivers/vfio/group.c vfio_group_find_or_alloc(); vfio_main.c vfio_device_set_noiommu_and_name()",
)
def real_and_noiommu_side_by_side(t: Test) -> None:
    """In one machine the device without an IOMMU gets a noiommu- name, and the device behind an IOMMU does
    not."""
    with pci.bound(t.device("edu", iommu=True)) as real, pci.bound(t.device("edu", iommu=False)) as bare:
        for nodes, prefix in ((real, ""), (bare, "noiommu-")):
            for node in (nodes.group, nodes.cdev):
                t.check(
                    node is None or node.name.startswith("noiommu-") == bool(prefix),
                    f"{node} should have the prefix {prefix!r}",
                )


@case(needs=("container",), cites="drivers/vfio/container.c vfio_dev (miscdevice, VFIO_MINOR)")
def native_container_is_open_to_all(t: Test) -> None:
    """/dev/vfio/vfio is misc 10:196 with mode 0666."""
    _check_container_node(t)


@case(
    needs=("compat",),
    cites="drivers/iommu/iommufd/main.c vfio_misc_dev (miscdevice, VFIO_MINOR)",
)
def emulated_container_is_open_to_all(t: Test) -> None:
    """/dev/vfio/vfio served by iommufd has the device number and mode of the native one."""
    _check_container_node(t)


def _check_container_node(t: Test) -> None:
    status = os.stat("/dev/vfio/vfio")
    t.equal(
        (os.major(status.st_rdev), os.minor(status.st_rdev)), (10, 196), "device number of /dev/vfio/vfio"
    )
    t.equal(oct(stat.S_IMODE(status.st_mode)), "0o666", "mode of /dev/vfio/vfio")


@case(needs=("iommufd",), cites="drivers/iommu/iommufd/main.c iommu_misc_dev")
def iommufd_node_is_for_its_group(t: Test) -> None:
    """/dev/iommu is a misc device with mode 0660 and owner root."""
    t.equal(_describe(Path("/dev/iommu")), ("misc", "0o660", "0:0"), "major, mode, owner of /dev/iommu")


@case(
    needs=("noiommu-cdev", "edu", "!viommu"),
    cites="drivers/vfio/vfio_main.c vfio_device_show_fdinfo()",
)
def fdinfo_names_the_device(t: Test) -> None:
    """The fdinfo of an open device names the device."""
    bdf = t.device("edu", iommu=False)
    with through_cdev(bdf) as user:
        text = Path(f"/proc/self/fdinfo/{user.device.fd}").read_text(encoding="ascii")
        want = f"vfio-device-syspath: {os.path.realpath(pci.path_of(bdf))}"
        t.check(want in text.splitlines(), f"no line {want!r} in {text!r}")


def _uevent(node: Path, directory: Path) -> None:
    """Raise AssertionError unless *directory* tells udev the number and name of *node*."""
    text = (directory / "uevent").read_text(encoding="ascii")
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    number = os.stat(node).st_rdev
    want = {
        "MAJOR": str(os.major(number)),
        "MINOR": str(os.minor(number)),
        "DEVNAME": str(node.relative_to("/dev")),
    }
    assert {key: fields.get(key) for key in want} == want, f"{directory}/uevent has {fields}, expected {want}"
    told = (directory / "dev").read_text(encoding="ascii").strip()
    assert told == f"{want['MAJOR']}:{want['MINOR']}", f"{directory}/dev has {told}, but {node} has {want}"


@case(
    needs=("edu",),
    cites="drivers/vfio/vfio_main.c vfio_device_devnode(), group.c vfio_devnode(); base/core.c",
)
def sysfs_leads_to_the_nodes(t: Test) -> None:
    """sysfs reports to udev the same number and name that a device's nodes in /dev have."""
    bdf = usable(t)
    with pci.bound(bdf) as nodes:
        t.check(nodes.group or nodes.cdev, "the device has no node")
        if nodes.cdev is not None:
            _uevent(nodes.cdev, pci.path_of(bdf) / "vfio-dev" / nodes.cdev.name)
            _uevent(nodes.cdev, Path("/sys/class/vfio-dev") / nodes.cdev.name)
        if nodes.group is not None:
            _uevent(nodes.group, Path("/sys/class/vfio") / nodes.group.name)


@case(needs=("edu",), cites="drivers/base/devtmpfs.c; drivers/vfio/vfio_main.c vfio_device_devnode()")
def permissions_do_not_outlive_the_binding(t: Test) -> None:
    """After a node's mode and owner were changed, the next bind creates it with mode 0600 and owner root."""
    bdf = usable(t)
    with pci.bound(bdf) as nodes:
        for node in nodes.made:
            os.chmod(node, 0o666)
            os.chown(node, 1, 1)
    with pci.bound(bdf) as nodes:
        for node in nodes.made:
            t.equal(_describe(node)[1:], ("0o600", "0:0"), f"mode and owner of {node}")
