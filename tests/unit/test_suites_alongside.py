# SPDX-License-Identifier: GPL-2.0-only
"""Cases that run at the same time: each once, each with an answer, whatever becomes of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from guest.case import Case, discover
from harness.errors import LostGuest
from harness.ktap import KtapReport, parse
from harness.suites.agent import Agent
from harness.suites.alongside import Answer, run_alongside

CASES = [one for one in discover() if one.alongside][:6]
PASSED = parse(["KTAP version 1", "1..1", "ok 1 x"])
HUNG = parse(["KTAP version 1", "1..1", "not ok 1 x # TIMEOUT after 1s"])


class FakeAgent:
    """Answers as it is told, in the order in which it is asked."""

    def __init__(self, answer: Callable[[str], tuple[KtapReport, str]]) -> None:
        self._answer = answer
        self.closed = False

    def run(self, case: str, seconds: float, seed: int, raw: list[str]) -> tuple[KtapReport, str]:
        raw.append(f"{case} for {seconds:g} s from seed {seed}")
        return self._answer(case)

    def close(self) -> None:
        self.closed = True


def ask(
    answer: Callable[[str], tuple[KtapReport, str]],
    cases: list[Case] = CASES,
    *,
    at_once: int = 2,
    enough: Callable[[], object] = lambda: False,
) -> dict[str, Answer]:
    agents: list[FakeAgent] = []

    def dial() -> Agent:
        agents.append(FakeAgent(answer))
        return agents[-1]  # type: ignore[return-value]

    answers = run_alongside(dial, cases, at_once=at_once, seed=3, factor=2.0, enough=enough)
    assert all(agent.closed for agent in agents)
    assert len(answers) == len({one.case.address for one in answers})
    return {one.case.address: one for one in answers}


def test_cases_run_at_the_same_time() -> None:
    """Each waits until the other has begun, too: one after the other would never end."""
    both = threading.Barrier(2)

    def answer(case: str) -> tuple[KtapReport, str]:
        both.wait(timeout=20)
        return PASSED, ""

    answers = ask(answer)
    assert set(answers) == {case.address for case in CASES}
    first = answers[CASES[0].address]
    assert first.report is PASSED
    assert first.raw == (f"{CASES[0].address} for {CASES[0].timeout * 2:g} s from seed 3",)


@pytest.mark.parametrize("error", [LostGuest("gone"), TimeoutError("no end")])
def test_lost_agent_costs_the_case_it_ran(error: Exception) -> None:
    """That one is known, and nothing more begins in that VM."""
    unlucky = CASES[0].address

    def answer(case: str) -> tuple[KtapReport, str]:
        if case == unlucky:
            raise error
        return PASSED, ""

    answers = ask(answer, at_once=1)
    assert list(answers) == [unlucky]
    assert (answers[unlucky].report, answers[unlucky].error) == (None, error)
    assert answers[unlucky].spoilt


@pytest.mark.parametrize("end", [(PASSED, "dirty"), (HUNG, "")])
def test_nothing_begins_where_the_machine_is_spoilt(end: tuple[KtapReport, str]) -> None:
    """By no agent, also where it is another that found it out."""

    def answer(case: str) -> tuple[KtapReport, str]:
        if case == CASES[0].address:
            return end
        time.sleep(0.3)
        return PASSED, ""

    answers = ask(answer)
    assert len(answers) <= 3
    assert answers[CASES[0].address].spoilt in ("dirty", "a case hung in it")


def test_nothing_begins_once_it_is_enough() -> None:
    begun: list[str] = []

    def answer(case: str) -> tuple[KtapReport, str]:
        begun.append(case)
        return PASSED, ""

    assert list(ask(answer, at_once=1, enough=lambda: len(begun) == 2)) == begun
    assert len(begun) == 2


def test_agents_that_do_not_start_answer_nothing() -> None:
    def dial() -> Agent:
        raise LostGuest("nothing answers")

    assert run_alongside(dial, CASES, at_once=4, seed=1, factor=1.0, enough=lambda: "") == ()


def test_trouble_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ask(lambda case: (PASSED, str(1 // 0)), at_once=1)
