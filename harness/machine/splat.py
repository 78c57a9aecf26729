# SPDX-License-Identifier: GPL-2.0-only
"""Finds the kernel's cries for help in its console: oops, BUG, WARN, KASAN, lockdep, stalls, panic.

What counts is data, in splats.yaml.  The detector is pure: lines in, splats out, each with the case that was
running, which the messages of the agent tell.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

from guest import kmsg
from harness import yamlfile
from harness.errors import UsageError

POLICY = Path(__file__).resolve().parent / "splats.yaml"

_STAMP = re.compile(r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ")
"""printk's time, and the caller with CONFIG_PRINTK_CALLER (kernel/printk/printk.c print_prefix)."""

_MARKER = re.compile(rf"({kmsg.BEGIN}|{kmsg.END}) (\S+)$")
_CUT_HERE = "------------[ cut here ]------------"
_TRACE_END = re.compile(r" ?</TASK>")
_CONSEQUENCE = re.compile(r"Kernel panic - not syncing: (Fatal exception|.*panic_on_warn|.*panic_on_oops)")

_PANIC_END = re.compile(r"---\[ end Kernel panic")

_LONGEST = 200
"""Lines after which a splat without an end is closed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """One complaint of the kernel's, with all of its lines."""

    kind: str
    """panic, kasan, oops, lockdep, warn...: a kind of splats.yaml."""
    title: str
    """The line that says what it is."""
    lines: tuple[str, ...]
    """As they stood on the console."""
    offset: int
    """Of the first line, in bytes from the start of the console."""
    fatal: bool
    """This kernel cannot be trusted with another case."""
    case: str | None
    """The case that was running, None between cases and while booting."""
    after: str | None
    """The case that had ended last; only worth a look when `case` is None."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One entry of `deny`."""

    kind: str
    pattern: re.Pattern[str]
    end: re.Pattern[str] | None
    """What closes the splat; None: it is one line."""
    fatal: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """splats.yaml, read."""

    deny: tuple[Rule, ...]
    allow: tuple[tuple[re.Pattern[str], str], ...]

    def match(self, message: str) -> Rule | None:
        """The rule that *message* breaks."""
        if any(pattern.match(message) for pattern, _ in self.allow):
            return None
        return next((rule for rule in self.deny if rule.pattern.match(message)), None)


@functools.cache
def policy() -> Policy:
    """The policy that ships with the harness."""
    return read_policy(POLICY)


def read_policy(path: Path) -> Policy:
    """Read a policy file; UsageError names file and line of what is wrong."""
    top = yamlfile.load(path)
    deny = []
    for section in top.sections("deny"):
        end = section.text("end", _TRACE_END.pattern)
        rule = Rule(
            kind=section.text("kind"),
            pattern=_pattern(section, "pattern"),
            end=re.compile(end) if end else None,
            fatal=section.flag("fatal"),
            reason=section.text("reason"),
        )
        section.done()
        deny.append(rule)
    allow = []
    for section in top.sections("allow"):
        allow.append((_pattern(section, "pattern"), section.text("reason")))
        section.done()
    top.done()
    return Policy(deny=tuple(deny), allow=tuple(allow))


def _pattern(section: yamlfile.Section, key: str) -> re.Pattern[str]:
    text = section.text(key)
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{section.where(key)}: not a regular expression: {error}") from error


def message_of(line: str) -> str | None:
    """The kernel message in a console line, None when the kernel did not write it.

    A program's unfinished line may stand before the stamp, because both write to one port.
    """
    match = _STAMP.search(line)
    return line[match.end() :] if match else None


@dataclasses.dataclass(slots=True)
class _Block:
    """A splat that is still being read."""

    rule: Rule
    title: str
    lines: list[str]
    offset: int
    case: str | None
    after: str | None
    fatal: bool

    def freeze(self) -> Splat:
        return Splat(
            kind=self.rule.kind,
            title=self.title,
            lines=tuple(self.lines),
            offset=self.offset,
            fatal=self.fatal,
            case=self.case,
            after=self.after,
        )


class Detector:
    """Reads a console line by line."""

    def __init__(self, rules: Policy | None = None) -> None:
        self._policy = rules or policy()
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        self._cut: tuple[int, list[str]] | None = None
        """Offset and lines since the last `cut here`, in case a splat follows."""
        self.case: str | None = None
        """The case that runs now."""
        self.after: str | None = None
        """The case that ended last."""

    @property
    def splats(self) -> tuple[Splat, ...]:
        """Everything found so far; the last one may still grow."""
        return tuple(block.freeze() for block in self._blocks)

    @property
    def settled(self) -> bool:
        """Whether no splat is still being printed."""
        return self._open is None

    def feed(self, line: str, offset: int) -> None:
        """Take the next line, without its end; it began at byte *offset*."""
        message = message_of(line)
        if message is None:
            if self._open is not None:
                self._grow(line)
            return
        marker = _MARKER.match(message)
        if marker is not None:
            self._mark(marker[1], marker[2])
            return
        rule = self._policy.match(message)
        if rule is not None and not self._belongs(rule, message):
            self._begin(rule, message, line, offset)
        elif self._open is not None:
            self._grow(line)
        elif message == _CUT_HERE:
            self._cut = (offset, [line])
        elif self._cut is not None:
            self._cut[1].append(line)
            if len(self._cut[1]) > 4:
                self._cut = None
        self._end(message, started=rule is not None and self._open is not None)

    def _mark(self, word: str, case: str) -> None:
        self._open = None
        self._cut = None
        if word == kmsg.BEGIN:
            self.case = case
        else:
            self.case, self.after = None, case

    def _belongs(self, rule: Rule, message: str) -> bool:
        """Whether a line that could open a splat is part of the one before it."""
        before = self._open or (self._blocks[-1] if self._blocks else None)
        if before is None:
            return False
        if rule.kind == "panic" and _CONSEQUENCE.match(message):
            before.fatal = True
            self._open = before
            return True
        return self._open is not None and (rule.kind == before.rule.kind or before.rule.kind == "panic")

    def _begin(self, rule: Rule, message: str, line: str, offset: int) -> None:
        start, lines = self._cut or (offset, [])
        self._cut = None
        block = _Block(rule, message, [*lines, line], start, self.case, self.after, rule.fatal)
        self._blocks.append(block)
        self._open = block

    def _grow(self, line: str) -> None:
        assert self._open is not None
        self._open.lines.append(line)
        if len(self._open.lines) >= _LONGEST:
            self._open = None

    def _end(self, message: str, *, started: bool) -> None:
        if self._open is None:
            return
        end = self._open.rule.end
        if end is None or (not started and (end.match(message) or _PANIC_END.match(message))):
            self._open = None
