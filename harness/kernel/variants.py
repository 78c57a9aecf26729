# SPDX-License-Identifier: GPL-2.0-only
"""Variants: the named no-IOMMU configurations, and the symbols each one means in a given tree.

kconfigs/variants.yaml lists them.  The symbols follow from the tree's Kconfig files, never from its version:
before the cdev patches mainline has no-IOMMU for groups only, their v5 has one symbol for each path, and 7.3
has one symbol for both, which selects a hidden one in iommufd.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.base import paths, yamlfile
from harness.base.errors import NotApplicable, NotRefused, UsageError, nearest
from harness.kernel.arch import Arch
from harness.kernel.kconfig import Fragment, ResolvedConfig, Setting, find_fragment, merge
from harness.kernel.symbols import KconfigFiles

NOIOMMU_SYMBOLS = ("VFIO_NOIOMMU", "VFIO_GROUP_NOIOMMU", "VFIO_CDEV_NOIOMMU", "IOMMUFD_NOIOMMU")
"""Every symbol that turns no-IOMMU mode on, in any dialect."""


class Container(enum.Enum):
    """What provides /dev/vfio/vfio."""

    NATIVE = "native"
    COMPAT = "compat"
    NONE = "none"


class Access(enum.Enum):
    """A way to a device that has a no-IOMMU mode."""

    GROUP = "group"
    CDEV = "cdev"


class Dialect(enum.Enum):
    """How a tree spells no-IOMMU mode."""

    MERGED = "merged"  # VFIO_NOIOMMU for both paths, selects the hidden IOMMUFD_NOIOMMU (7.3)
    SPLIT = "split"  # VFIO_GROUP_NOIOMMU, VFIO_CDEV_NOIOMMU and a visible IOMMUFD_NOIOMMU (the v5 proposal)
    GROUP_ONLY = "group-only"  # VFIO_NOIOMMU, for groups (7.2 and older)
    NONE = "none"  # no such thing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a variant wants of VFIO."""

    noiommu: bool
    group: bool
    cdev: bool
    container: Container
    modular: bool = False
    noiommu_only: Access | None = None
    """The only path that has no-IOMMU mode; None: every path that there is."""

    @property
    def noiommu_group(self) -> bool:
        return self.noiommu and self.group and self.noiommu_only is not Access.CDEV

    @property
    def noiommu_cdev(self) -> bool:
        return self.noiommu and self.cdev and self.noiommu_only is not Access.GROUP


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named no-IOMMU configuration."""

    name: str
    summary: str
    wants: Capabilities
    fragments: tuple[str, ...]
    y: tuple[str, ...]
    m: tuple[str, ...] = ()
    absent: tuple[str, ...]
    blocked: bool = False  # Kconfig must refuse no-IOMMU mode here: proved, never built

    @property
    def features(self) -> frozenset[str]:
        """What decides which cases apply: see guest/needs.py."""
        wants = self.wants
        active = wants.noiommu and not self.blocked
        flags = {
            "noiommu": active,
            "noiommu-group": active and wants.noiommu_group,
            "noiommu-cdev": active and wants.noiommu_cdev,
            "group": wants.group,
            "cdev": wants.cdev,
            "container": wants.container is Container.NATIVE,
            "compat": wants.container is Container.COMPAT,
            "iommufd": True,
            "modular": wants.modular,
        }
        return frozenset(name for name, holds in flags.items() if holds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Addon:
    """Fragments on top of a variant, and directories to build with coverage counters."""

    name: str
    summary: str
    fragments: tuple[str, ...]
    profile: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # symbols for which its fragments override those of the variant
    arches: tuple[str, ...] = ()  # the architectures that have it; empty: all

    def check(self, arch: Arch) -> None:
        """Raise UsageError if kernels of *arch* cannot have it."""
        if self.arches and arch.name not in self.arches:
            raise UsageError(
                f"--with {self.name} is for {' and '.join(self.arches)} kernels, not for {arch.name}",
                hint=f"add --arch {self.arches[0]}, or leave it out",
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All that variants.yaml says."""

    directory: Path
    base: tuple[str, ...]
    variants: Mapping[str, Variant]
    addons: Mapping[str, Addon]

    def variant(self, name: str) -> Variant:
        """Return the variant *name*; UsageError with the nearest name when there is none."""
        if name not in self.variants:
            raise UsageError(f"there is no variant {name!r}", hint=nearest(name, self.variants))
        return self.variants[name]

    def addon(self, name: str) -> Addon:
        """Return the add-on *name*; UsageError with the nearest name when there is none."""
        if name not in self.addons:
            raise UsageError(f"there is no add-on {name!r}", hint=nearest(name, self.addons))
        return self.addons[name]


