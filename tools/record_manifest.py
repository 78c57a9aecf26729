# SPDX-License-Identifier: GPL-2.0-only
"""Record which points the upstream programs of a good run reported: harness/suites/manifest.json.

    python -m tools.record_manifest RUN_DIRECTORY

The programs of that run replace their earlier records.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from harness.base.errors import ExitCode
from harness.plan import PLAN_FILE, load_plan
from harness.results import WHOLE_PROGRAM
from harness.results.store import load
from harness.suites.manifest import MANIFEST, RecordedProgram, recorded
from harness.suites.registry import all_suites


def record(run_dir: Path) -> str:
    """Return the manifest as JSON, with what the programs of the run in *run_dir* reported there."""
    sources = {
        name: s for job in load_plan(run_dir / PLAN_FILE).jobs for name, s in job.kernel.sources.items()
    }
    directories = {suite.name: suite.selftests for suite in all_suites()}
    points: dict[str, list[str]] = {}
    for case in load(run_dir).cases:
        program = f"{directories.get(case.address.suite)}/{case.address.program.partition('@')[0]}"
        if program in sources and case.address.case != WHOLE_PROGRAM:
            points.setdefault(program, []).append(case.address.case)
    programs = recorded() | {
        name: RecordedProgram(source=sources[name], points=tuple(dict.fromkeys(names)))
        for name, names in points.items()
    }
    plain = {name: dataclasses.asdict(one) for name, one in sorted(programs.items())}
    return json.dumps(plain, indent=1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m tools.record_manifest RUN_DIRECTORY", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    MANIFEST.write_text(record(Path(sys.argv[1])) + "\n", encoding="utf-8")
