# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own KUnit suites, which are part of it: one suite of ours for each kunit-*.yaml."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from guest import kmsg
from harness.suites.model import Script, Work
from harness.suites.programs import Program, ProgramSuite

_DEBUGFS = "/sys/kernel/debug/kunit"
"""One directory for each suite (Documentation/dev-tools/kunit/run_manual.rst, lib/kunit/debugfs.c)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KunitSuite(ProgramSuite):
    """KUnit suites, one program each."""

    @property
    def summary(self) -> str:
        return f"{len(self.entries)} of the kernel's own KUnit suites; they need --with {self.directory}"

    def paths(self, built: Sequence[str]) -> Sequence[str]:
        """Which suites a kernel has is known only when it has booted: it must have all of them."""
        return list(self.entries)

    def script(self, work: Work, program: Program, bdfs: Sequence[str]) -> Script:
        """Run the KUnit suite once more and print its results, which debugfs has when it has ended."""
        suite = shlex.quote(f"{_DEBUGFS}/{program.name}")
        begin, end = (f'echo "{word} {work.name}" > /dev/kmsg' for word in (kmsg.BEGIN, kmsg.END))
        absent = f'echo "the kernel has no KUnit suite {program.name}"'
        lines = [
            f"test -d {_DEBUGFS} || mount -t debugfs none /sys/kernel/debug",
            f"test -e {suite}/run || {{ {absent}; {begin}; {end}; exit 1; }}",
            begin,
            f"echo run > {suite}/run; status=$?",
            f"cat {suite}/results",
            end,
            "exit $status",
        ]
        return Script("\n".join(lines))


def suites() -> tuple[KunitSuite, ...]:
    """Return one suite for each kunit-*.yaml beside this file."""
    return tuple(map(KunitSuite.read, sorted(Path(__file__).parent.glob("kunit-*.yaml"))))
