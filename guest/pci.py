# SPDX-License-Identifier: GPL-2.0-only
"""PCI devices as sysfs shows them: find, bind, unbind, and the VFIO nodes that come and go with a binding.

Every sysfs write that waits for a device's users (unbinding one that is open waits until it is closed)
happens in a process of its own, so that it never waits for its own writer.  Knows nothing of ioctls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

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
"""As many of four bytes as find room behind the header."""

WRITE_TIMEOUT = 20.0
"""Seconds after which a sysfs write counts as stuck; a probe with a reset takes about one under TCG."""


class StuckWrite(TimeoutError):
    """A sysfs write did not return in time; the process that does it is still there."""


class PendingWrite:
    """A write to a sysfs file, going on in a process that holds none of our files and BAR mappings.

    For cases in which it waits for the case itself; write_within() is cheaper.
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
        """Whether the write has returned."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
        return self._status is not None

    def errno(self, timeout: float = WRITE_TIMEOUT) -> int:
        """Wait until the write has returned and give its errno, 0 for success; raise StuckWrite."""
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
        # An open VFIO file or a mapped BAR that fork() handed down would itself block the unbind.
        libc.munmap_shared()
        os.closerange(3, 4096)
        write(path, text)
        code = 0
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


def write(path: Path, text: str) -> None:
    """Write *text* to a sysfs file; raise the write's OSError.

    Only for writes that wait for no user of a device; those that do are bounded in time.
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


def read(path: Path) -> str:
    """Return the text of a sysfs file without its newline."""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def path_of(bdf: str) -> Path:
    """The sysfs directory of the device at *bdf* (`0000:00:08.0`)."""
    return BUS / "devices" / bdf


def exists(bdf: str) -> bool:
    """Whether there is a device at *bdf*."""
    return path_of(bdf).exists()


def find(kind: str) -> list[str]:
    """Return the BDFs of all devices of *kind*, a key of KINDS, in bus order."""
    vendor, device = KINDS[kind]
    return [bdf for bdf in sorted(os.listdir(BUS / "devices")) if ids(bdf) == (vendor, device)]


def ids(bdf: str) -> tuple[int, int]:
    """Return (vendor, device) of the device at *bdf*."""
    where = path_of(bdf)
    return int(read(where / "vendor"), 16), int(read(where / "device"), 16)


