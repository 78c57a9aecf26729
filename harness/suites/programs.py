# SPDX-License-Identifier: GPL-2.0-only
"""Upstream's suites as data: the programs of a kselftest-*.yaml or kunit-*.yaml, aimed at devices.

Everything is read from the Job and the file, never from a boot, so that every worker collects the same items.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from guest.needs import unmet
from harness.base import yamlfile
from harness.base.errors import UsageError, nearest
from harness.ktap import KtapReport
from harness.machine.devices import Topology
from harness.plan import Job
from harness.results import WHOLE_PROGRAM, Outcome
from harness.suites.judging import judge_program
from harness.suites.manifest import expected_points
from harness.suites.model import CaseResult, Expectation, Requirement, Script, Suite, Work, refusal

DEFAULT_SECONDS = 45
"""The time limit of kselftest's own runner (tools/testing/selftests/kselftest/runner.sh)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device that a program can be aimed at."""

    id: str
    driver: str
    translated: bool
    """Whether it is behind a vIOMMU."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEntry:
    """One program as its YAML entry describes it; the keys are explained in kselftest-vfio.yaml."""

    device: str
    needs: tuple[str, ...] = ()
    seconds: int = DEFAULT_SECONDS
    memory: int = 0
    hugepages: int = 0
    sriov: bool = False
    fewest: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One selftest binary or KUnit suite, aimed at devices; `program@device` is its name in addresses."""

    path: str
    """`collection/name` of a selftest, the bare name of a KUnit suite."""
    entry: ProgramEntry
    device: str
    """Id of the device it is aimed at; `all` or `none` when it is not one device."""
    kind: str
    """What the entry's `fewest` counts by: the driver of that device, `all` or `none`."""
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def title(self) -> str:
        return self.name if self.device == "none" else f"{self.name}@{self.device}"

    def features(self, features: frozenset[str]) -> frozenset[str]:
        """Return *features* as they hold for its devices, as a machine may be mixed."""
        if not self.targets:
            return features
        translated = all(target.translated for target in self.targets)
        return features | {"viommu"} if translated else features - {"viommu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramSuite(Suite):
    """One YAML file of programs."""

    name: str
    directory: str
    """Below the tree's tools/testing/selftests; `kunit` for a suite that is part of the kernel."""
    entries: Mapping[str, ProgramEntry]
    device: str
    """The device of a program that names none, or that the file does not list."""
    needs: tuple[str, ...]
    """The needs of a program that the file does not list, because it is new or a developer's own."""
    expectations: tuple[Expectation, ...]
    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one file; UsageError names file, line and key of what is wrong."""
        top = yamlfile.load(path)
        programs, device = top.section("programs"), top.text("device")
        names = tuple(programs)
        suite = cls(
            name=top.text("suite"),
            directory=top.text("directory"),
            entries={name: _read_entry(programs.section(name), device) for name in programs},
            device=device,
            needs=top.texts("needs", ()),
            expectations=tuple(_read_expectation(s, names) for s in top.sections("expectations")),
            path=path.resolve(),
        )
        top.done()
        return suite

    @abc.abstractmethod
    def paths(self, built: Sequence[str]) -> Sequence[str]:
        """Return the paths of its programs in a kernel that came with the selftests *built*."""

    @abc.abstractmethod
    def script(self, work: Work, program: Program, bdfs: Sequence[str]) -> Script:
        """Return the script that runs *program* with its devices at *bdfs*."""

    def programs(self, built: Sequence[str], targets: Sequence[Target]) -> tuple[Program, ...]:
        """Return its programs in a kernel that came with the selftests *built*, aimed at *targets*."""
        unknown = ProgramEntry(device=self.device, needs=self.needs)
        entries = ((path, self.entries.get(path.rpartition("/")[2], unknown)) for path in self.paths(built))
        return tuple(program for path, entry in entries for program in _aim(path, entry, targets))

    def work(self, job: Job) -> Iterator[Work]:
        for program in self.programs(job.kernel.programs, _targets(job.topology)):
            features = program.features(frozenset((*job.features, *job.kernel.selftest_features)))
            yield Work(
                job=job.name,
                suite=self.name,
                program=program.title,
                refusal=refusal(program.entry.needs, features),
                path=self.path,
                timeout=float(program.entry.seconds),
                features=features,
                payload=program,
            )

    def how(self, work: Work, bdfs: Mapping[str, str]) -> Script:
        program: Program = work.payload
        return self.script(work, program, [bdfs[target.id] for target in program.targets])

    def judge(
        self, work: Work, report: KtapReport, status: int | None = None, cut: Outcome | None = None
    ) -> tuple[CaseResult, ...]:
        return judge_program(report, status, cut, functools.partial(self.expected, work))

    def expected(self, work: Work, point: str, said: str | None = None) -> Expectation | None:
        """Return the first expectation about *point* of *work*, and about what it *said* if that is given."""
        for expectation in self.expectations:
            fits = said is None or expectation.says.search(said)
            if fits and expectation.covers(work.payload.name, point, work.features):
                return expectation
        return None

    def requirement(self, work: Work, job: Job, results: Sequence[CaseResult]) -> Requirement:
        """Require the fewest passes and the manifest's points.

        No pass is required if expectations cover all points, nor of a program that the file does not list and
        that skipped itself as a whole.
        """
        program: Program = work.payload
        points = [result.case for result in results if result.case != WHOLE_PROGRAM]
        excused = self.expected(work, "") or (points and all(self.expected(work, point) for point in points))
        if program.name not in self.entries and not points:
            excused = excused or any(result.outcome is Outcome.SKIP for result in results)
        fewest = 0 if excused else program.entry.fewest.get(program.kind, 1)
        listed = expected_points(program.path, job.kernel.sources.get(program.path, ""))
        return Requirement(fewest=fewest, cases=listed if fewest or points else ())

    def memory(self, programs: Sequence[str], features: frozenset[str]) -> int:
        """Return the most that one of *programs* asks for, if all its needs but memory are met."""
        names = {path.rpartition("/")[2] for path in programs}
        entries = (entry for name, entry in self.entries.items() if name in names)
        return max((e.memory for e in entries if not unmet(e.needs, features | {"mem-4g"})), default=0)


def _targets(topology: Topology) -> tuple[Target, ...]:
    return tuple(
        Target(id=device.id, driver=device.driver, translated=topology.behind_viommu(device))
        for device in topology.endpoints
        if device.plugged
    )


def _aim(path: str, entry: ProgramEntry, targets: Sequence[Target]) -> Iterator[Program]:
    def at(device: str, kind: str, *aimed: Target) -> Program:
        return Program(path=path, entry=entry, device=device, kind=kind, targets=aimed)

    if entry.device == "none":
        yield at("none", "none")
    elif entry.device == "all":
        if targets:
            yield at("all", "all", *targets)
    else:
        for target in targets:
            if entry.device in ("each", target.driver):
                yield at(target.id, target.driver, target)


def _read_entry(section: yamlfile.Section, device: str) -> ProgramEntry:
    fewest = section.scalars("fewest")
    for kind, count in fewest.items():
        if not isinstance(count, int) or isinstance(count, bool):
            raise UsageError(f"{section.where('fewest')}: 'fewest' for {kind!r} must be a whole number")
    entry = ProgramEntry(
        device=section.text("device", device),
        needs=section.texts("needs", ()),
        seconds=section.number("seconds", DEFAULT_SECONDS),
        memory=section.number("memory", 0),
        hugepages=section.number("hugepages", 0),
        sriov=section.flag("sriov", False),
        fewest={kind: int(count) for kind, count in fewest.items()},
    )
    section.done()
    return entry


def _read_expectation(section: yamlfile.Section, known: Sequence[str]) -> Expectation:
    word = section.text("outcome")
    allowed = {o.name: o for o in (Outcome.XFAIL, Outcome.SKIP)}
    if word not in allowed:
        where = section.where("outcome")
        raise UsageError(f"{where}: {word!r} cannot be expected", hint=nearest(word, allowed))
    programs = section.texts("programs")
    for program in programs:
        if program not in known:
            where = section.where("programs")
            raise UsageError(f"{where}: this file has no program {program!r}", hint=nearest(program, known))
    expectation = Expectation(
        outcome=allowed[word],
        reason=" ".join(section.text("reason").split()),
        when=section.texts("when", ()),
        programs=programs,
        points=section.texts("points", ("*",)),
        says=section.pattern("says"),
    )
    section.done()
    return expectation
