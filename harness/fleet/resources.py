# SPDX-License-Identifier: GPL-2.0-only
"""Which worker may run which task, as the resources of Dask: a task goes where all that it names is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.fleet.version import own_version
from harness.lab.abilities import Abilities
from harness.lab.artefacts import BuildOrder, own_toolchains

_VERSION = "vfio-harness "
_BUILDS = "compiler "
_STORE = "store of "

_PLENTY = 1000
"""Of a resource that any number of tasks may use at once."""


def of_worker(abilities: Abilities, *, builds: bool) -> dict[str, float]:
    """Return what a worker with *abilities* offers, and its toolchains if it *builds* kernels."""
    compilers = {_BUILDS + name: 1.0 for name in own_toolchains()} if builds else {}
    return {_VERSION + own_version(): 1, **abilities.resources, **compilers}


def of_store(run: str) -> dict[str, float]:
    """Return what the process offers that gives away what the client's host has for *run*."""
    return {
        _VERSION + own_version(): _PLENTY,
        _STORE + run: _PLENTY,
        **{_BUILDS + name: 1.0 for name in own_toolchains()},
    }


def for_unit(needs: Mapping[str, float]) -> dict[str, float]:
    """Return what a unit needs of a worker; *needs* is what its job does, see resources_of()."""
    return {_VERSION + own_version(): 1, **needs}


def for_build(built_with: str) -> dict[str, float]:
    """Return what the build of a kernel with this toolchain needs."""
    return {_VERSION + own_version(): 1, _BUILDS + built_with: 1}


def for_order(order: BuildOrder) -> dict[str, float]:
    """Return what the worker needs that carries out *order*."""
    # With a source that travels not the store's process, which would build from the copy.
    arch = {order.arch: 1.0} if order.source is not None else {}
    return {**for_build(order.built_with), **arch}


def from_store(run: str) -> dict[str, float]:
    """Return what a task needs that reads the store of the client's host."""
    return {_STORE + run: 1}


def is_met(needed: Mapping[str, float], offered: Mapping[str, float]) -> bool:
    """Whether a worker that offers *offered* may run a task that needs *needed*."""
    return all(offered.get(name, 0) >= amount for name, amount in needed.items())


def lack(needed: Mapping[str, float], offers: Iterable[Mapping[str, float]]) -> str:
    """Return in words what no worker has of *needed*; *offers* are those of all workers."""
    offers = [one for one in offers if not any(name.startswith(_STORE) for name in one)]
    if not offers:
        return "the fleet has no worker"
    mine = [one for one in offers if _VERSION + own_version() in one]
    if not mine:
        others = sorted({foreign for one in offers if (foreign := foreign_version(one))})
        what = f"vfio-harness {others[0]}" if others else "no vfio-harness"
        return f"all workers have {what}, this is {own_version()}"
    for name, amount in needed.items():
        if not any(one.get(name, 0) >= amount for one in mine):
            return f"no worker has {f'{amount:.0f} {name}' if amount > 1 else name}"
    return "no worker has all of what it needs: " + ", ".join(needed)


def foreign_version(offered: Mapping[str, float]) -> str:
    """Return the version of the harness of a worker, if it is another one than ours; else nothing."""
    found = [name.removeprefix(_VERSION) for name in offered if name.startswith(_VERSION)]
    return found[0] if found and found[0] != own_version() else ""
