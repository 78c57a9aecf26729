# SPDX-License-Identifier: GPL-2.0-only
"""The values that describe what can run in a guest: programs, their needs, what is expected of them."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence

from guest.needs import unmet
from harness.results import Outcome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """A reviewed statement that some points of some programs cannot pass under some features, and why."""

    outcome: Outcome
    reason: str
    when: tuple[str, ...] = ()
    programs: tuple[str, ...] = ("*",)
    points: tuple[str, ...] = ("*",)
    says: re.Pattern[str] = re.compile("")
    """What the failure's own output must contain: another failure is not the one that was reviewed."""

    def covers(self, program: str, point: str, features: frozenset[str]) -> bool:
        """Whether this is about *point* of *program* under *features*, whatever it printed."""
        return (
            not unmet(self.when, features)
            and any(fnmatch.fnmatchcase(program, p) for p in self.programs)
            and any(fnmatch.fnmatchcase(point, p) for p in self.points)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One selftest binary, aimed at certain devices, or a KUnit suite.  `program@device` is its name in
    addresses."""

    suite: str
    name: str
    path: str
    """Path of the binary below the kernel's selftests directory; `kunit/NAME` of a KUnit suite."""
    device: str
    """Id of the topology's device it is aimed at; `all` or `none` when it is not one device."""
    targets: tuple[str, ...]
    """Ids of the devices whose BDFs it is given."""
    translated: bool
    """Whether every one of them sits behind a vIOMMU."""
    needs: tuple[str, ...]
    seconds: float
    """Time limit on KVM; TCG multiplies it."""
    fewest: int
    """How many points must pass where no expectation covers the program."""
    hugepages: int
    """2 MiB pages it wants free."""
    sriov: bool
    """Whether vfio-pci must allow SR-IOV (vfio_pci.enable_sriov)."""
    expectations: tuple[Expectation, ...]

    @property
    def is_kunit(self) -> bool:
        """Whether it is part of the kernel, and not a program of its own."""
        return self.path.startswith("kunit/")

    @property
    def title(self) -> str:
        return self.name if self.device == "none" else f"{self.name}@{self.device}"

    def expected(self, point: str, features: frozenset[str], said: str | None = None) -> Expectation | None:
        """The first expectation that covers *point* under *features*, and what it *said* if that is given."""
        for expectation in self.expectations:
            fits = said is None or expectation.says.search(said)
            if fits and expectation.covers(self.name, point, features):
                return expectation
        return None

    def fewest_under(self, features: frozenset[str], points: Sequence[str]) -> int:
        """How many of *points* must pass: none when every one of them is covered by an expectation."""
        if self.expected("", features) or (points and all(self.expected(p, features) for p in points)):
            return 0
        return self.fewest
