# SPDX-License-Identifier: GPL-2.0-only
"""A few letters that are equal for two splats of one cause, whatever boot or process they come from."""

from __future__ import annotations

import hashlib
import re

_STAMP = re.compile(r"^\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ?")
_CUT_HERE = re.compile(r"-+\[ cut here \]-+")
# `? ` before a function: the unwinder found its address on the stack and does not vouch for it.
_FRAME = re.compile(r"^(?:RIP: \w+:| ?(?:\[<[0-9a-f]+>\] )?)([A-Za-z_][\w.]*)\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm)\b.*$")
# What the compiler, the boot and the moment decide: offsets, addresses, line numbers, processors, pids.
_OFFSET = re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")
_NUMBER = re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b|\d+")
_WHO = re.compile(r",? (?:CPU#\d+: |by task |Comm: ?|in process )\S+.*$")
_END = re.compile(r"^ ?</TASK>")

_FRAMES = 8
"""Functions that count, innermost first: further out stand the system calls that led there."""

LENGTH = 12


def title(splat: str) -> str:
    """The line of *splat* that says what it is, as it stood on the console; empty when there is none."""
    messages = (_STAMP.sub("", line.rstrip()) for line in splat.splitlines())
    return next((line for line in messages if line.strip(" -=") and not _CUT_HERE.search(line)), "")


def fingerprint(splat: str) -> str:
    """Twelve hex digits for the title of *splat* and its call trace; empty for no splat.

    Without a trace the title alone decides.
    """
    first = title(splat)
    if not first:
        return ""
    cause = _NUMBER.sub("N", _OFFSET.sub("", _WHO.sub("", first)))
    said = "\n".join([" ".join(cause.split()), *_functions(splat)])
    return hashlib.sha256(said.encode("utf-8", "backslashreplace")).hexdigest()[:LENGTH]


def _functions(splat: str) -> list[str]:
    found: list[str] = []
    for line in splat.splitlines():
        message = _STAMP.sub("", line)
        if _END.match(message):
            break
        frame = _FRAME.match(message)
        if frame is not None:
            name = _SUFFIX.sub("", frame[1])
            # RIP repeats the innermost function of the trace.
            if name not in found:
                found.append(name)
    return found[:_FRAMES]
