# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's taint: which bits are set, and what each of them means."""

from __future__ import annotations

from pathlib import Path

TAINTED = Path("/proc/sys/kernel/tainted")

USER = 1 << 6
"""include/linux/panic.h TAINT_USER, `U`: set by VFIO when it hands out a device without an IOMMU."""

# Letter and meaning of each bit, from 0: Documentation/admin-guide/tainted-kernels.rst.
_BITS = (
    ("P", "proprietary module loaded"),
    ("F", "module force loaded"),
    ("S", "out of specification"),
    ("R", "module force unloaded"),
    ("M", "machine check"),
    ("B", "bad page"),
    ("U", "requested by user space"),
    ("D", "oops or BUG"),
    ("A", "ACPI table overridden"),
    ("W", "warning"),
    ("C", "staging driver loaded"),
    ("I", "firmware bug worked around"),
    ("O", "out-of-tree module loaded"),
    ("E", "unsigned module loaded"),
    ("L", "soft lockup"),
    ("K", "live patched"),
    ("X", "auxiliary, the distribution's own"),
    ("T", "structure layout randomized"),
    ("N", "in-kernel test run"),
    ("J", "fwctl used"),
)


def mask() -> int:
    """Return the taint mask, 0 for an untainted kernel."""
    return int(TAINTED.read_text(encoding="ascii"))


def describe(mask: int) -> str:
    """Name the bits of *mask*: `bit 6 (U, requested by user space), bit 9 (W, warning)`."""
    return ", ".join(_describe_bit(bit) for bit in range(mask.bit_length()) if mask >> bit & 1)


def _describe_bit(bit: int) -> str:
    if bit >= len(_BITS):
        return f"bit {bit}"
    letter, meaning = _BITS[bit]
    return f"bit {bit} ({letter}, {meaning})"
