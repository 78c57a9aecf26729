# SPDX-License-Identifier: GPL-2.0-only
"""PCI devices in sysfs: find, bind and unbind them, and find the VFIO nodes of a bound device.

A sysfs write that waits for a device's users (an unbind waits until the device is closed) runs in a process
of its own, so that it never waits for the process that requested it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional, Union

from guest import bounded, forked, libc

VFIO_PCI = "vfio-pci"
PARAMETER = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
BUS = Path("/sys/bus/pci")

# vendor:device as QEMU's docs/specs and hw/ define them.
KINDS: dict[str, tuple[int, int]] = {
    "edu": (0x1234, 0x11E8),
    "igb": (0x8086, 0x10C9),
    "igb-vf": (0x8086, 0x10CA),
    "nvme": (0x1B36, 0x0010),
    "e1000e": (0x8086, 0x10D3),
    "virtio-balloon": (0x1AF4, 0x1045),
    "pci-testdev": (0x1B36, 0x0005),
    "ivshmem": (0x1AF4, 0x1110),
}

# include/uapi/linux/pci_regs.h
CAP_LIST = 0x34
CAP_POWER, CAP_MSI, CAP_EXPRESS, CAP_MSIX = 0x01, 0x05, 0x10, 0x11
MOST_CAPABILITIES = 48
"""The number of 4-byte capabilities that fit behind the header."""

WRITE_TIMEOUT = 20.0
"""Seconds after which a sysfs write counts as stuck; a probe with a reset takes about one under TCG."""


ATTRIBUTE = 64 * 1024
"""Bytes that one read of a sysfs file asks for: it returns the whole attribute, a page at most
(Documentation/filesystems/sysfs.rst)."""


class StuckWrite(TimeoutError):
    """A sysfs write did not return in time; the process that makes it still exists."""


class PendingWrite:
    """A write to a sysfs file, in a process that holds none of our files and BAR mappings.

    For a write that waits for the case itself; otherwise write_within() is cheaper.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self._status: Optional[int] = None
        self.pid = os.fork()
        if self.pid == 0:
            _write_and_exit(path, text)

    @property
    def done(self) -> bool:
        """Return whether the write has returned."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def errno(self, timeout: float = WRITE_TIMEOUT) -> int:
        """Wait until the write has returned and return its errno, 0 for success; raise StuckWrite."""
        if not self.done and not forked.wait_for_end(self.pid, timeout) and not self.done:
            raise StuckWrite(f"writing {self.text!r} to {self.path} is stuck after {timeout:g} s")
        assert self.done
        assert self._status is not None
        if os.WIFSIGNALED(self._status):
            return errno.EINTR
        return os.WEXITSTATUS(self._status)

    def wait(self, timeout: float = WRITE_TIMEOUT) -> None:
        """Wait until the write has returned; raise its OSError, or StuckWrite."""
        code = self.errno(timeout)
        if code:
            raise OSError(code, os.strerror(code), str(self.path))


def _write_and_exit(path: Path, text: str) -> None:
    code = errno.EIO
    try:
        # An open VFIO file or a mapped BAR inherited through fork() would itself block the unbind.
        libc.munmap_shared()
        os.closerange(3, 4096)
        write(path, text)
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


def write(path: Union[Path, str], text: str) -> None:
    """Write *text* to a sysfs file; raise the write's OSError.

    Only for writes that never wait for a user of a device; for the others use write_within().
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_within(seconds: float, path: Path, text: str) -> None:
    """Write *text* to a sysfs file; raise the write's OSError, or StuckWrite when it takes longer."""
    try:
        bounded.within(seconds, lambda: write(path, text))
    except TimeoutError as error:
        raise StuckWrite(f"writing {text!r} to {path} is stuck after {seconds:g} s") from error


def read(path: Union[Path, str]) -> str:
    """Return the text of a sysfs file without its newline."""
    # Path.read_text() costs an emulated vCPU half a millisecond more, a tenth of a case with ten reads.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, ATTRIBUTE).decode(errors="replace").strip()
    finally:
        os.close(fd)


def path_of(bdf: str) -> Path:
    """Return the sysfs directory of the device at *bdf* (`0000:00:08.0`)."""
    return BUS / "devices" / bdf


def exists(bdf: str) -> bool:
    """Return whether there is a device at *bdf*."""
    return os.path.exists(f"{BUS}/devices/{bdf}")


def find(kind: str) -> list[str]:
    """Return the BDFs of all devices of *kind*, a key of KINDS, in bus order."""
    vendor, device = KINDS[kind]
    return [bdf for bdf in sorted(os.listdir(BUS / "devices")) if ids(bdf) == (vendor, device)]


