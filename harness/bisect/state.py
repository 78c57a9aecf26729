# SPDX-License-Identifier: GPL-2.0-only
"""A hunt on disk: what was asked, and every verdict, written whole after each one.

Everything else can be had again from this file: git's own bisect state, and the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.bisect.model import Aim, Mark, Observation, Sight, Step
from harness.errors import InfraError, UsageError

FORMAT = 1
"""Grows when a field changes meaning; a hunt of another format cannot be continued."""

FILE_NAME = "bisect.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of the history, as it was named and as what it is."""

    name: str
    commit: str
    subject: str = ""

    @property
    def label(self) -> str:
        """For people."""
        short = self.commit[:12]
        return short if self.name in (self.commit, short) else f"{self.name} ({short})"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quarry:
    """What was asked: which history, which kernel and machine, which cases."""

    repository: str
    """The directory that was given with --tree."""
    root: str
    """What all of its worktrees share."""
    old: End
    new: End
    paths: tuple[str, ...] = ()
    first_parent: bool = False
    skips: tuple[str, ...] = ()
    """Commits, or ranges of them, that are not to be tested."""
    variant: str = ""
    addons: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    jobs: int | None = None
    machine: tuple[str, ...] = ()
    """Options of `run` for the machine."""
    suites: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    keyword: str = ""

    @property
    def asked(self) -> str:
        """The cases as they were asked for."""
        words = list(self.cases) + ([f"-k {self.keyword}"] if self.keyword else [])
        return ", ".join(words)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HuntState:
    """A hunt, as far as it is."""

    id: str
    quarry: Quarry
    aim: Aim
    hunted: tuple[str, ...] = ()
    """The cases that tell the ends apart; empty until both were tested."""
    new_end: Step | None = None
    old_end: Step | None = None
    steps: tuple[Step, ...] = ()
    pending: Step | None = None
    """The commit that is being judged, with what was seen of it so far."""
    finished: bool = False

    @property
    def tested(self) -> tuple[Step, ...]:
        """Every commit that has a verdict, in order."""
        ends = (self.new_end, self.old_end)
        return (*(step for step in ends if step is not None), *self.steps)

    def marks(self) -> tuple[tuple[Mark, str], ...]:
        """What git must be told besides the ends, in order."""
        return tuple((self.aim.mark(step.sight), step.commit) for step in self.steps)

    def known(self, content: str) -> Step | None:
        """An earlier commit with the same *content* that was really judged."""
        candidates = (s for s in self.tested if s.content == content and content and not s.same_as)
        return next((s for s in candidates if s.sight is not Sight.NO_CHANCE), None)

    @property
    def wary(self) -> bool:
        """Whether VMs have disagreed."""
        return any(step.flaky for step in self.tested)

    @property
    def usual_failures(self) -> frozenset[str]:
        """The kinds of failure that the failing end shows."""
        failing = self.old_end if self.aim.find_fix else self.new_end
        seen = failing.observations if failing is not None else ()
        return frozenset(one.failure for one in seen if one.failure)

    def save(self, directory: Path) -> None:
        """Write it into *directory*, whole or not at all."""
        path = directory / FILE_NAME
        partial = path.with_name(f".{FILE_NAME}.new")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, **_to_plain(self)}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise InfraError(f"cannot write {path}: {error.strerror}") from error


def load_state(directory: Path) -> HuntState:
    """The hunt in *directory*; UsageError when there is none that can be read."""
    path = directory / FILE_NAME
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain.pop("format") == FORMAT:
            return _from_plain(plain)
        reason = "another version of the harness wrote it"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it is not what was written: {error}"
    raise UsageError(f"cannot continue from {path}: {reason}", hint="drop it with --reset and begin again")


def _to_plain(state: HuntState) -> dict[str, Any]:
    plain = dataclasses.asdict(state, dict_factory=_plain_dict)
    assert isinstance(plain, dict)
    return plain


def _plain_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in items}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Sight):
        return value.name
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def _from_plain(plain: dict[str, Any]) -> HuntState:
    quarry = plain["quarry"]
    lists = ("paths", "skips", "addons", "configs", "machine", "suites", "cases")
    return HuntState(
        id=plain["id"],
        quarry=Quarry(
            **{
                **quarry,
                **{name: tuple(quarry[name]) for name in lists},
                "old": End(**quarry["old"]),
                "new": End(**quarry["new"]),
            }
        ),
        aim=Aim(**plain["aim"]),
        hunted=tuple(plain["hunted"]),
        new_end=_step(plain["new_end"]),
        old_end=_step(plain["old_end"]),
        steps=tuple(step for one in plain["steps"] if (step := _step(one)) is not None),
        pending=_step(plain["pending"]),
        finished=plain["finished"],
    )


def _step(plain: dict[str, Any] | None) -> Step | None:
    if plain is None:
        return None
    seen = tuple(_observation(one) for one in plain["observations"])
    return Step(**{**plain, "sight": Sight[plain["sight"]], "observations": seen})


def _observation(plain: dict[str, Any]) -> Observation:
    cases = {case: Sight[sight] for case, sight in plain["cases"].items()}
    return Observation(**{**plain, "sight": Sight[plain["sight"]], "cases": cases})
