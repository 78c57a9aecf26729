# SPDX-License-Identifier: GPL-2.0-only
"""The code addresses in a splat, and its text with the places in the source that they stand for.  Pure.

A place is written behind the address, and an inlined function as a line before it, as syzbot does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from harness.base.places import ADDRESS, CodeAddress, Place, find_addresses
from harness.machine.culprit import COUNTER
from harness.machine.splatpolicy import split

_WARNING = re.compile(r"WARNING: ")
_REGISTERS = re.compile(r" \(P\b")
"""arm64's mark at a frame that is the program counter of an exception (arch/arm64/kernel/stacktrace.c)."""

_MOST = 4
"""How many addresses are listed for one reason."""

_FRAME = re.compile(rf"(?:{COUNTER.pattern})?[\s?]*(?:\[<[0-9a-f]+>\] )?$")
"""What stands before the function in a stack trace, or with the program counter."""


def addresses_in(splat: str) -> tuple[CodeAddress, ...]:
    """Return the addresses in *splat*, each once, in their order; one that is exact anywhere is exact."""
    found: dict[str, CodeAddress] = {}
    for line in splat.splitlines():
        message = split(line)[1]
        counted = bool(COUNTER.match(message) or _WARNING.match(message))
        for one in find_addresses(message):
            exact = (
                counted or _REGISTERS.match(message[message.index(one.text) + len(one.text) :]) is not None
            )
            if one.text not in found or exact:
                found[one.text] = dataclasses.replace(one, exact=exact)
    return tuple(found.values())


def with_places(splat: str, places: Mapping[str, Place]) -> str:
    """Return *splat* with file and line at each address that has a place; at its end why others have none."""
    lines = [told for line in splat.splitlines() for told in lines_with_places(line, places)]
    reasons: dict[str, list[str]] = {}
    for one in addresses_in(splat):
        if (place := places.get(one.text)) and place.reason:
            reasons.setdefault(place.reason, []).append(one.text)
    for reason, texts in reasons.items():
        more = f" and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
        lines.append(f"(no source line for {', '.join(texts[:_MOST])}{more}: {reason})")
    return "\n".join(lines)


def lines_with_places(line: str, places: Mapping[str, Place]) -> Iterator[str]:
    """Yield *line* of a splat with file and line at each address, after lines for what is inlined there."""
    message = split(line)[1]
    heading = line[: len(line) - len(message)]
    first = ADDRESS.search(message)
    before = message[: first.start()] if first else ""
    if first and _FRAME.match(before) and (place := places.get(first[0])) and place.lines:
        for one in place.lines[:-1]:
            yield f"{heading}{before}{one.function} {one} [inline]"
        yield f"{heading}{before}{first[0]} {place.lines[-1]}{message[first.end() :]}"
        return
    yield heading + ADDRESS.sub(lambda found: _named(found[0], places.get(found[0])), message)


def _named(text: str, place: Place | None) -> str:
    if place is None or not place.lines:
        return text
    *inlined, outer = place.lines
    within = "".join(f" ({one.function} {one})" for one in reversed(inlined))
    return f"{text} {outer}{within}"