def ids(bdf: str) -> tuple[int, int]:
    """Return (vendor, device) of the device at *bdf*."""
    where = path_of(bdf)
    return int(read(where / "vendor"), 16), int(read(where / "device"), 16)


def config(bdf: str, offset: int, size: int) -> bytes:
    """Read the device's own configuration space, bypassing VFIO; this resumes a suspended device."""
    with open(path_of(bdf) / "config", "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def resource_start(bdf: str, bar: int) -> int:
    """Return the address that the kernel assigned to *bar*, 0 for none (sysfs `resource`)."""
    return int(read(path_of(bdf) / "resource").splitlines()[bar].split()[0], 16)


def resource_size(bdf: str, bar: int) -> int:
    """Return the size of what the kernel assigned to *bar*: that of the BAR, or what it is aligned to."""
    start, end, _flags = (int(word, 16) for word in read(path_of(bdf) / "resource").splitlines()[bar].split())
    return end - start + 1 if end else 0


def config_number(bdf: str, offset: int, size: int) -> int:
    """Read a little-endian number from the device's own configuration space."""
    return int.from_bytes(config(bdf, offset, size), "little")


def write_config(bdf: str, offset: int, data: bytes) -> None:
    """Write to the device's own configuration space, bypassing VFIO."""
    with open(path_of(bdf) / "config", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)


def capabilities(space: bytes) -> list[tuple[int, int]]:
    """Return (id, offset) of each capability in the list of the configuration space *space*."""
    found: list[tuple[int, int]] = []
    offset = space[CAP_LIST]
    while offset:
        found.append((space[offset], offset))
        assert len(found) <= MOST_CAPABILITIES, "the capability list does not end"
        offset = space[offset + 1]
    return found


def capability(bdf: str, wanted: int) -> int:
    """Return the offset of the capability *wanted*; raise LookupError when the device has none."""
    offsets = dict(capabilities(config(bdf, 0, 256)))
    if wanted not in offsets:
        raise LookupError(f"{bdf} has no capability {wanted:#x}")
    return offsets[wanted]


def driver(bdf: str) -> Optional[str]:
    """Return the name of the driver bound to *bdf*, None for none."""
    try:
        return os.path.basename(os.readlink(f"{BUS}/devices/{bdf}/driver"))
    except OSError:
        return None


def override(bdf: str) -> str:
    """Return driver_override, empty when unset (the kernel prints that as `(null)`)."""
    text = read(f"{BUS}/devices/{bdf}/driver_override")
    return "" if text == "(null)" else text


def set_override(bdf: str, name: str) -> None:
    """Set driver_override; an empty *name* clears it."""
    write(f"{BUS}/devices/{bdf}/driver_override", name or "\n")


def start_unbind(bdf: str) -> PendingWrite:
    """Start to unbind *bdf* from its driver, and return at once."""
    return PendingWrite(path_of(bdf) / "driver" / "unbind", bdf)


def unbind(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Unbind *bdf* from its driver if it has one; raise StuckWrite when the device stays open."""
    if driver(bdf) is not None:
        write_within(timeout, path_of(bdf) / "driver" / "unbind", bdf)


def bind(bdf: str, name: str = VFIO_PCI, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Bind *bdf* to the driver *name*, unbinding any other; raise the probe's OSError."""
    if driver(bdf) == name:
        return
    unbind(bdf, timeout=timeout)
    set_override(bdf, name)
    write(BUS / "drivers" / name / "bind", bdf)


def release(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Unbind *bdf* from any driver and clear its override: the ground state of a device."""
    unbind(bdf, timeout=timeout)
    if override(bdf):
        set_override(bdf, "")


def prepare(bdf: str, name: str = VFIO_PCI, *, noiommu: Optional[bool] = None) -> Nodes:
    """Bind *bdf* to the driver *name* and return its nodes.

    If *noiommu* is None, the module parameter is switched on when the device has no IOMMU and the kernel has
    the parameter; True always switches it on, False leaves it alone.
    """
    if noiommu is None:
        noiommu = parameter() is not None and not has_iommu(bdf)
    if noiommu:
        set_parameter(True)
    bind(bdf, name)
    return vfio_nodes(bdf)


@contextlib.contextmanager
def bound(bdf: str, name: str = VFIO_PCI, *, noiommu: Optional[bool] = None) -> Iterator[Nodes]:
    """Prepare *bdf*, see prepare(), for the block, and release it afterwards.

    The module parameter then has the value that it had before.  If the block raises, the agent cleans up
    instead, because the case may hold the device open.
    """
    before = parameter()
    yield prepare(bdf, name, noiommu=noiommu)
    if exists(bdf):
        release(bdf)
    if before is not None and parameter() != before:
        set_parameter(before)


def iommu_group(bdf: str) -> Optional[int]:
    """Return the number of the IOMMU group of *bdf*, None when it has none."""
    try:
        return int(os.path.basename(os.readlink(f"{BUS}/devices/{bdf}/iommu_group")))
    except OSError:
        return None


def group_name(group: int) -> str:
    """Return the name of an IOMMU group, empty when it has none; those that VFIO makes up are
    `vfio-noiommu`."""
    try:
        return read(f"/sys/kernel/iommu_groups/{group}/name")
    except OSError:
        return ""


def interrupt_window(bdf: str) -> int:
    """Return the first IOVA that the IOMMU of *bdf* reserves for its interrupt messages.

    Raises LookupError if it reserves none.
    """
    for line in read(f"{BUS}/devices/{bdf}/iommu_group/reserved_regions").splitlines():
        first, _last, kind = line.split()
        if kind == "msi":
            return int(first, 16)
    raise LookupError(f"the IOMMU of {bdf} reserves no IOVA for interrupt messages")


def has_iommu(bdf: str) -> bool:
    """Return whether *bdf* is behind a real IOMMU: it is in a group that VFIO did not make up."""
    group = iommu_group(bdf)
    return group is not None and group_name(group) != "vfio-noiommu"


def parameter() -> Optional[bool]:
    """Return vfio's enable_unsafe_noiommu_mode, None when this kernel has no such parameter."""
    try:
        return read(PARAMETER) == "Y"
    except FileNotFoundError:
        return None


def set_parameter(value: bool) -> None:
    """Set vfio's enable_unsafe_noiommu_mode; this write cannot block."""
    write(PARAMETER, "Y" if value else "N")


class Nodes(NamedTuple):
    """The device nodes of a bound device."""

    group: Optional[Path]
    """/dev/vfio/G or /dev/vfio/noiommu-G; None without an IOMMU group or without VFIO_GROUP."""

    cdev: Optional[Path]
    """/dev/vfio/devices/vfioN or noiommu-vfioN; None without VFIO_DEVICE_CDEV."""

    @property
    def made(self) -> list[Path]:
        """Return the nodes that exist; raise AssertionError if the bound device has none."""
        found = [node for node in (self.group, self.cdev) if node is not None]
        assert found, "the bound device has no VFIO node at all"
        return found


def vfio_dev_name(bdf: str) -> Optional[str]:
    """Return the name of the vfio-dev class device of *bdf* (`vfio0`, `noiommu-vfio0`), or None."""
    try:
        names = os.listdir(f"{BUS}/devices/{bdf}/vfio-dev")
    except OSError:
        return None
    return names[0] if names else None


def cdev_node(bdf: str) -> Optional[Path]:
    """Return the device node of *bdf*, None when it has none."""
    name = vfio_dev_name(bdf)
    if name is None or not os.path.exists(f"{BUS}/devices/{bdf}/vfio-dev/{name}/dev"):
        return None
    return Path("/dev/vfio/devices", name)


def group_node(bdf: str) -> Optional[Path]:
    """Return the group node of *bdf*, None when it has none."""
    number = iommu_group(bdf)
    for prefix in ("noiommu-", "") if number is not None else ():
        if os.path.exists(f"/sys/class/vfio/{prefix}{number}"):
            return Path(f"/dev/vfio/{prefix}{number}")
    return None


def vfio_nodes(bdf: str) -> Nodes:
    """Return the nodes of *bdf*, found in sysfs and not guessed from the configuration."""
    return Nodes(group=group_node(bdf), cdev=cdev_node(bdf))


@contextlib.contextmanager
def kept_node(number: int) -> Iterator[Path]:
    """Yield a node with the device number *number*, like one kept from an earlier binding."""
    path = Path("/dev/vfio-harness-kept")
    os.mknod(path, 0o600 | stat.S_IFCHR, number)
    try:
        yield path
    finally:
        path.unlink()


def rescan() -> None:
    """Rescan every PCI bus for new devices."""
    write(BUS / "rescan", "1")


def remove(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Remove *bdf* until the next rescan; this blocks while the device is open."""
    write_within(timeout, path_of(bdf) / "remove", "1")


def set_virtual_functions(bdf: str, count: int, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Give *bdf* that many virtual functions; raise OSError when its driver refuses."""
    write_within(timeout, path_of(bdf) / "sriov_numvfs", str(count))