@functools.cache
def load_catalogue(directory: Path | None = None) -> Catalogue:
    """Read variants.yaml once from *directory* (default: the fragments that ship with the harness)."""
    directory = directory or paths.kconfigs_dir()
    top = yamlfile.load(directory / "variants.yaml")
    base = top.texts("base")
    variants_section, addons_section = top.section("variants"), top.section("addons")
    variants = {name: _read_variant(name, variants_section.section(name)) for name in variants_section}
    addons = {name: addons_section.section(name).read(Addon, name=name) for name in addons_section}
    top.done()
    return Catalogue(directory=directory, base=base, variants=variants, addons=addons)


def _read_variant(name: str, section: yamlfile.Section) -> Variant:
    return section.read(Variant, name=name, wants=section.section("wants").read(Capabilities))


_DEBUGGING = ("KASAN", "PROVE_LOCKING")


def features_of(catalogue: Catalogue, config: ResolvedConfig) -> frozenset[str]:
    """Return the features of guest/needs.py that hold in a kernel of *config*, whoever configured it.

    They are those of the variant and the add-ons when the harness configured it.
    """

    def has(*symbols: str) -> bool:
        return all(config.get(symbol) != "n" for symbol in symbols)

    flags = {
        "noiommu": any(has(symbol) for symbol in NOIOMMU_SYMBOLS),
        "noiommu-group": has("VFIO_NOIOMMU", "VFIO_GROUP") or has("VFIO_GROUP_NOIOMMU"),
        "noiommu-cdev": has("IOMMUFD_NOIOMMU", "VFIO_DEVICE_CDEV"),
        "group": has("VFIO_GROUP"),
        "cdev": has("VFIO_DEVICE_CDEV"),
        "container": has("VFIO_CONTAINER"),
        "compat": has("IOMMUFD_VFIO_CONTAINER"),
        "iommufd": has("IOMMUFD"),
        "modular": {config.get(symbol) for symbol in ("VFIO", "IOMMUFD", "VFIO_PCI")} == {"m"},
    }
    for name, addon in catalogue.addons.items():
        fragments = (find_fragment(catalogue.directory, fragment) for fragment in addon.fragments)
        settings = [setting for fragment in fragments for setting in fragment.settings]
        flags[name] = all(config.get(setting.symbol) == setting.value for setting in settings)
    # Part of what the add-on has makes a kernel as slow.
    flags["debug"] = any(map(has, _DEBUGGING))
    return frozenset(name for name, holds in flags.items() if holds)


def find_dialect(symbols: KconfigFiles) -> Dialect:
    """Return how the tree behind *symbols* spells no-IOMMU mode."""
    # Either is enough: in the middle of that patch series a tree has only one of the two.
    if symbols.defines("VFIO_CDEV_NOIOMMU") or symbols.defines("VFIO_GROUP_NOIOMMU"):
        return Dialect.SPLIT
    if symbols.defines("IOMMUFD_NOIOMMU"):
        return Dialect.MERGED
    if symbols.defines("VFIO_NOIOMMU"):
        return Dialect.GROUP_ONLY
    return Dialect.NONE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConfigPlan:
    """What to request from kconfig for one variant in one tree, and which values must result."""

    arch: Arch
    variant: Variant
    addons: tuple[Addon, ...]
    dialect: Dialect
    settings: Mapping[str, Setting]  # asked of kconfig, by symbol
    expected: Mapping[str, str]  # symbol -> y, m or n: the variant's promise
    undefined: tuple[str, ...]  # requested by the shipped base, unknown to this tree, so left out
    blocked: tuple[str, ...]  # requested, and must end up off

    @property
    def features(self) -> frozenset[str]:
        """The features of the variant, and the names of its add-ons."""
        return self.variant.features | {addon.name for addon in self.addons}

    @property
    def profile(self) -> tuple[str, ...]:
        """The directories to build with coverage counters, sorted."""
        return tuple(sorted({directory for addon in self.addons for directory in addon.profile}))

    @property
    def has_one_processor(self) -> bool:
        """Whether the kernel uses one CPU only (SMP is off)."""
        return "SMP" in self.settings and self.settings["SMP"].value == "n"


