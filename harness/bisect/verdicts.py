# SPDX-License-Identifier: GPL-2.0-only
"""What single steps judged, kept for the next one that comes to the same image.

A hunt knows its own verdicts (harness.bisect.state); a step that somebody else's `git bisect run` starts
knows nothing but this file.  A verdict is found again only where everything that decides it is the same: the
image, the cases, the machine, how failures are confirmed, and the files of the harness itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness import paths
from harness.bisect.judge import Trial
from harness.bisect.model import Aim, Sight, Step
from harness.errors import InfraError
from harness.locks import locked

FORMAT = 1
"""Grows when a field changes meaning; verdicts of another format are forgotten."""

KEPT = 500
"""How many verdicts are kept, the latest ones: some hundred bytes each."""

_SOURCES = frozenset({".py", ".c", ".sh", ".yaml", ".config"})


def verdicts_path() -> Path:
    """The file; whoever wants everything judged anew removes it."""
    return paths.cache_dir() / "verdicts.json"


def deciding(trial: Trial, aim: Aim, machine: Iterable[str]) -> str:
    """A digest of all that decides a verdict beside the image.

    *machine* is what tells the machine and is in no option: the build of QEMU, the accelerator that was
    chosen, the text of a topology of the user's own.
    """
    words = [*trial.options(), f"{aim.boot} {aim.missing_fails} {aim.repeat}", *machine, *_own_files()]
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:32]


def _own_files() -> Iterator[str]:
    """What the harness is made of: who edits a case wants it judged by what it says now."""
    package = Path(__file__).resolve().parent.parent
    for top in (package, paths.guest_dir()):
        for path in sorted(path for path in top.rglob("*") if path.suffix in _SOURCES):
            yield f"{path.relative_to(top)} {hashlib.sha256(path.read_bytes()).hexdigest()}"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of all steps that share what decides them."""

    decided_by: str
    """What deciding() returned."""

    def known(self, content: str) -> Step | None:
        """The step that judged an image with the digest *content*; None when there was none."""
        key = self._key(content)
        found = next((one for one in reversed(_read()) if one["key"] == key), None)
        if found is None:
            return None
        return Step(
            commit=found["commit"],
            subject=found["subject"],
            sight=Sight[found["sight"]],
            why=found["why"],
            content=content,
        )

    def remember(self, step: Step) -> None:
        """Keep the verdict of *step*, when it is one: not what was borrowed, had no chance or was flaky.

        Where the cache cannot be written to, the next step does the work again.
        """
        if not step.content or step.same_as or step.flaky or step.sight is Sight.NO_CHANCE:
            return
        made = {
            "key": self._key(step.content),
            "commit": step.commit,
            "subject": step.subject,
            "sight": step.sight.name,
            "why": step.why,
        }
        with (
            contextlib.suppress(InfraError, OSError),
            locked("verdicts", "another process writes down a verdict"),
        ):
            kept = [one for one in _read() if one["key"] != made["key"]]
            _write([*kept, made][-KEPT:])

    def _key(self, content: str) -> str:
        return f"{content} {self.decided_by}"


def _read() -> list[dict[str, Any]]:
    """All verdicts, the latest last; none when the file is not there or is not ours."""
    try:
        plain = json.loads(verdicts_path().read_text(encoding="utf-8"))
        known = plain["verdicts"] if plain["format"] == FORMAT else []
        return [one for one in known if {"key", "commit", "subject", "sight", "why"} <= one.keys()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _write(verdicts: list[dict[str, Any]]) -> None:
    path = verdicts_path()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps({"format": FORMAT, "verdicts": verdicts}, indent=1)
    partial.write_text(f"{text}\n", encoding="utf-8")
    partial.replace(path)
