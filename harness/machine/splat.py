# SPDX-License-Identifier: GPL-2.0-only
"""Find splats in the console of a kernel: oops, BUG, WARN, KASAN, lockdep, stalls, panic.

The patterns are in splats.yaml.  The detector is pure: lines in, splats out, each with the case that was
running, according to the agent's messages in the kernel log.
"""

from __future__ import annotations

import dataclasses
import re

from guest import kmsg
from harness.machine.culprit import explain
from harness.machine.splatpolicy import CUT_HERE, Policy, Rule, is_drop, message_of, policy, split

_MARKER = re.compile(rf"({kmsg.BEGIN}|{kmsg.END}) (\S+)$")
_TRACE = re.compile(r"\s*(Call Trace|Call trace|Backtrace):")
_IN_TRACE = re.compile(r"[ \t[]|$|Exception stack|\w+: *[0-9a-f]{2}")
_TAG = re.compile(r" ?</?(TASK|IRQ|SOFTIRQ|NMI)>")
_PANIC_END = re.compile(r"---\[ end Kernel panic")

_BEFORE = 5
"""How many lines before a splat's first, from `cut here` on, may name its kind."""

_AT_ONCE = 8
"""Splats that may be printed at once; older ones are complete."""

_STRANGERS = 3
"""Lines in a row that end a stack trace without a tag, if they may be of another CPU."""