def plan_config(
    catalogue: Catalogue,
    variant: Variant,
    symbols: KconfigFiles,
    *,
    addons: Iterable[str] = (),
    extra: Iterable[Fragment] = (),
) -> ConfigPlan:
    """Turn what *variant* wants into the symbols of the tree behind *symbols* (all of its Kconfig files).

    Raises NotApplicable when the tree cannot express it, UsageError for unknown add-ons, for fragments that
    disagree and for a symbol in *extra* that the tree does not define.
    """
    dialect = find_dialect(symbols)
    _require_applicable(catalogue, variant, dialect, symbols)
    chosen = tuple(catalogue.addon(name) for name in dict.fromkeys(addons))
    overridden = {symbol for addon in chosen for symbol in addon.overrides}
    names = [
        *catalogue.base,
        symbols.arch.fragment,
        *variant.fragments,
        *_noiommu_fragments(variant.wants, dialect),
    ]
    added = [fragment for addon in chosen for fragment in addon.fragments]
    shipped = [find_fragment(catalogue.directory, name).without(overridden) for name in dict.fromkeys(names)]
    shipped += [find_fragment(catalogue.directory, name) for name in dict.fromkeys(added)]
    theirs = list(extra)
    for fragment in theirs:
        _require_defined(fragment, symbols)
    settings = merge([*shipped, *theirs])
    undefined = sorted(s for s in settings if not symbols.defines(s) and settings[s].value != "n")
    expected = _expectations(variant, dialect)
    missing = [s for s in undefined if expected.get(s, "n") != "n"]
    if missing:
        raise NotApplicable(
            f"this tree cannot express the variant {variant.name!r}: it defines no CONFIG_{missing[0]}"
        )
    for addon in (one for one in chosen if one.profile):
        needed = merge([find_fragment(catalogue.directory, name) for name in addon.fragments])
        lacking = [symbol for symbol in undefined if symbol in needed]
        if lacking:
            raise NotApplicable(
                f"this tree has no coverage counters: it defines no CONFIG_{lacking[0]}",
                hint=f"leave --with {addon.name} out",
            )
    return ConfigPlan(
        arch=symbols.arch,
        variant=variant,
        addons=chosen,
        dialect=dialect,
        settings={s: setting for s, setting in settings.items() if symbols.defines(s)},
        expected=expected,
        undefined=tuple(undefined),
        blocked=_blocked_symbols(variant, dialect),
    )


def _require_defined(fragment: Fragment, symbols: KconfigFiles) -> None:
    for setting in fragment.settings:
        if not symbols.defines(setting.symbol) and setting.value != "n":
            reason = symbols.explain_miss(setting.symbol, setting.value, ResolvedConfig("", {}))
            raise UsageError(f"{setting.where} asks for {setting}, but {reason}")


def _require_applicable(
    catalogue: Catalogue, variant: Variant, dialect: Dialect, symbols: KconfigFiles
) -> None:
    wants = variant.wants
    if not wants.noiommu:
        return
    if dialect is Dialect.NONE:
        raise NotApplicable(
            f"this tree cannot express the variant {variant.name!r}: it has no VFIO no-IOMMU mode",
            hint="the variant 'off' works here" if "off" in catalogue.variants else None,
        )
    if wants.noiommu_cdev and dialect is Dialect.GROUP_ONLY and not variant.blocked:
        instead = _group_twin(catalogue, variant)
        raise NotApplicable(
            f"this tree cannot express the variant {variant.name!r}: its no-IOMMU mode is for groups only "
            f"(no CONFIG_IOMMUFD_NOIOMMU in drivers/iommu/iommufd/Kconfig)",
            hint=f"the variant {instead!r} works here" if instead else None,
        )
    if wants.noiommu_only is not None and dialect is Dialect.MERGED:
        raise NotApplicable(
            f"this tree cannot express the variant {variant.name!r}: "
            f"its CONFIG_VFIO_NOIOMMU is for the group and the cdev alike"
        )
    if not variant.blocked or dialect is Dialect.MERGED:
        # The merged dialect and this rule were added together: a tree with one and not the other breaks a
        # promise.
        return
    if not symbols.depends_on(_group_symbol(dialect)) & {"VFIO_CONTAINER"}:
        raise NotApplicable(
            f"the variant {variant.name!r} says nothing about this tree: "
            f"its CONFIG_{_group_symbol(dialect)} does not depend on a container"
        )


