# SPDX-License-Identifier: GPL-2.0-only
"""The features that a case may need, and what each one means.

A feature is a property of the kernel under test, of the emulated devices or of the machine. The host passes
the guest the set of features present; a need is the name of a feature, or `!name` for its absence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

FEATURES: dict[str, str] = {
    # The kernel: what its configuration offers.
    "noiommu": "CONFIG_VFIO_NOIOMMU: VFIO offers devices without an IOMMU, by group, device node or both",
    "noiommu-group": "no-IOMMU devices appear as /dev/vfio/noiommu-G",
    "noiommu-cdev": "no-IOMMU devices appear as /dev/vfio/devices/noiommu-vfioN",
    "group": "CONFIG_VFIO_GROUP: group nodes exist",
    "cdev": "CONFIG_VFIO_DEVICE_CDEV: device nodes exist",
    "container": "CONFIG_VFIO_CONTAINER: /dev/vfio/vfio is the native type1 container",
    "compat": "CONFIG_IOMMUFD_VFIO_CONTAINER: /dev/vfio/vfio is served by iommufd",
    "iommufd": "CONFIG_IOMMUFD: /dev/iommu exists",
    "modular": "vfio, vfio-pci and iommufd are modules",
    "debug": "built with KASAN or lockdep: slower and stricter",
    "fault-injection": "built with the fault injection frameworks",
    "gcov": "built with coverage counters",
    "64k-pages": "built with pages of 64 KiB",
    "kunit": "built with KUnit and the unit tests of the generic page tables",
    # The topology: its devices and their IOMMUs.
    "edu": "one QEMU `edu` device",
    "edu2": "two QEMU `edu` devices",
    "intx": "INTx of every edu arrives; behind a pxb-pcie it does not (seen with QEMU 10.0.2)",
    "igb": "a QEMU `igb` network card",
    "nvme": "a QEMU `nvme` controller",
    "aer": "a QEMU `virtio-balloon-pci` in a root port, which reports the errors of its bus",
    "viommu": "every device sits behind an emulated IOMMU that the kernel drives",
    "viommu-intel": "that IOMMU is intel-iommu",
    "viommu-amd": "that IOMMU is amd-iommu",
    "viommu-virtio": "that IOMMU is virtio-iommu",
    "viommu-smmuv3": "that IOMMU is an SMMUv3",
    "mixed": "one device behind an emulated IOMMU and one outside it, in the same machine",
    "hotplug": "the host can unplug the devices and plug them in",
    "sriov": "a device that can have virtual functions",
    "shared-port": "two devices behind one port, so that a bus reset resets both",
    "link-peer": "the igb has a network peer, so its link comes up",
    # The selftests: what the tree's libvfio can do; see harness/kernel/selftests.py.
    "libvfio-noiommu-cdev": "the tree's libvfio can find /dev/vfio/devices/noiommu-vfioN",
    "libvfio-noiommu-group": "the tree's libvfio can find /dev/vfio/noiommu-G",
    # The machine.
    "smp": "two CPUs or more",
    "mem-4g": "4 GiB of memory or more",
    "its": "MSI go through an ITS, which keeps those of a device apart",
    "lenient-bus": "what a device refuses reads as ones; elsewhere it is an exception, which ends the kernel",
}


class UnknownFeature(ValueError):
    """A name that is not in FEATURES."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean X?)`, or an empty string when no choice is near *word*."""
    import difflib  # only a wrong name needs it, and it would slow every guest's start

    close = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_names(names: Iterable[str]) -> None:
    """Raise UnknownFeature for the first of the needs *names* with a word that is not in FEATURES."""
    for name in (word for need in names for word in need.split("|")):
        bare = name[1:] if name.startswith("!") else name
        if bare not in FEATURES:
            raise UnknownFeature(f"unknown feature {bare!r}{nearest(bare, FEATURES)}")


def unmet(needs: Iterable[str], features: Collection[str]) -> tuple[str, ...]:
    """Return those of *needs* that *features* does not satisfy, in the order given.

    A need is a feature, `!feature` for one that must be absent, or alternatives separated by `|`, one of
    which is enough.
    """
    return tuple(need for need in needs if not any(_is_met(word, features) for word in need.split("|")))


def _is_met(word: str, features: Collection[str]) -> bool:
    return word[1:] not in features if word.startswith("!") else word in features


def parse_features(text: str) -> frozenset[str]:
    """Read a comma-separated list of features; raise UnknownFeature for one that is not in FEATURES."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name.startswith("!") or "|" in name:
            raise UnknownFeature(f"{name!r} is a need, not a feature: leave absent features out")
    check_names(names)
    return frozenset(names)
