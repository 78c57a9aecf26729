# SPDX-License-Identifier: GPL-2.0-only
"""Summarise a splat: its title, what is the same each time it occurs, and the functions to blame.

Pure; the lists of words and functions are in splats.yaml.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from harness.kernel.arch import ARCHES
from harness.machine.splatpolicy import CUT_HERE, TRACE_END, Policy, Rule, is_drop, policy, split

COUNTER = re.compile(
    "|".join(
        [*(arch.program_counter for arch in ARCHES.values()), r"epc :", r"PC is at", r"NIP \[[0-9a-f]+\]"]
    )
)
"""What stands before the function in a register dump; also of architectures whose logs somebody reads in."""

# `? ` before a function: the unwinder found its address on the stack, so it may not be a caller.
_FRAME = re.compile(
    rf"(?:{COUNTER.pattern})? ?(?:\[<?[0-9a-f]{{8,16}}>?\] *)*\(?(?P<name>[A-Za-z_][\w.]*)"
    r"(?:\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?|\)? from (?:\[<[0-9a-f]+>\] \()?[\w.]+[+ ])"
)
_FRAME_OF_LINE = re.compile(r" (?P<name>[A-Za-z_]\w*) [\w./-]+:\d+(?: \[inline\])?$")
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm)\b[\w.]*")
_TRACE = re.compile(r"\s*(Call Trace|Call trace|Backtrace):|NMI backtrace for ")
_TRACE_END = re.compile(TRACE_END)
_OUTERMOST = 3
"""How many outermost functions identify the work that does not end."""

_NAMED = 2
"""How many functions outside the stack trace count: in lockdep reports, where each lock was taken."""

_INTERRUPT = re.compile(
    r"_*do_softirq\w*|_stext|handle_softirqs|run_ksoftirqd|_*irq_exit\w*|asm_(sysvec|common|call_)\w*|common_interrupt"
    r"|(smp_)?apic_timer_interrupt|do_IRQ|handle_irq|ret_from_intr|retint_\w+|gic_handle_irq|__irq_\w+"
    r"|el1h?_(\d+_)?i(rq|nterrupt)\w*|call_on_irq_stack|do_interrupt_handler"
)
"""The functions below these in a stack trace were only interrupted, by an interrupt or a softirq."""

_ENTRY = re.compile(rf"{_INTERRUPT.pattern}|asm_exc\w*|el1h?_\w+|__bad_stack")
"""The functions above these in a stack trace report; the one below had an exception or was interrupted."""

_SCHEDULER = re.compile(r"_*schedule|preempt_schedule\w*")
"""The functions above these in a stack trace are the scheduler's."""

_BODY = re.compile(r"Modules linked in:|CPU: |Kernel panic|---\[")
"""What follows the message of a WARN."""

