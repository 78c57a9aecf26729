# SPDX-License-Identifier: GPL-2.0-only
"""A VM that boots in no time, and whose agent gives the answers of a script."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.deadline import Deadline
from harness.base.errors import LostGuest
from harness.ktap import KtapReport, parse
from harness.lab import current
from harness.machine.splat import Splat
from harness.machine.vm import Ending

PASSES = "ok 1 {}"
FAILS = "not ok 1 {}"
HANGS = "not ok 1 {} # TIMEOUT after 1s"


class Guest:
    """A guest whose kernel is not tainted."""

    def __init__(self, said: list[str], answers: bool = True) -> None:
        self._said = said
        self._answers = answers

    def check(self, command: object, deadline: Deadline) -> str:
        if not self._answers:
            raise LostGuest("no answer")
        self._said.append(f"check {command}")
        return "0\n"


class _VM(SimpleNamespace):
    def __init__(self, host: Host, **given: object) -> None:
        super().__init__(**given)
        self._host = host

    @property
    def alive(self) -> bool:
        return self._host.ending is None


class Booted:
    """A running VM in *directory*."""

    def __init__(self, directory: Path, host: Host) -> None:
        console = SimpleNamespace(tail=lambda most: ["[ 1.0] the end"][-most:], text=lambda since: "", size=0)
        actions = SimpleNamespace(altered=False)
        self.directory = directory
        self.vm = _VM(
            host,
            pid=2**22 + 1,
            ending=None,
            console=console,
            hostlink=SimpleNamespace(actions=actions),
            wait=lambda deadline: None,
            patient=lambda deadline: deadline,
        )
        self.guest = Guest(host.happened)
        self.bdfs: dict[str, str] = {}
        self._host = host

    def account(self, **seconds: float) -> None:
        """Account for nothing."""

    def diagnose(self) -> None:
        self._host.happened.append("diagnose")

    def dump(self) -> None:
        self._host.happened.append("dump")

    @property
    def silent_ending(self) -> Ending | None:
        return self._host.ending

    def hears(self, name: str, since: int) -> bool:
        return name not in self._host.silent

    def splats(self, name: str | None = None) -> tuple[Splat, ...]:
        said, self._host.splats = tuple(self._host.splats), []
        return said


class Host:
    """Everything a Lab needs of the host, and a list of what happened on it."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.answers: list[str | Exception] = []
        """What the agent answers to one case after the other; PASSES when there is none left."""
        self.boots: list[Exception] = []
        """What the next boots fail with."""
        self.silent: set[str] = set()
        """The names of work whose last message is not on the console."""
        self.splats: list[Splat] = []
        """What the kernel has printed since the last look."""
        self.last_words: list[Splat] = []
        """What the kernel prints while its VM is stopped."""
        self.ending: Ending | None = None
        """How the running guest has ended itself without a message."""
        self.counters = ""
        """The coverage counters that the agent sends with each case."""

    @contextlib.contextmanager
    def boot(self, recipe: object, directory: Path) -> Iterator[Booted]:
        if self.boots:
            raise self.boots.pop(0)
        self.happened.append(f"boot {directory.name}")
        yield Booted(directory, self)
        self.splats, self.last_words = self.last_words, []
        self.ending = None
        self.happened.append("stop")

    def agent(
        self, guest: Guest, features: object, deadline: Deadline, *, fresh: bool, patient: object
    ) -> Host:
        self.happened.append("agent")
        return self

    def run(self, case: str, seconds: float, seed: int, raw: list[str]) -> tuple[KtapReport, str]:
        self.happened.append(case)
        answer = self.answers.pop(0) if self.answers else PASSES
        if isinstance(answer, Exception):
            raise answer
        raw.append(answer.format(case))
        return parse(["KTAP version 1", "1..1", *raw]), ""


@contextlib.contextmanager
def _admitted(memory_mib: int, check: object, *, cpus: int) -> Iterator[float]:
    yield 0.0


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """A Recipe of which only the time limits matter."""

    accel = SimpleNamespace(timeout_factor=1.0)
    dumps: bool = False

    @classmethod
    def of(cls, job: object) -> _Recipe:
        return cls()


def fake_host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Put a Host in place of this one."""
    host = Host()
    monkeypatch.setattr(current, "boot", host.boot)
    monkeypatch.setattr(current, "hold", lambda *digests: contextlib.nullcontext())
    monkeypatch.setattr(current, "admitted", _admitted)
    monkeypatch.setattr(current, "AgentClient", host.agent)
    monkeypatch.setattr(current, "Recipe", _Recipe)
    return host


def splat(case: str | None = None, after: str | None = None) -> Splat:
    """Return a warning during *case*, after another or while booting."""
    return Splat(
        kind="warn", title="WARNING: x", lines=("WARNING: x",), offset=0, fatal=False, case=case, after=after
    )
