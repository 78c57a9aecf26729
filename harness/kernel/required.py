# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel must have to be tested: kconfigs/required.yaml, and the rows of harness.kernel.arch.

The fragments give all of it, so this is about kernels that the harness did not configure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence

from harness.base import paths, yamlfile
from harness.base.cause import Cause
from harness.base.errors import KernelError, NotApplicable
from harness.kernel.arch import Arch
from harness.kernel.kconfig import ResolvedConfig, Setting, find_fragment
from harness.kernel.variants import load_catalogue

_SHOWN = 4
"""How many missing symbols a message shows with their values; the hint names all."""


@functools.cache
def _required() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return what required.yaml lists: "guest", "roots" and "features", each by name."""
    top = yamlfile.load(paths.kconfigs_dir() / "required.yaml")
    lists = {"guest": {key: top.texts(key) for key in ("always", "loadable")}}
    for key in ("roots", "features"):
        section = top.section(key)
        lists[key] = {name: section.texts(name) for name in section}
        section.done()
    top.done()
    return lists


@functools.cache
def _settings(arch: Arch) -> dict[str, Setting]:
    """Return the settings of the shipped fragments by symbol; the base's before the others'."""
    directory = paths.kconfigs_dir()
    first = (*load_catalogue().base, arch.fragment, "vfio")
    names = dict.fromkeys((*first, *sorted(path.stem for path in directory.glob("*.config"))))
    found: dict[str, Setting] = {}
    for name in names:
        for setting in find_fragment(directory, name).settings:
            found.setdefault(setting.symbol, setting)
    return found


def require_symbols(
    config: ResolvedConfig,
    arch: Arch,
    *,
    has_modules: bool,
    root: str,
    features: Collection[str] = (),
    iommu: str | None = None,
) -> None:
    """Refuse a kernel that lacks symbols which its guest needs; the hint has the lines of our fragments.

    *root* is the guest's root, *features* and *iommu* (a device model) are those of its topology.
    *has_modules*: whether the kernel's modules are there to be loaded.
    Raises KernelError when no guest with this root would answer, NotApplicable when the topology is at fault.
    """
    lists = _required()
    always = (*lists["guest"]["always"], *arch.required, *lists["roots"][root])
    loadable = ("m", "y") if has_modules else ("y",)
    missing = [symbol for symbol in always if config.get(symbol) != "y"]
    missing += [symbol for symbol in lists["guest"]["loadable"] if config.get(symbol) not in loadable]
    if missing:
        raise KernelError(
            f"no guest with the root {root!r} can be tested on this kernel: {_misses(missing, config)}",
            hint=_remedy(missing, arch),
            cause=Cause.KCONFIG,
        )
    wanted = [symbol for name in sorted(features) for symbol in lists["features"].get(name, ())]
    wanted += arch.iommus[iommu].symbols if iommu is not None else ()
    missing = [symbol for symbol in wanted if config.get(symbol) != "y"]
    if missing:
        raise NotApplicable(
            f"this kernel cannot drive the devices of the topology: {_misses(missing, config)}",
            hint=_remedy(missing, arch),
        )


def require_small_blocks(config: ResolvedConfig, arch: Arch, version: str, root: str) -> None:
    """Refuse a kernel of *version* that cannot mount the disks of the root "image".

    Their blocks have 4 KiB; before Linux 6.4, erofs knew only blocks of the size of a page.  Raises
    NotApplicable.
    """
    large = next((symbol for symbol in arch.large_pages if config.get(symbol) == "y"), None)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if root == "image" and large is not None and numbers < (6, 4):
        raise NotApplicable(
            f"Linux {version} with CONFIG_{large} cannot mount the root of the guest: "
            "before 6.4, erofs has no blocks smaller than a page",
            hint="test it with pages of 4 KiB",
        )


def unwatched(config: ResolvedConfig, arch: Arch) -> tuple[str, ...]:
    """Return the symbols of the base fragments that *config* lacks; some cases need what they give.

    Without those that require_symbols() is about.
    """
    required = {s for group in _required().values() for names in group.values() for s in names}
    required.update(arch.required, *(iommu.symbols for iommu in arch.iommus.values()))
    names = (*load_catalogue().base, arch.fragment)
    fragments = (find_fragment(paths.kconfigs_dir(), name) for name in names)
    asked = (setting for fragment in fragments for setting in fragment.settings if setting.value == "y")
    lacking = (setting.symbol for setting in asked if config.get(setting.symbol) == "n")
    return tuple(symbol for symbol in lacking if symbol not in required)


def _misses(symbols: Sequence[str], config: ResolvedConfig) -> str:
    words = [f"CONFIG_{symbol} is {config.get(symbol)}" for symbol in symbols[:_SHOWN]]
    return ", ".join(words) + (f" and {len(symbols) - _SHOWN} more" if len(symbols) > _SHOWN else "")


def _remedy(symbols: Sequence[str], arch: Arch) -> str:
    """Return the lines of the shipped fragments that give *symbols*, each with its place."""
    settings = _settings(arch)
    lines = [f"{settings[s]} ({settings[s].path.name}:{settings[s].line})" for s in symbols]
    return f"build it with {', '.join(lines)}; the files are in {paths.kconfigs_dir()}"
