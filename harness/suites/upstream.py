# SPDX-License-Identifier: GPL-2.0-only
"""Upstream's tests: which programs a kernel came with, what each needs, what is expected of it where.

Programs are selftests, which are built beside a kernel, or KUnit suites, which are part of one.  Everything
here is read from the plan and from kselftest-*.yaml and kunit-*.yaml, never from a boot, so that every worker
collects the same items.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from guest.needs import unmet
from harness import yamlfile
from harness.errors import UsageError, nearest
from harness.results import Outcome
from harness.suites.model import Expectation, Program

_DEFAULT_SECONDS = 45
"""What kselftest's own runner allows a program (tools/testing/selftests/kselftest/runner.sh)."""


KUNIT = "kunit"
"""The directory in the path of a program that is a KUnit suite."""

COMPILES = "build/compiles"
"""The case of a suite whose programs do not compile in a tree: they cannot be run, nor counted."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device a program can be aimed at."""

    id: str
    driver: str
    translated: bool
    """Whether it sits behind a vIOMMU."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One program as its YAML entry describes it."""

    device: str = "each"
    needs: tuple[str, ...] = ()
    seconds: int = _DEFAULT_SECONDS
    memory: int = 0
    hugepages: int = 0
    sriov: bool = False
    fewest: dict[str, int] = dataclasses.field(default_factory=dict)


def _unmet_but_memory(entry: _Entry, features: frozenset[str]) -> tuple[str, ...]:
    """What *features* lack for *entry*, were the machine as big as it asks for."""
    return unmet(entry.needs, features | {"mem-4g"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSuite:
    """One kselftest-*.yaml or kunit-*.yaml file."""

    name: str
    directory: str
    """Below the tree's tools/testing/selftests; KUNIT for suites that are part of the kernel."""
    entries: dict[str, _Entry]
    expectations: tuple[Expectation, ...]

    @property
    def is_compiled(self) -> bool:
        """Whether its programs are compiled beside the kernel, which may fail by itself."""
        return self.directory != KUNIT

    def memory_for(self, built: Sequence[str], features: frozenset[str]) -> int:
        """MiB of guest memory that the *built* programs want which apply under *features*, 0 if none says."""
        names = {path.rpartition("/")[2] for path in built}
        entries = (entry for name, entry in self.entries.items() if name in names)
        return max((e.memory for e in entries if not _unmet_but_memory(e, features)), default=0)

    def programs(self, built: Sequence[str], targets: Sequence[Target]) -> tuple[Program, ...]:
        """Every program of this suite among the *built* ones (`vfio/name`), aimed at *targets*.

        A program that this file does not know (upstream added it) runs on each device by the default rules.
        Of KUnit suites nobody can tell without a boot which a kernel has: it is to have all of them.
        """
        found: list[Program] = []
        for path in built if self.is_compiled else [f"{KUNIT}/{name}" for name in self.entries]:
            directory, _, name = path.partition("/")
            if directory == self.directory:
                entry = self.entries.get(name, _Entry(device="each" if self.directory == "vfio" else "none"))
                found.extend(self._aim(name, path, entry, targets))
        return tuple(found)

    def _aim(self, name: str, path: str, entry: _Entry, targets: Sequence[Target]) -> Iterator[Program]:
        for aim in _aims(entry.device, targets):
            yield Program(
                suite=self.name,
                name=name,
                path=path,
                device=aim.device,
                targets=tuple(target.id for target in aim.targets),
                translated=all(target.translated for target in aim.targets),
                needs=entry.needs,
                seconds=float(entry.seconds),
                fewest=entry.fewest.get(aim.kind, 1),
                hugepages=entry.hugepages,
                sriov=entry.sriov,
                expectations=self.expectations,
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Aim:
    """One run of a program: its name for the device, the kind that `fewest` counts by, the devices."""

    device: str
    kind: str
    targets: tuple[Target, ...]


def _aims(rule: str, targets: Sequence[Target]) -> Iterator[_Aim]:
    if rule == "none":
        yield _Aim("none", "none", ())
    elif rule == "all":
        if targets:
            yield _Aim("all", "all", tuple(targets))
    else:
        for target in targets:
            if rule in ("each", target.driver):
                yield _Aim(target.id, target.driver, (target,))


def _read_entry(section: yamlfile.Section) -> _Entry:
    fewest = section.scalars("fewest")
    for kind, count in fewest.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise UsageError(f"{section.where('fewest')}: 'fewest' for {kind!r} must be a whole number")
    entry = _Entry(
        device=section.text("device", "each"),
        needs=section.texts("needs", ()),
        seconds=section.number("seconds", _DEFAULT_SECONDS),
        memory=section.number("memory", 0),
        hugepages=section.number("hugepages", 0),
        sriov=section.flag("sriov", False),
        fewest={kind: int(count) for kind, count in fewest.items()},
    )
    section.done()
    return entry


def _pattern(section: yamlfile.Section, key: str) -> re.Pattern[str]:
    try:
        return re.compile(section.text(key))
    except re.error as error:
        raise UsageError(f"{section.where(key)}: not a regular expression: {error}") from error


def _read_expectation(section: yamlfile.Section) -> Expectation:
    word = section.text("outcome")
    allowed = {o.name: o for o in (Outcome.XFAIL, Outcome.SKIP)}
    if word not in allowed:
        where = section.where("outcome")
        raise UsageError(f"{where}: {word!r} cannot be expected", hint=nearest(word, allowed))
    expectation = Expectation(
        outcome=allowed[word],
        reason=" ".join(section.text("reason").split()),
        when=section.texts("when", ()),
        programs=section.texts("programs", ("*",)),
        points=section.texts("points", ("*",)),
        says=_pattern(section, "says"),
    )
    section.done()
    return expectation


def load_suite(path: Path) -> UpstreamSuite:
    """Read one kselftest-*.yaml or kunit-*.yaml; UsageError names file, line and key of what is wrong."""
    top = yamlfile.load(path)
    programs = top.section("programs")
    suite = UpstreamSuite(
        name=top.text("suite"),
        directory=top.text("directory"),
        entries={name: _read_entry(programs.section(name)) for name in programs},
        expectations=tuple(_read_expectation(s) for s in top.sections("expectations")),
    )
    top.done()
    return suite


@functools.cache
def shipped_suites() -> dict[str, UpstreamSuite]:
    """The suites of upstream's that the harness knows, by name (`kselftest:vfio`)."""
    here = Path(__file__).parent
    files = (*sorted(here.glob("kselftest-*.yaml")), *sorted(here.glob("kunit-*.yaml")))
    return {suite.name: suite for suite in map(load_suite, files)}