def config(bdf: str, offset: int, size: int) -> bytes:
    """Read configuration space as the device itself has it, past VFIO; that wakes a device that sleeps."""
    with open(path_of(bdf) / "config", "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def resource_start(bdf: str, bar: int) -> int:
    """Return the address that the kernel gave *bar*; 0 where it has none to give (sysfs `resource`)."""
    return int(read(path_of(bdf) / "resource").splitlines()[bar].split()[0], 16)


def config_number(bdf: str, offset: int, size: int) -> int:
    """Read a little-endian number from the device's own configuration space."""
    return int.from_bytes(config(bdf, offset, size), "little")


def write_config(bdf: str, offset: int, data: bytes) -> None:
    """Write to the device's own configuration space, past VFIO."""
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
    """Return where the device has the capability *wanted*; raise LookupError when it has none."""
    offsets = dict(capabilities(config(bdf, 0, 256)))
    if wanted not in offsets:
        raise LookupError(f"{bdf} has no capability {wanted:#x}")
    return offsets[wanted]


def driver(bdf: str) -> Optional[str]:
    """Return the name of the driver bound to *bdf*, None for none."""
    try:
        return os.path.basename(os.readlink(path_of(bdf) / "driver"))
    except OSError:
        return None


def override(bdf: str) -> str:
    """Return driver_override, empty when unset (the kernel prints that as `(null)`)."""
    text = read(path_of(bdf) / "driver_override")
    return "" if text == "(null)" else text


def set_override(bdf: str, name: str) -> None:
    """Set driver_override; an empty *name* clears it."""
    write(path_of(bdf) / "driver_override", name or "\n")


def start_unbind(bdf: str) -> PendingWrite:
    """Begin to unbind *bdf* from its driver, and return at once."""
    return PendingWrite(path_of(bdf) / "driver" / "unbind", bdf)


def unbind(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Unbind *bdf* from its driver if it has one; raise StuckWrite when it is still open somewhere."""
    if driver(bdf) is not None:
        write_within(timeout, path_of(bdf) / "driver" / "unbind", bdf)


def bind(bdf: str, name: str = VFIO_PCI, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Bind *bdf* to the driver *name*, taking it from any other; raise the probe's OSError."""
    if driver(bdf) == name:
        return
    unbind(bdf, timeout=timeout)
    set_override(bdf, name)
    write(BUS / "drivers" / name / "bind", bdf)


def release(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Take *bdf* off whatever drives it and forget the override: the ground state of a device."""
    unbind(bdf, timeout=timeout)
    if override(bdf):
        set_override(bdf, "")


@contextlib.contextmanager
def bound(bdf: str, name: str = VFIO_PCI, *, noiommu: Optional[bool] = None) -> Iterator[Nodes]:
    """Have *bdf* bound to the driver *name* inside the block, and released after it.

    With *noiommu* unset the module parameter is switched on when the device has no IOMMU of its own and the
    kernel has the parameter; True switches it on in any case, False leaves it alone.  Its value comes back
    after the block.  When the block raises, cleaning up is left to the agent: the case may hold the
    device open.
    """
    before = parameter()
    if noiommu is None:
        noiommu = before is not None and not has_iommu(bdf)
    if noiommu:
        set_parameter(True)
    bind(bdf, name)
    yield vfio_nodes(bdf)
    if exists(bdf):
        release(bdf)
    if before is not None and parameter() != before:
        set_parameter(before)


def iommu_group(bdf: str) -> Optional[int]:
    """Return the number of the IOMMU group of *bdf*, None when it has none."""
    try:
        return int(os.path.basename(os.readlink(path_of(bdf) / "iommu_group")))
    except OSError:
        return None


def group_name(group: int) -> str:
    """Return the name of an IOMMU group, empty when it has none; VFIO's made-up ones are `vfio-noiommu`."""
    try:
        return read(Path(f"/sys/kernel/iommu_groups/{group}/name"))
    except OSError:
        return ""


def has_iommu(bdf: str) -> bool:
    """Whether a real IOMMU stands before *bdf*: it is in a group that VFIO did not make up."""
    group = iommu_group(bdf)
    return group is not None and group_name(group) != "vfio-noiommu"


def parameter() -> Optional[bool]:
    """Return vfio's enable_unsafe_noiommu_mode, None when this kernel has no such parameter."""
    try:
        return read(PARAMETER) == "Y"
    except FileNotFoundError:
        return None


def set_parameter(value: bool) -> None:
    """Switch vfio's enable_unsafe_noiommu_mode; the write is a plain one, it cannot block."""
    with open(PARAMETER, "w", encoding="utf-8") as file:
        file.write("Y" if value else "N")


@dataclass(frozen=True)
class Nodes:
    """The device nodes through which a bound device can be reached."""

    group: Optional[Path]
    """/dev/vfio/G or /dev/vfio/noiommu-G; None without an IOMMU group or without VFIO_GROUP."""

    cdev: Optional[Path]
    """/dev/vfio/devices/vfioN or noiommu-vfioN; None without VFIO_DEVICE_CDEV."""

    @property
    def made(self) -> list[Path]:
        """The nodes there are; a bound device without any is a failure."""
        found = [node for node in (self.group, self.cdev) if node is not None]
        assert found, "the bound device has no VFIO node at all"
        return found


def vfio_dev_name(bdf: str) -> Optional[str]:
    """Return the name of the vfio-dev class device of *bdf* (`vfio0`, `noiommu-vfio0`), or None."""
    try:
        names = os.listdir(path_of(bdf) / "vfio-dev")
    except OSError:
        return None
    return names[0] if names else None


def vfio_nodes(bdf: str) -> Nodes:
    """Find the nodes of *bdf* by what sysfs and /dev say now; nothing is guessed from the configuration."""
    cdev: Optional[Path] = None
    name = vfio_dev_name(bdf)
    if name is not None and (path_of(bdf) / "vfio-dev" / name / "dev").exists():
        cdev = Path("/dev/vfio/devices") / name
    group: Optional[Path] = None
    number = iommu_group(bdf)
    if number is not None:
        for prefix in ("noiommu-", ""):
            if Path(f"/sys/class/vfio/{prefix}{number}").exists():
                group = Path(f"/dev/vfio/{prefix}{number}")
                break
    return Nodes(group=group, cdev=cdev)


@contextlib.contextmanager
def kept_node(number: int) -> Iterator[Path]:
    """Have a node with the device number *number*, as one may be kept from an earlier binding."""
    path = Path("/dev/vfio-harness-kept")
    os.mknod(path, 0o600 | stat.S_IFCHR, number)
    try:
        yield path
    finally:
        path.unlink()


def rescan() -> None:
    """Look for new devices on every PCI bus."""
    write(BUS / "rescan", "1")


def remove(bdf: str, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Make the kernel forget *bdf* until the next rescan; blocks as long as the device is open."""
    write_within(timeout, path_of(bdf) / "remove", "1")


def set_virtual_functions(bdf: str, count: int, *, timeout: float = WRITE_TIMEOUT) -> None:
    """Give *bdf* that many virtual functions; raise OSError when its driver refuses."""
    write_within(timeout, path_of(bdf) / "sriov_numvfs", str(count))
