# SPDX-License-Identifier: GPL-2.0-only
"""Run drgn on the dump of a guest's memory, in a child process: a damaged dump may crash or hang it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import HostError, InfraError
from harness.kernel.debugfile import DebugInformation

ANSWERS = "memory.txt"
"""The file beside a dump with drgn's answers."""

SUMMARY = "== summary"
"""The title of the first section of that file."""

_QUESTIONS = Path(__file__).with_name("questions.py")


def refuse_without_drgn() -> None:
    """Raise HostError when this host has no drgn."""
    if importlib.util.find_spec("drgn") is None:
        raise HostError("drgn is not installed", hint="python3 -m pip install drgn")


def drgn_command(dump: Path, information: DebugInformation, *options: str) -> list[str]:
    """Return the command that runs questions.py with *options* on *dump*.

    Raises HostError when this host has no drgn.
    """
    refuse_without_drgn()
    # -P: our modules must not hide libraries of the same name.
    words = [sys.executable, "-P", str(_QUESTIONS), *options, "--vmcoreinfo", information.vmcoreinfo]
    return [*words, str(dump), *map(str, (information.program, *information.modules))]


def interrogate(dump: Path, information: DebugInformation, deadline: Deadline) -> str:
    """Return drgn's answers about *dump*, in sections; the first is SUMMARY.

    Raises HostError with the reason when drgn is missing, cannot open the dump or does not end in time.
    """
    try:
        done = process.run(drgn_command(dump, information), deadline=deadline)
    except InfraError as error:
        if not deadline.expired:
            raise
        raise HostError("drgn did not end in time") from error
    if done.ok:
        return done.stdout
    lines = done.stderr.strip().splitlines()
    raise HostError(lines[-1] if lines else f"drgn {done.ending}")


def summary_of(answers: str) -> tuple[str, ...]:
    """Return the lines of the section SUMMARY of *answers*."""
    _, _, rest = answers.partition(f"{SUMMARY}\n")
    return tuple(line for line in rest.partition("\n== ")[0].splitlines() if line.strip())
