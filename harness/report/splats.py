# SPDX-License-Identifier: GPL-2.0-only
"""Extract the essence of a splat: title, program counter, first frames and source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from harness.base.places import Line, Place, find_addresses
from harness.machine.addresses import lines_with_places, with_places
from harness.machine.culprit import Account, function_in
from harness.machine.splatpolicy import message_of
from harness.report import names
from harness.results import Result, Run
from harness.results.decoded import decoded_splat, places_of
from harness.results.fingerprint import account_of

_FEWEST = 3
_FRAMES = 4
_PARTS = 8
_OF_A_PART = 2

OWN = ("drivers/vfio/", "drivers/iommu/iommufd/", "drivers/iommu/generic_pt/")
"""The tested code.  Frames there, or in files that the user changed, are shown before all others."""

_NONE: Mapping[str, Place] = MappingProxyType({})


def essence(splat: str, places: Mapping[str, Place] = _NONE) -> list[str]:
    """Return title, program counter and the first frames of *splat*; its first lines if it has neither.

    With *places*, those of the subsystem come before others, and the source around the culprit follows.  A
    splat that tells what happened in several parts, such as lockdep's, has the first frames of each.
    """
    texts = names.text(splat.strip().split("\n\n")[0]).splitlines()
    spoken = [text if (said := message_of(text)) is None else said for text in texts]
    account = account_of("\n".join(texts))
    counter = account.counter.strip()
    told: list[str] = []
    if account.parts:
        parts = account.parts[:_PARTS]
        frames = [line for _, *below in parts for line in _chosen(below, places)]
        for heading, *below in parts:
            told.append(f"  {heading}")
            told += (f"    {line}" for said in _chosen(below, places) for line in _decoded(said, places))
    else:
        frames = _frames(spoken, account, places)
        told += (f"  {line}" for said in frames[:_FRAMES] for line in _decoded(said, places))
    if not counter and not told:
        return [line for said in spoken if (line := said.strip())][:_FEWEST]
    return [
        names.name(account.title),
        *with_places(counter, places).splitlines(),
        *told,
        *_source([counter, *frames], places),
    ]


def _frames(spoken: Iterable[str], account: Account, places: Mapping[str, Place]) -> list[str]:
    """Return the first line of each function in the stack trace, those of the subsystem first."""
    frames: dict[str, str] = {}
    own: dict[str, str] = {}
    for said in spoken:
        line, function = said.strip(), function_in(said)
        if line == account.counter.strip() or account.title.startswith(line):
            continue
        # Behind `?` may be what an earlier call left on the stack.
        if not line.startswith("?") and _is_of_the_subsystem(said, places):
            own.setdefault(function or line, line)
        elif function and function in account.functions:
            frames.setdefault(function, line)
    return [*own.values(), *frames.values()]


def _chosen(below: Sequence[str], places: Mapping[str, Place]) -> list[str]:
    """Return the lines of one part of a splat that are shown: the first of the subsystem, else the first."""
    own = [said for said in below if _is_of_the_subsystem(said, places)]
    return own[:_OF_A_PART] or [*below[:1]]


def _decoded(said: str, places: Mapping[str, Place]) -> list[str]:
    """Return a line with what is inlined there, which tells nothing in code of others."""
    lines = [*lines_with_places(said, places)]
    return lines if _is_of_the_subsystem(said, places) else lines[-1:]


def _is_of_the_subsystem(said: str, places: Mapping[str, Place]) -> bool:
    return any(map(_is_own, _lines_in(said, places)))


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