_AT = re.compile(rf"(?: (?:at|in)(?: \S+:\d+)?|(?:{COUNTER.pattern})\S*) ([A-Za-z_][\w.]*)\+0x")
# Depends on the compiler, the boot and the moment: offsets, addresses, line numbers.
_OFFSET = re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")
_NUMBER = re.compile(
    r"\b[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d\b|\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b|\(____ptrval____\)|\d+"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A splat in short."""

    title: str
    """For people: the kind of splat, and the function to blame; empty without a splat."""
    cause: str
    """The kind of splat, without the parts that differ each time it occurs."""
    functions: tuple[str, ...]
    """The functions to blame, innermost first; for a stall the outermost ones, because the others vary."""
    counter: str = ""
    """The line with the program counter, where it has one."""
    parts: tuple[tuple[str, ...], ...] = ()
    """What happened, for the kinds of splats that tell it in several parts: a line each, with the lines below
    it that name a lock or a function to blame."""


def explain(lines: Sequence[str], rules: Policy | None = None) -> Account:
    """Return the Account of one splat's *lines*, which may lack their time stamps."""
    rules = rules or policy()
    spoken = [(caller or "", said.rstrip()) for caller, said in map(split, lines)]
    head, rule = _head(spoken, rules)
    if head < 0:
        return Account(title="", cause="", functions=())
    caller, first = spoken[head]
    said, known = _said(spoken, head, rules)
    everybody = not caller or (rule is not None and rule.interrupted)
    kept = [message for who, message in spoken[head:] if everybody or who in ("", caller)]
    functions = _functions(kept, rule, rules)
    title = (
        f"a splat whose head was lost: {first}"
        if rule is rules.headless
        else (said or first).strip().rstrip(":")
    )
    if functions and functions[0] not in title:
        title = f"{title.rstrip('.')}, in {functions[0]}"
    if rule is not None and rule.interrupted:
        functions = _outermost(functions, rules)
        if functions and functions[0] not in title:
            title = f"{title.rstrip('.')}, for {functions[0]}"
    if earlier := _before(kept, rule, rules):
        title = f"{title.rstrip('.')}, earlier in {earlier}"
    cause = "\n".join(_lasting(one, rules) for one in (said if known else "", first) if one)
    # One without a function, below a stack trace, is that of the system call in user space.
    above = itertools.takewhile(lambda message: not _TRACE.match(message), kept)
    counters = (one for one in itertools.chain(above, filter(function_in, kept)) if COUNTER.match(one))
    counter = next(counters, "")
    parts = tuple(_parts(kept, rule, rules))
    return Account(title=title, cause=cause, functions=functions, counter=counter, parts=parts)


def function_in(message: str) -> str:
    """Return the function that a line of a stack trace or a program counter names; empty for other lines."""
    frame = _FRAME.match(message) or _FRAME_OF_LINE.match(message)
    return _SUFFIX.sub("", frame["name"]) if frame else ""


def waits_for_emulator(text: str) -> str:
    """Return the function in the stack traces of *text* in which the guest waits for QEMU; empty for none."""
    names = (function_in(split(line)[1].strip()) for line in text.splitlines())
    return next((name for name in names if name and policy().emulator.fullmatch(name)), "")


def _head(spoken: Sequence[tuple[str, str]], rules: Policy) -> tuple[int, Rule | None]:
    """Return the index of the line that starts the splat, -1 for none, and its rule."""
    words = [number for number, (_, said) in enumerate(spoken) if said.strip(" -=") and CUT_HERE not in said]
    if words and is_drop(spoken[words[0]][1]):
        return words[0], rules.headless
    for number in words:
        if rule := rules.match(spoken[number][1]):
            return number, rule
    return (words[0] if words else -1), None


def _said(spoken: Sequence[tuple[str, str]], head: int, rules: Policy) -> tuple[str, bool]:
    """Return the line that says what happened, empty for none, and whether its words are known.

    It stands before the first line.  A WARN has its message there or, in newer kernels on some architectures,
    after it (kernel/panic.c __warn()); a line there of the same caller is the message, whatever its words.
    """
    caller, first = spoken[head]
    near = [*reversed(spoken[:head])]
    is_warn = first.startswith("WARNING: ") and _AT.search(first) is not None
    if is_warn:
        near += itertools.takewhile(lambda line: not _BODY.match(line[1]), spoken[head + 1 :])
    known = next((said for _, said in near if rules.messages.match(said)), "")
    own = (said for who, said in near if caller and who == caller and said.strip() and CUT_HERE not in said)
    return known or (next(own, "") if is_warn else ""), bool(known)


def _lasting(said: str, rules: Policy) -> str:
    return " ".join(_NUMBER.sub("N", _SUFFIX.sub("", _OFFSET.sub("", rules.moment.sub("", said)))).split())


@dataclasses.dataclass(slots=True)
class _Trace:
    """One stack trace, after its registers."""

    begun: bool = False
    """Its heading was read."""
    ended: bool = False
    has_counter: bool = False
    """Registers came first, so that it shows no interrupt."""
    names: list[str] = dataclasses.field(default_factory=list)


def _functions(messages: Sequence[str], rule: Rule | None, rules: Policy) -> tuple[str, ...]:
    interrupted = rule is not None and rule.interrupted
    head = _AT.findall(messages[0])
    traces = [
        _interrupted(one, rules) if interrupted else _own(one, head) for one in _traces(messages, rules)
    ]
    traces = [names for names in traces if names]
    matches = (rule.named.match(message) for message in messages) if rule and rule.named else ()
    named = [match["name"] for match in matches if match]
    named = [name for name in dict.fromkeys(named) if not rules.machinery.fullmatch(name)][:_NAMED]
    for names in traces:
        if blamed := _blamed(names, rules):
            return tuple(dict.fromkeys([*named, *blamed]))
    return tuple(dict.fromkeys([*named, *head, *(traces[0] if traces else ())]))


def _blamed(names: Sequence[str], rules: Policy) -> list[str]:
    return [name for name in names if not rules.machinery.fullmatch(name)]


def _before(messages: Sequence[str], rule: Rule | None, rules: Policy) -> str:
    """Return the function that took the lock, or freed the memory, earlier; empty for most kinds."""
    if rule is None or rule.earlier is None:
        return ""
    earlier = rule.earlier
    since = itertools.dropwhile(lambda message: not earlier.match(message), messages)
    names = (function_in(message.lstrip()) for message in since)
    return next((name for name in names if name and not rules.machinery.fullmatch(name)), "")


def _parts(messages: Sequence[str], rule: Rule | None, rules: Policy) -> Iterator[tuple[str, ...]]:
    """Yield each part of a splat, as Account.parts."""
    if rule is None or rule.parts is None:
        return
    part: list[str] = []
    below = False
    for message in messages:
        function = function_in(message.lstrip())
        if rule.parts.match(message):
            yield from (tuple(part),) if part else ()
            part = [" ".join(message.split())]
        elif below and message.startswith(" ") and not function:
            part[0] += message.rstrip()
        elif not message.strip(" =") and len(part) > 1:
            yield tuple(part)
            part = []
        elif part and (
            (rule.named and rule.named.match(message))
            or (function and not message.lstrip().startswith("?") and not rules.machinery.fullmatch(function))
        ):
            part.append(message.strip())
        below = rule.parts.match(message) is not None
    yield from (tuple(part),) if part else ()


def _traces(messages: Sequence[str], rules: Policy) -> Iterator[_Trace]:
    trace = _Trace(names=[_SUFFIX.sub("", name) for name in _AT.findall(messages[0])])
    for message in _without_asides(messages[1:], rules):
        if _TRACE.match(message):
            if trace.begun:
                yield trace
                trace = _Trace()
            trace.begun = not message.startswith("NMI")
        elif _TRACE_END.match(message):
            trace.ended = True
        elif function := function_in(message):
            if trace.ended:
                yield trace
                trace = _Trace()
            trace.has_counter |= COUNTER.match(message) is not None and not trace.begun
            trace.names.append(function)
    yield trace


def _without_asides(messages: Sequence[str], rules: Policy) -> Iterator[str]:
    aside = None
    for message in messages:
        if aside is not None and aside.until.match(message):
            aside = None
        begun = next((one for one in rules.asides if one.begin.match(message)), None)
        aside = begun or aside
        if aside is None:
            yield message


def _own(trace: _Trace, head: Sequence[str]) -> list[str]:
    """Return the functions of *trace* from the one in the first line on, without what was interrupted."""
    names = trace.names
    start = next((n for n, name in enumerate(names) if n and name in head), 0)
    end = next((n for n, name in enumerate(names) if n > start and _INTERRUPT.fullmatch(name)), len(names))
    return names[start:end]


def _interrupted(trace: _Trace, rules: Policy) -> list[str]:
    """Return the functions of *trace* that were at work when an interrupt or another CPU printed it."""
    names = trace.names
    if not trace.has_counter:
        entry = next((number for number, name in enumerate(names) if _ENTRY.fullmatch(name)), -1)
        names = list(itertools.dropwhile(_ENTRY.fullmatch, names[entry + 1 :]))
    found = []
    for is_border, group in itertools.groupby(names, key=lambda name: bool(_INTERRUPT.fullmatch(name))):
        work = [] if is_border else list(group)
        asleep = max((n for n, name in enumerate(work) if _SCHEDULER.fullmatch(name)), default=-1)
        if _blamed(work[asleep + 1 :], rules):
            return work[asleep + 1 :]
        found += work
    return found


def _outermost(functions: Sequence[str], rules: Policy) -> tuple[str, ...]:
    """Return the outermost of *functions*, outermost first; then the dispatch of a system call."""
    own = [name for name in reversed(functions) if not rules.dispatch.fullmatch(name)]
    return tuple(dict.fromkeys([*own, *functions]))[:_OUTERMOST]
