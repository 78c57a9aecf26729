# SPDX-License-Identifier: GPL-2.0-only
"""Extract the essence of a splat: title, program counter, first frames and source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from harness.base.places import Line, Place, find_addresses
from harness.machine.addresses import lines_with_places, with_places
from harness.machine.culprit import function_in
from harness.machine.splatpolicy import message_of
from harness.report import names
from harness.results import Result, Run
from harness.results.decoded import decoded_splat, places_of
from harness.results.fingerprint import account_of

_FEWEST = 3
_FRAMES = 4

OWN = ("drivers/vfio/", "drivers/iommu/iommufd/", "drivers/iommu/generic_pt/")
"""The tested code.  Frames there, or in files that the user changed, are shown before all others."""

_NONE: Mapping[str, Place] = MappingProxyType({})


def essence(splat: str, places: Mapping[str, Place] = _NONE) -> list[str]:
    """Return title, program counter and the first frames of *splat*; its first lines if it has neither.

    With *places*, those of the subsystem come before others, and the source around the culprit follows.
    """
    texts = names.text(splat.strip().split("\n\n")[0]).splitlines()
    spoken = [text if (said := message_of(text)) is None else said for text in texts]
    lines = [line for said in spoken if (line := said.strip())]
    account = account_of(splat)
    counter = account.counter.strip()
    frames: dict[str, str] = {}
    own: dict[str, str] = {}
    for said in spoken:
        line, function = said.strip(), function_in(said)
        if line == counter or account.title.startswith(line):
            continue
        # Behind `?` may be what an earlier call left on the stack.
        if not line.startswith("?") and any(map(_is_own, _lines_in(said, places))):
            own.setdefault(function or line, line)
        elif function and function in account.functions:
            frames.setdefault(function, line)
    if not counter and not frames and not own:
        return lines[:_FEWEST]
    # Functions that are inlined in other code tell nothing about the subsystem.
    told = [[*lines_with_places(said, places)] for said in own.values()]
    told += [[*lines_with_places(said, places)][-1:] for said in frames.values()]
    return [
        names.name(account.title),
        *with_places(counter, places).splitlines(),
        *(f"  {line}" for lines in told[:_FRAMES] for line in lines),
        *_source([counter, *own.values(), *frames.values()], places),
    ]


def _lines_in(said: str, places: Mapping[str, Place]) -> Iterator[Line]:
    for address in find_addresses(said):
        if place := places.get(address.text):
            yield from place.lines


def _is_own(line: Line) -> bool:
    return line.changed or line.file.startswith(OWN)


def _source(frames: list[str], places: Mapping[str, Place]) -> list[str]:
    """Return the source around the innermost line of the subsystem, else of the first of *frames*."""
    found = [line for said in frames for line in _lines_in(said, places) if line.code]
    line = next(filter(_is_own, found), found[0] if found else None)
    if line is None:
        return []
    rows = [
        f"{'>' if number == line.line else ' '} {number:>5}  {names.text(text).expandtabs(8)}".rstrip()
        for number, text in enumerate(line.code, start=line.first)
    ]
    return [f"{line} in {line.function}():", *rows]


def essence_of(run: Run, case: Result) -> list[str]:
    """Return essence() of the splat of *case*; empty without a splat."""
    return essence(case.splat, places_of(run, case)) if case.splat else []


def evidence(run: Run, case: Result, most: int) -> str:
    """Return what *case* has to show, its splat or else its log, in about *most* characters.

    The essence of a splat with source lines stands before it.
    """
    if not case.splat or not places_of(run, case):
        return names.excerpt(case.splat or case.log, most)
    head = "\n".join(essence_of(run, case))
    return f"{head}\n\n{names.excerpt(decoded_splat(run, case), max(0, most - len(head)))}"
