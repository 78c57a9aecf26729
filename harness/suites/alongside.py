# SPDX-License-Identifier: GPL-2.0-only
"""Cases that run alongside one another in one VM: several agents, each on an SSH channel of its own.

Which cases may is theirs to say (guest/case.py); which do, and how many at once, is decided by the Lab and
its JobVM (harness.plugin).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from guest.case import Case
from harness.errors import LostGuest
from harness.ktap import KtapReport, Status
from harness.suites.agent import Agent


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What one case came to."""

    case: Case
    report: KtapReport | None
    """None when its agent was lost, or did not end it in its time."""
    spoilt: str
    """Why the VM cannot be used any further; empty while it can."""
    error: LostGuest | TimeoutError | None
    """Why there is no report."""
    raw: tuple[str, ...]
    seconds: float


def run_alongside(
    dial: Callable[[], Agent],
    cases: Sequence[Case],
    *,
    at_once: int,
    seed: int,
    factor: float,
    enough: Callable[[], object],
) -> tuple[Answer, ...]:
    """Run *cases*, *at_once* of them at a time, each with its own time limit times *factor*.

    *dial* makes an Agent.  Returns the answers as they came.  A case has none that no agent was left for, or
    that would have begun in a spoilt VM or after *enough* had come true.
    """
    waiting = collections.deque(cases)
    answers: list[Answer] = []

    def work() -> None:
        with contextlib.suppress(LostGuest), contextlib.closing(dial()) as agent:
            for case in _taken(waiting):
                if enough():
                    return
                answer = _ask(agent, case, seed, factor)
                answers.append(answer)
                if answer.spoilt:
                    waiting.clear()

    pool = ThreadPoolExecutor(min(at_once, len(cases)))
    try:
        for done in [pool.submit(work) for _ in range(min(at_once, len(cases)))]:
            done.result()
    finally:
        # Whoever interrupts us closes the connection, which ends what the agents still do.
        pool.shutdown(wait=False, cancel_futures=True)
    return tuple(answers)


def _taken(waiting: collections.deque[Case]) -> Iterator[Case]:
    """One of *waiting* after the other, shared with whoever else takes from it."""
    while True:
        try:
            case = waiting.popleft()
        except IndexError:
            return
        yield case


def _ask(agent: Agent, case: Case, seed: int, factor: float) -> Answer:
    began = time.monotonic()
    raw: list[str] = []
    report: KtapReport | None = None
    failed: LostGuest | TimeoutError | None = None
    try:
        report, spoilt = agent.run(case.address, case.timeout * factor, seed, raw)
        if report.status is Status.TIMEOUT:
            spoilt = spoilt or "a case hung in it"
    except (LostGuest, TimeoutError) as error:
        failed, spoilt = error, "the work is still running in it"
    return Answer(case, report, spoilt, failed, tuple(raw), time.monotonic() - began)
