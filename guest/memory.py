# SPDX-License-Identifier: GPL-2.0-only
"""Memory to map for a device, and its physical address according to /proc/self/pagemap."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import struct
from pathlib import Path
from typing import Optional

from guest import libc
from guest.closing import Closing

PAGE = mmap.PAGESIZE

SMALLEST = 4096
"""The smallest page in the page table of a no-IOMMU device, AMDv1 (generic_pt/fmt/amdv1.h)."""
HUGE = 2 * 1024 * 1024
NR_HUGEPAGES = Path(f"/sys/kernel/mm/hugepages/hugepages-{HUGE // 1024}kB/nr_hugepages")
STAT_REFRESH = Path("/proc/sys/vm/stat_refresh")
VMSTAT = Path("/proc/vmstat")

# include/uapi/asm-generic/mman-common.h, include/uapi/asm-generic/hugetlb_encode.h
MAP_FIXED = 0x10
_HUGE_2MB = 21 << 26  # the default size depends on the size of a page
MAP_HUGETLB = 0x40000 | _HUGE_2MB
MAP_POPULATE = 0x8000
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
PROT_NONE = 0
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

MSI_WINDOW = 0xFEE0_0000
"""Where IOMMUs of x86 reserve IOVAs for MSI: Intel SDM volume 3, "Message Address Register Format"."""

ARM_MSI_WINDOW = 0x800_0000
"""Where Linux reserves them for Arm's IOMMUs: MSI_IOVA_BASE in drivers/iommu."""

# Documentation/admin-guide/mm/pagemap.rst: bit 63 page present, bits 0-54 page frame number
_PRESENT = 1 << 63
_PFN_MASK = (1 << 55) - 1


class Buffer(Closing):
    """Mapped memory with a known address.  close() it, or use it in a `with`."""

    def __init__(self, address: int, length: int) -> None:
        self.address = address
        self.length = length

    def read(self, offset: int = 0, length: Optional[int] = None) -> bytes:
        """Copy bytes out."""
        count = self.length - offset if length is None else length
        self._check(offset, count)
        return ctypes.string_at(self.address + offset, count)

    def write(self, data: bytes, offset: int = 0) -> None:
        """Copy bytes in."""
        self._check(offset, len(data))
        ctypes.memmove(self.address + offset, data, len(data))

    def fill(self, byte: int) -> None:
        """Set every byte."""
        ctypes.memset(self.address, byte, self.length)

    def touch(self, step: int = PAGE) -> None:
        """Fault in every page by writing one byte of it."""
        for offset in range(0, self.length, step):
            self.write(b"\1", offset)

    def protect(self, prot: int) -> None:
        """Change the protection of the whole buffer."""
        libc.mprotect(self.address, self.length, prot)

    def physical(self, offset: int = 0) -> int:
        """Return the physical address of the byte at *offset*, according to the page map."""
        self._check(offset, 1)
        return physical(self.address + offset)

    def close(self) -> None:
        """Unmap."""
        if self.address:
            address, self.address = self.address, 0
            libc.munmap(address, self.length)

    def _check(self, offset: int, count: int) -> None:
        if not self.address or offset < 0 or offset + count > self.length:
            raise ValueError(f"bytes {offset:#x}+{count:#x} are outside a buffer of {self.length:#x}")


def pattern(source: random.Random, length: int) -> bytes:
    """Return random nonzero bytes, which no other page holds by chance."""
    return bytes(source.randrange(1, 256) for _ in range(length))


def anonymous(length: int = PAGE, *, prot: int = READ_WRITE, small: bool = True) -> Buffer:
    """Map new private memory; *small* excludes transparent huge pages."""
    buffer = Buffer(libc.mmap(length, prot, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), length)
    if small:
        # A kernel without transparent huge pages rejects this advice.
        with contextlib.suppress(OSError):
            libc.madvise(buffer.address, length, MADV_NOHUGEPAGE)
    return buffer


def fresh_page(address: int) -> None:
    """Replace what is mapped at *address* by a new small page."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    page = Buffer(libc.mmap(PAGE, READ_WRITE, flags, address=address), PAGE)
    with contextlib.suppress(OSError):
        libc.madvise(address, PAGE, MADV_NOHUGEPAGE)
    page.touch()


def hugetlb(length: int = HUGE) -> Buffer:
    """Map 2 MiB pages that set_hugepages() has reserved; raise OSError when there are too few."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
    return Buffer(libc.mmap(length, READ_WRITE, flags), length)


def shared_file(fd: int, length: int) -> Buffer:
    """Map an open file, such as a memfd, shared."""
    return Buffer(libc.mmap(length, READ_WRITE, mmap.MAP_SHARED, fd), length)


def memfd(length: int = PAGE, *, huge: bool = False) -> int:
    """Return a memfd of *length* bytes, of 2 MiB pages if *huge*."""
    fd = os.memfd_create("vfio-harness", os.MFD_CLOEXEC | (os.MFD_HUGETLB | _HUGE_2MB if huge else 0))
    os.ftruncate(fd, length)
    return fd


def set_hugepages(count: int) -> int:
    """Request *count* pages of 2 MiB and return how many are reserved now; the agent releases them."""
    NR_HUGEPAGES.write_text(str(count), encoding="ascii")
    return hugepages()


def hugepages() -> int:
    """Return the number of reserved 2 MiB pages, 0 on a kernel without hugetlbfs."""
    try:
        return int(NR_HUGEPAGES.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0


def physical(address: int) -> int:
    """Return the physical address of a virtual one (needs CAP_SYS_ADMIN); raise LookupError if not
    present."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
    if not entry & _PRESENT:
        raise LookupError(f"no page is present at {address:#x}")
    frame = entry & _PFN_MASK
    if frame == 0:
        raise PermissionError("the page map hides frame numbers from tasks without CAP_SYS_ADMIN")
    return frame * PAGE + address % PAGE


def frames(address: int, length: int) -> list[int]:
    """Return the physical address of each page from *address* on, 0 for a page that is not there."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        entries = struct.unpack(f"<{length // PAGE}Q", pagemap.read(length // PAGE * 8))
    return [(entry & _PFN_MASK) * PAGE if entry & _PRESENT else 0 for entry in entries]


def pinned_pages() -> int:
    """Return VmPin of this process in pages: its memory that drivers have pinned."""
    return _status_pages("VmPin")


def locked_pages() -> int:
    """Return VmLck of this process in pages: its memory that counts against RLIMIT_MEMLOCK."""
    return _status_pages("VmLck")


def _status_pages(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 // PAGE
    return 0


def statistics(*names: str) -> list[int]:
    """Return the values of *names* in /proc/vmstat, with the pending counts of every CPU included."""
    STAT_REFRESH.write_text("1", encoding="ascii")
    text = "\n" + VMSTAT.read_text(encoding="ascii")
    # Only what is wanted: making numbers of all 150 lines takes an emulated vCPU milliseconds.
    return [int(text.partition(f"\n{name} ")[2].partition("\n")[0]) for name in names]


def held_pins() -> int:
    """Return the number of page pins held in the whole machine (mm/gup.c)."""
    acquired, released = statistics("nr_foll_pin_acquired", "nr_foll_pin_released")
    return acquired - released


def table_pages() -> int:
    """Return the number of pages used by IOMMU page tables in the whole machine
    (drivers/iommu/iommu-pages.c)."""
    return statistics("nr_iommu_pages")[0]