def _group_twin(catalogue: Catalogue, variant: Variant) -> str | None:
    """The variant like *variant* but with a group and no cdev; with another container when need be."""
    groups = [
        v
        for v in catalogue.variants.values()
        if v.wants.noiommu and v.wants.group and not v.wants.cdev and not v.wants.modular and not v.blocked
    ]
    same = [v for v in groups if v.wants.container is variant.wants.container]
    return next((v.name for v in [*same, *groups]), None)


def _group_symbol(dialect: Dialect) -> str:
    return "VFIO_GROUP_NOIOMMU" if dialect is Dialect.SPLIT else "VFIO_NOIOMMU"


def _noiommu_fragments(wants: Capabilities, dialect: Dialect) -> list[str]:
    if not wants.noiommu:
        return ["no-noiommu"]
    if dialect is not Dialect.SPLIT:
        return ["noiommu"]
    return ["noiommu-group"] * wants.noiommu_group + ["noiommu-cdev"] * wants.noiommu_cdev


def _noiommu_symbols(wants: Capabilities, dialect: Dialect) -> tuple[str, ...]:
    """The symbols that must be on for no-IOMMU mode as wanted."""
    if not wants.noiommu:
        return ()
    if dialect is Dialect.SPLIT:
        cdev = ("VFIO_CDEV_NOIOMMU", "IOMMUFD_NOIOMMU") if wants.noiommu_cdev else ()
        return (("VFIO_GROUP_NOIOMMU",) if wants.noiommu_group else ()) + cdev
    hidden = ("IOMMUFD_NOIOMMU",) if dialect is Dialect.MERGED and wants.noiommu_cdev else ()
    return ("VFIO_NOIOMMU", *hidden)


def _blocked_symbols(variant: Variant, dialect: Dialect) -> tuple[str, ...]:
    """The symbols that Kconfig must refuse: the group's, or the one symbol for both paths."""
    if not variant.blocked:
        return ()
    return (_group_symbol(dialect),) if dialect is Dialect.SPLIT else _noiommu_symbols(variant.wants, dialect)


def _expectations(variant: Variant, dialect: Dialect) -> dict[str, str]:
    refused = _blocked_symbols(variant, dialect)
    on = (symbol for symbol in _noiommu_symbols(variant.wants, dialect) if symbol not in refused)
    expected = {symbol: "n" for symbol in (*variant.absent, *NOIOMMU_SYMBOLS)}
    expected |= {symbol: "m" for symbol in variant.m}
    return expected | {symbol: "y" for symbol in (*variant.y, *on)}


def prove(plan: ConfigPlan, config: ResolvedConfig, symbols: KconfigFiles) -> None:
    """Check that every symbol has the promised and the requested value; NotApplicable names the others and
    why.

    A blocked variant requests symbols that must stay off: NotRefused names those that are on.
    """
    asked = {s: x.value for s, x in plan.settings.items() if s not in plan.blocked}
    missed = [(s, value) for s, value in {**asked, **plan.expected}.items() if config.get(s) != value]
    if not missed:
        return
    granted = all(symbol in plan.blocked for symbol, _ in missed)
    missed.sort(key=lambda miss: miss[0] not in plan.expected)
    reasons = [symbols.explain_miss(symbol, value, config) for symbol, value in missed[:3]]
    symbol, value = missed[0]
    place = f" (asked at {plan.settings[symbol].where})" if symbol in plan.settings else ""
    more = f"; {len(missed) - 3} more symbols differ" if len(missed) > 3 else ""
    raise (NotRefused if granted else NotApplicable)(
        f"the variant {plan.variant.name!r} does not come out in this tree: "
        f"CONFIG_{symbol} must be {value}{place} but {'; '.join(reasons)}{more}"
    )
