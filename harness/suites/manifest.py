# SPDX-License-Identifier: GPL-2.0-only
"""The recorded manifest: which points each upstream program must report, so that none vanishes unnoticed.

It is recorded from good runs and not computed, because most programs cannot list their points without a
device that works.  An entry holds for the C file it was recorded with; when upstream changes that file the
entry no longer binds, and a maintainer records it again:

    python -m harness.suites.manifest RUN_DIRECTORY
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path

from harness.errors import ExitCode
from harness.plan import PLAN_FILE, load_plan
from harness.results import WHOLE_PROGRAM, load
from harness.suites.model import Program

MANIFEST = Path(__file__).resolve().with_name("manifest.json")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One program's points."""

    source: str
    """SHA-256 of the C file they were recorded with."""
    points: tuple[str, ...]


@functools.cache
def recorded(path: Path = MANIFEST) -> dict[str, Entry]:
    """The manifest by program, `vfio/vfio_pci_device_test`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return {name: Entry(source=e["source"], points=tuple(e["points"])) for name, e in data.items()}


def expected_points(program: Program, source: str) -> tuple[str, ...]:
    """The points *program* must report; none when it is not the program that was recorded."""
    entry = recorded().get(program.path)
    return entry.points if entry and entry.source == source else ()


def record(run_dir: Path) -> str:
    """The manifest as JSON, the programs of the run in *run_dir* replaced by what they reported there."""
    sources = {
        name: s for job in load_plan(run_dir / PLAN_FILE).jobs for name, s in job.kernel.sources.items()
    }
    points: dict[str, list[str]] = {}
    for case in load(run_dir).cases:
        collection = case.address.suite.removeprefix("kselftest:")
        program = f"{collection}/{case.address.program.partition('@')[0]}"
        if program in sources and case.address.case != WHOLE_PROGRAM:
            points.setdefault(program, []).append(case.address.case)
    entries = recorded() | {
        name: Entry(source=sources[name], points=tuple(dict.fromkeys(names)))
        for name, names in points.items()
    }
    plain = {name: dataclasses.asdict(entry) for name, entry in sorted(entries.items())}
    return json.dumps(plain, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m harness.suites.manifest RUN_DIRECTORY", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    MANIFEST.write_text(record(Path(sys.argv[1])) + "\n", encoding="utf-8")
