# SPDX-License-Identifier: GPL-2.0-only
"""The words a case may use to say what it needs, and what each one means.

A feature is a property of the kernel under test, of the emulated devices or of the machine.  The host hands
the guest one set of them; a need is the name of a feature, or `!name` for its absence.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

FEATURES: dict[str, str] = {
    # The kernel: what its configuration offers.
    "noiommu": "CONFIG_VFIO_NOIOMMU: the kernel can drive a device without an IOMMU, one way or another",
    "noiommu-group": "no-IOMMU devices appear as /dev/vfio/noiommu-G",
    "noiommu-cdev": "no-IOMMU devices appear as /dev/vfio/devices/noiommu-vfioN",
    "group": "CONFIG_VFIO_GROUP: the group nodes exist at all",
    "cdev": "CONFIG_VFIO_DEVICE_CDEV: the device nodes exist at all",
    "container": "CONFIG_VFIO_CONTAINER: /dev/vfio/vfio is the native type1 container",
    "compat": "CONFIG_IOMMUFD_VFIO_CONTAINER: /dev/vfio/vfio is served by iommufd",
    "iommufd": "CONFIG_IOMMUFD: /dev/iommu exists",
    "modular": "vfio, vfio-pci and iommufd are modules",
    "debug": "built with KASAN or lockdep: slower, and far less forgiving",
    "fault-injection": "built with the fault injection frameworks",
    "gcov": "built with coverage counters",
    "kunit": "built with KUnit and the unit tests of the generic page tables",
    # The topology: which devices there are, and what stands before them.
    "edu": "one QEMU `edu` device",
    "edu2": "two QEMU `edu` devices",
    "intx": "INTx of every edu arrives; from behind a pxb-pcie it does not (seen with QEMU 10.0.2)",
    "igb": "a QEMU `igb` network card",
    "nvme": "a QEMU `nvme` controller",
    "aer": "a QEMU `virtio-balloon-pci` in a root port, which reports the errors of its bus",
    "viommu": "every device sits behind an emulated IOMMU that the kernel drives",
    "viommu-intel": "that IOMMU is intel-iommu",
    "viommu-amd": "that IOMMU is amd-iommu",
    "viommu-virtio": "that IOMMU is virtio-iommu",
    "mixed": "one device behind an emulated IOMMU and one outside it, in the same machine",
    "hotplug": "the devices sit in slots that the host can empty and fill",
    "sriov": "a device that can have virtual functions",
    "shared-port": "two devices behind one port, whose bus is reset for both of them",
    "link-peer": "the igb has a network peer, so its link comes up",
    # The machine.
    "smp": "two processors or more",
    "mem-4g": "4 GiB of memory or more",
}


class UnknownFeature(ValueError):
    """A name that is not in FEATURES."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean X?)`, or nothing when no choice is near *word*."""
    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_names(names: Iterable[str]) -> None:
    """Raise UnknownFeature for the first of the needs *names* with a word that FEATURES does not know."""
    for name in (word for need in names for word in need.split("|")):
        bare = name[1:] if name.startswith("!") else name
        if bare not in FEATURES:
            raise UnknownFeature(f"unknown feature {bare!r}{nearest(bare, FEATURES)}")


def unmet(needs: Iterable[str], features: Collection[str]) -> tuple[str, ...]:
    """Return those of *needs* that *features* does not satisfy, in the order given.

    A need is a feature, `!feature` for one that must be absent, or several of those with `|` between them, of
    which one is enough.
    """
    return tuple(need for need in needs if not any(_is_met(word, features) for word in need.split("|")))


def _is_met(word: str, features: Collection[str]) -> bool:
    return word[1:] not in features if word.startswith("!") else word in features


def parse_features(text: str) -> frozenset[str]:
    """Read a comma-separated list of features; raise UnknownFeature for one that nobody defined."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name.startswith("!") or "|" in name:
            raise UnknownFeature(f"{name!r} is a need, not a feature: leave absent features out")
    check_names(names)
    return frozenset(names)
