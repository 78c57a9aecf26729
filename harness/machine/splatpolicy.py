# SPDX-License-Identifier: GPL-2.0-only
"""Read splats.yaml: how a splat begins and ends, and which of its functions and words identify it."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from harness.base import yamlfile

POLICY = Path(__file__).resolve().parent / "splats.yaml"

_STAMP = re.compile(r"\[ *\d+\.\d{6}\](?:\[ *([TC]\d+)\])? ?")
"""printk's time stamp, and as group 1 the caller with CONFIG_PRINTK_CALLER (kernel/printk/printk.c
print_prefix())."""

_CALLER = re.compile(r"\[ *([TC]\d+)\] ")
"""What is left of it without time stamps (printk.time=0)."""

CUT_HERE = "------------[ cut here ]------------"
TRACE_END = r" ?</TASK>"

_LONGEST = 200


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of `deny`."""

    kind: str
    pattern: re.Pattern[str]
    end: re.Pattern[str] | None
    """A pattern for the last line of the splat; None: it has one line."""
    more: re.Pattern[str] | None
    """A pattern for a line after `end` that announces one more stack trace of the same splat."""
    interrupted: bool
    """Whether an interrupt or another CPU prints it; then the function that was interrupted is to blame."""
    named: re.Pattern[str] | None
    """A pattern for a line that names a function to blame, as group `name`."""
    earlier: re.Pattern[str] | None
    """A pattern for the line above the stack trace of an earlier event that led to the splat."""
    parts: re.Pattern[str] | None
    """A pattern for the lines that tell what happened, each with the lines below it."""
    longest: int
    """Maximum number of lines; it ends there at the latest."""
    fatal: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """A stack trace within a splat that does not show what happened."""

    begin: re.Pattern[str]
    until: re.Pattern[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All of splats.yaml."""

    deny: tuple[Rule, ...]
    allow: tuple[tuple[re.Pattern[str], str], ...]
    headless: Rule
    """A line from the middle of a splat; it starts one if printk has just reported dropped messages."""
    consequences: tuple[tuple[re.Pattern[str], frozenset[str]], ...]
    """Panics that belong to a splat just before them, and the kinds of such splats."""
    messages: re.Pattern[str]
    """A line before a splat's first that names its kind."""
    moment: re.Pattern[str]
    """The part of a first line that differs each time the splat occurs."""
    machinery: re.Pattern[str]
    """Functions that report, wait or merely carry out what their caller asked for."""
    dispatch: re.Pattern[str]
    """Functions on the way from a system call to the one that serves it."""
    asides: tuple[Aside, ...]
    emulator: re.Pattern[str]
    """Functions that wait without end for a device that QEMU emulates."""

    def match(self, message: str) -> Rule | None:
        """Return the rule that matches *message*, None if no rule does or an exception matches too."""
        if any(pattern.match(message) for pattern, _ in self.allow):
            return None
        return next((rule for rule in self.deny if rule.pattern.match(message)), None)

    def is_consequence(self, message: str, kind: str) -> bool:
        """Whether *message* is a panic that a splat of *kind* caused."""
        return any(pattern.match(message) and kind in kinds for pattern, kinds in self.consequences)


@functools.cache
def policy() -> Policy:
    """Return the policy that ships with the harness."""
    return read_policy(POLICY)


def read_policy(path: Path) -> Policy:
    """Read a policy file; UsageError names the file and line of a mistake."""
    top = yamlfile.load(path)
    deny = tuple(_rule(section) for section in top.sections("deny"))
    allow = []
    for section in top.sections("allow"):
        allow.append((section.pattern("pattern"), section.text("reason")))
        section.done()
    consequences = []
    for section in top.sections("consequences"):
        consequences.append((section.pattern("pattern"), frozenset(section.texts("of"))))
        section.done()
    asides = []
    for section in top.sections("asides"):
        asides.append(Aside(begin=section.pattern("begin"), until=section.pattern("until")))
        section.done()
    made = Policy(
        deny=deny,
        allow=tuple(allow),
        headless=_rule(top.section("headless")),
        consequences=tuple(consequences),
        messages=top.pattern("messages"),
        moment=top.pattern("moment"),
        machinery=top.pattern("machinery"),
        dispatch=top.pattern("dispatch"),
        asides=tuple(asides),
        emulator=top.pattern("emulator"),
    )
    top.done()
    return made


def _rule(section: yamlfile.Section) -> Rule:
    end = section.pattern("end") if "end" in section else re.compile(TRACE_END)
    rule = Rule(
        kind=section.text("kind"),
        pattern=section.pattern("pattern"),
        end=end if end.pattern else None,
        more=section.pattern("more") if "more" in section else None,
        interrupted=section.flag("interrupted", False),
        named=section.pattern("named") if "named" in section else None,
        earlier=section.pattern("earlier") if "earlier" in section else None,
        parts=section.pattern("parts") if "parts" in section else None,
        longest=section.number("longest", _LONGEST),
        fatal=section.flag("fatal"),
        reason=section.text("reason"),
    )
    section.done()
    return rule


def split(line: str) -> tuple[str | None, str]:
    """Return the caller and the kernel message in a console line; no caller without CONFIG_PRINTK_CALLER.

    The time stamp may follow the unfinished line of a program, because both write to one port.  A line
    without a time stamp is returned whole.
    """
    match = _STAMP.search(line) or _CALLER.match(line)
    return (match[1], line[match.end() :]) if match else (None, line)


def message_of(line: str) -> str | None:
    """Return the kernel message in a console line, None for a line of a program."""
    match = _STAMP.search(line)
    return line[match.end() :] if match else None


def seconds_of(line: str) -> float | None:
    """Return the time stamp of the kernel message in a console line, None for a line of a program."""
    match = _STAMP.search(line)
    return float(match[0].lstrip("[ ").partition("]")[0]) if match else None


def is_drop(line: str) -> bool:
    """Whether *line* is printk's report of dropped messages.

    This line has no time stamp of its own (kernel/printk/printk.c console_prepend_dropped()).
    """
    return _DROPPED.search(line) is not None


_DROPPED = re.compile(r"\*\* \d+ printk messages dropped \*\*")
