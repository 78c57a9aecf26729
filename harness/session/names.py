# SPDX-License-Identifier: GPL-2.0-only
"""The names that a command line or a matrix may use; each look-up raises UsageError with the nearest name."""

from __future__ import annotations

from collections.abc import Iterable

from harness.kernel.arch import find_arch, host_arch
from harness.kernel.toolchain import find_toolchain
from harness.kernel.variants import Variant, load_catalogue
from harness.machine.topology import arches_of, read_topology
from harness.suites.registry import suite_named


def variant(name: str) -> Variant:
    """Return the variant *name*."""
    return load_catalogue().variant(name)


def check_addon(name: str) -> None:
    """Refuse an add-on that does not exist."""
    load_catalogue().addon(name)


def check_toolchain(name: str) -> None:
    """Refuse a toolchain that does not exist."""
    find_toolchain(name)


def arch_named(name: str) -> str:
    """Return *name* if it is that of an architecture."""
    return find_arch(name).name


def default_arch() -> str:
    """Return the name of this host's architecture."""
    return host_arch().name


def has_counters(toolchain: str) -> bool:
    """Return whether kernels of *toolchain* can have coverage counters."""
    return bool(find_toolchain(toolchain).gcov)


def is_for(addons: Iterable[str], arch: str) -> bool:
    """Whether kernels of *arch* can have all *addons*."""
    catalogue = load_catalogue()
    return all(arch in (catalogue.addon(name).arches or (arch,)) for name in addons)


def check_topology(name: str) -> None:
    """Refuse a topology that does not exist or is wrong; *name* is that of a shipped one or a path."""
    arches_of(read_topology(name))


def arches_of_topology(name: str) -> tuple[str, ...]:
    """Return the architectures whose machines can have the topology *name*, as check_topology() takes it."""
    return arches_of(read_topology(name))


def check_suite(name: str) -> None:
    """Refuse a suite that does not exist."""
    suite_named(name)
