# SPDX-License-Identifier: GPL-2.0-only
"""What a client and the workers of its fleet tell each other, as values that are pickled."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.lab.abilities import Abilities
from harness.results.model import Result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A unit for a worker."""

    run: str
    """The run's id."""
    session: str
    """One for each time that a client carries out a part of the run: what it is interrupted by."""
    job: str
    unit: str
    """Names the unit, whoever carries it out, and however often."""
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """A worker begins a unit."""

    worker: str
    address: str
    unit: str
    """Order.unit."""
    abilities: Abilities


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Results, on their way while the worker goes on."""

    worker: str
    key: str = ""
    """Of the work that they are about; empty for what a kernel printed outside work."""
    results: tuple[Result, ...] = ()
    final: bool = True
    """False if another attempt at this work follows."""
    deaths: tuple[str, ...] = ()
    """The workers that died at this work; without results if it is begun once more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A worker has built a kernel."""

    cpu_seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How a unit ended; its results have gone ahead as Said."""

    worker: str = ""
    address: str = ""
    trouble: str = ""
    """What is wrong with the worker's host, so that it left the fleet or the work undone."""
    late: tuple[Result, ...] = ()
    """What the kernel printed when the VM was stopped."""
    evidence: bytes = b""
    """An archive with files of VM directories."""
    dropped: int = 0
    """How many files were left out of it, over the limit."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the call of a function came to on a worker."""

    worker: str
    address: str
    found: bool = False
    """Whether the worker has the source; else nothing was called."""
    value: Any = None
    trouble: str = ""
    """Why this host could not carry it out."""
    name: str = ""
    """That of the directory in `packed`; empty without one."""
    packed: bytes = b""
    """An archive of a directory's files."""
    dropped: int = 0
    """How many files were left out of it, over the limit."""
