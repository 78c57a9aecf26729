# SPDX-License-Identifier: GPL-2.0-only
"""The recorded manifest: which points each upstream program must report, so that none vanishes unnoticed.

It is recorded from good runs and not computed, because most programs cannot list their points without a
device that works.  A record holds for the C file it was made with: when upstream changes that file it no
longer applies, and a maintainer records again with `python -m tools.record_manifest`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

MANIFEST = Path(__file__).resolve().with_name("manifest.json")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecordedProgram:
    """The points of one program."""

    source: str
    """SHA-256 of the C file they were recorded with."""
    points: tuple[str, ...]


@functools.cache
def recorded() -> dict[str, RecordedProgram]:
    """Return the manifest by program, `vfio/vfio_pci_device_test`."""
    data = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {
        name: RecordedProgram(source=one["source"], points=tuple(one["points"])) for name, one in data.items()
    }


def expected_points(program: str, source: str) -> tuple[str, ...]:
    """Return the points that *program* must report; none when its *source* is not the recorded one."""
    one = recorded().get(program)
    return one.points if one and one.source == source else ()