_SHORTLY = 60
"""How many messages may come between a splat and its panic: the registers are printed once more."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Splat:
    """One splat, with all of its lines."""

    kind: str
    """panic, kasan, oops, lockdep, warn...: a kind of splats.yaml."""
    title: str
    """The kind of splat, and the function to blame."""
    lines: tuple[str, ...]
    """Its text as on the console."""
    offset: int
    """Position of the first line, in bytes from the start of the console."""
    fatal: bool
    """Whether no further case may run on this kernel."""
    case: str | None
    """The case that was running; None between cases and during boot."""
    after: str | None
    """The case that ended last before it; of interest only if `case` is None."""


@dataclasses.dataclass(slots=True)
class _Block:
    """A splat while it is being read."""

    rule: Rule
    splat: Splat
    """The splat as of the last look."""
    caller: str | None
    """The task or CPU that prints it, with CONFIG_PRINTK_CALLER."""
    lines: list[str]
    open: bool = True
    """Whether more lines of it may follow."""
    between: bool = False
    """Whether a stack trace has ended; one more may follow."""
    since: int = 0
    """Messages since its last line."""
    tracer: str | None = None
    """Who prints a stack trace that has no tag at its end, if one has begun; empty without a caller."""
    strangers: int = 0
    """Lines in a row that do not look like part of that stack trace."""

    def look(self) -> Splat:
        """Return the splat as read so far."""
        if len(self.lines) != len(self.splat.lines):
            title = explain(self.lines).title
            self.splat = dataclasses.replace(self.splat, lines=tuple(self.lines), title=title)
        return self.splat

    def grow(self, line: str) -> None:
        self.since = 0
        self.lines.append(line)
        caller, message = split(line)
        if _TRACE.match(message) and self.rule.end is not None and self.rule.end.match(" </TASK>"):
            self.tracer, self.strangers = caller or "", 0
        elif _TAG.match(message):
            self.tracer = None
        self.open = len(self.lines) < self.rule.longest

    def is_over(self, message: str, caller: str | None) -> bool:
        """Whether all of its stack traces are read, and *message* belongs to none."""
        if self.rule.more is not None and self.rule.more.match(message):
            self.between, self.tracer = False, None
        elif self.tracer != (caller or "") or _IN_TRACE.match(message):
            self.strangers = 0
        else:
            self.strangers += 1
            self.between |= self.strangers == (1 if caller else _STRANGERS)
        return self.between

    def end(self, message: str) -> None:
        """Close it if *message*, which is part of it, is its last."""
        end, more = self.rule.end, self.rule.more
        if end is None or _PANIC_END.match(message) or (end.match(message) and more is None):
            self.open = False
        elif end.match(message):
            self.between = True


class Detector:
    """Reads a console line by line and collects splats, also of several CPUs that print at once."""

    def __init__(self, rules: Policy | None = None) -> None:
        self._policy = rules or policy()
        self._blocks: list[_Block] = []
        self._before: list[tuple[int, str]] = []
        """Offset and text of the last lines, which may become part of a splat that follows."""
        self._dropped: tuple[int, str] | None = None
        """printk's report of dropped messages, while the rest of a splat may follow."""
        self._since_drop = 0
        self._stamped = False
        """Whether a line had a time stamp.  Without any, a program's lines look like the kernel's."""
        self.case: str | None = None
        """The running case."""
        self.after: str | None = None
        """The case that ended last."""

    @property
    def splats(self) -> tuple[Splat, ...]:
        """All splats so far; the last one may be incomplete."""
        return tuple(block.look() for block in self._blocks)

    @property
    def settled(self) -> bool:
        """Whether no splat is incomplete."""
        return not any(block.open for block in self._blocks[-_AT_ONCE:])

    def feed(self, line: str, offset: int) -> None:
        """Process the next line, without its newline; it starts at byte *offset*."""
        if is_drop(line):
            self._dropped, self._since_drop = (offset, line), 0
        message, caller = message_of(line), split(line)[0]
        self._stamped |= message is not None
        if message is None and not self._stamped and line.strip():
            message = split(line)[1]
        if message is None:
            block = self._block(None)
            # An empty line would separate two splats in a text of several.
            if block is not None and line.strip():
                block.grow(line)
            return
        marker = _MARKER.match(message)
        if marker is not None:
            self._mark(marker[1], marker[2])
            return
        block, rule = self._block(caller), self._rule(message)
        for one in self._blocks[-_AT_ONCE:]:
            one.since += 1
        if rule is not None and (owner := self._owner(rule, message, block, caller)) is not None:
            owner.grow(line)
        elif rule is not None:
            self._begin(rule, line, offset)
        elif block is not None and not block.is_over(message, caller):
            block.grow(line)
            block.end(message)
        else:
            self._remember(block, line, offset)

    def _block(self, caller: str | None) -> _Block | None:
        """The open splat that a line of *caller* continues: its own, else the last."""
        found = [block for block in self._blocks[-_AT_ONCE:] if block.open]
        own = [block for block in found if block.caller == caller]
        return next(iter(reversed(own or found)), None)

    def _rule(self, message: str) -> Rule | None:
        rule, headless = self._policy.match(message), self._policy.headless
        if rule is not None or self._dropped is None or not self.settled:
            return rule
        self._since_drop += 1
        if self._since_drop > _SHORTLY:
            self._dropped = None
            return None
        return headless if headless.pattern.match(message) else None

    def _mark(self, word: str, case: str) -> None:
        for block in self._blocks[-_AT_ONCE:]:
            block.open = False
        self._dropped = None
        self._before.clear()
        if word == kmsg.BEGIN:
            self.case = case
        else:
            self.case, self.after = None, case

    def _owner(self, rule: Rule, message: str, block: _Block | None, caller: str | None) -> _Block | None:
        """The splat that *message* belongs to, although it could start one."""
        if block is not None and block.caller == caller and block.rule.kind in (rule.kind, "panic"):
            return block
        shortly = [one for one in self._blocks[-_AT_ONCE:] if one.open or one.since <= _SHORTLY]
        for one in sorted(reversed(shortly), key=lambda one: one.caller != caller):
            if self._policy.is_consequence(message, one.rule.kind):
                one.splat = dataclasses.replace(one.splat, fatal=True)
                one.open = True
                return one
        return None

    def _begin(self, rule: Rule, line: str, offset: int) -> None:
        caller = split(line)[0]
        for one in self._blocks[-_AT_ONCE:]:
            one.open = one.open and caller is not None and one.caller not in (None, caller)
        if rule is self._policy.headless and self._dropped is not None:
            before = [self._dropped]
        else:
            before = self._heading(caller)
        self._before.clear()
        self._dropped = None
        splat = Splat(
            kind=rule.kind,
            title="",
            lines=(),
            offset=before[0][0] if before else offset,
            fatal=rule.fatal,
            case=self.case,
            after=self.after,
        )
        block = _Block(rule, splat, caller, [*(text for _, text in before), line])
        block.open = rule.end is not None
        self._blocks.append(block)

    def _heading(self, caller: str | None) -> list[tuple[int, str]]:
        """Return the lines before a splat's first that belong to it: `cut here`, and its kind."""
        mine = [(at, text) for at, text in self._before if split(text)[0] == caller]
        messages = [split(text)[1] for _, text in mine]
        cut = next((n for n, message in enumerate(messages) if message.startswith(CUT_HERE)), len(mine))
        # BUG() prints `cut here` after the line that names the kind, WARN() before it.
        if cut and self._policy.messages.match(messages[cut - 1]):
            cut -= 1
        return mine[cut:]

    def _remember(self, block: _Block | None, line: str, offset: int) -> None:
        if block is not None:
            block.open = False
        self._before = [*self._before, (offset, line)][-_BEFORE:]
