# SPDX-License-Identifier: GPL-2.0-only
"""What VMs saw of a commit becomes a verdict: confirmed, settled by majority, or no verdict at all."""

from __future__ import annotations

import pytest

from harness.bisect.model import Aim, Mark, Observation, Sight, hunted_cases, weigh

P, F, M, R = Sight.PASSES, Sight.FAILS, Sight.MISSING, Sight.REFUSED
D, U, N = Sight.DIES, Sight.UNBUILDABLE, Sight.NO_CHANCE


def seen(*sights: Sight) -> list[Observation]:
    return [Observation(sight=sight, why=sight.value) for sight in sights]


@pytest.mark.parametrize(
    ("sights", "verdict"),
    [
        ((), None),
        ((P,), P),
        ((F,), None),
        ((F, F), F),
        ((F, P), None),
        ((F, P, F), F),
        ((F, P, P), P),
        ((U,), U),
        ((M,), M),
        ((R,), R),
        ((D,), D),
        ((N,), None),
        ((N, P), P),
        ((N, F), None),
        ((N, F, F), F),
        ((F, N), None),
        ((F, N, N), N),
        ((N, N), N),
    ],
    ids=lambda value: "-".join(s.name for s in value) if isinstance(value, tuple) else str(value),
)
def test_weighing(sights: tuple[Sight, ...], verdict: Sight | None) -> None:
    """A failure needs a second VM, two that disagree a third; what the host spoilt is never a failure."""
    weighed = weigh(seen(*sights), Aim())
    assert (weighed.sight if weighed else None) is verdict


def test_disagreement_is_flaky_and_says_so() -> None:
    """The majority decides, and the verdict tells how narrow it was."""
    weighed = weigh(seen(F, P, F), Aim())
    assert weighed is not None
    assert weighed.flaky
    assert "2 of 3 VMs failed" in weighed.why


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        ("s", None),
        ("ss", None),
        ("sss", F),
        ("su", None),
        ("suu", F),
        ("sp", None),
        ("ssp", P),
        ("spp", P),
        ("uu", F),
        ("usp", N),
    ],
)
def test_another_failure_is_no_proof(kinds: str, verdict: Sight | None) -> None:
    """A failure unlike the (u)sual one counts when no VM passes; among passes it is a flake of its own."""
    failures = {"s": "strange", "u": "usual"}
    made = [Observation(sight=P if k == "p" else F, why=k, failure=failures.get(k, "")) for k in kinds]
    weighed = weigh(made, Aim(), usual={"usual"})
    assert (weighed.sight if weighed else None) is verdict


def test_repeat_that_cannot_decide_decides_nothing() -> None:
    """An even number of VMs can end in a draw: then the commit is left out."""
    weighed = weigh(seen(F, P), Aim(repeat=2))
    assert weighed is not None
    assert (weighed.sight, weighed.flaky) == (N, True)
    assert weigh(seen(F, P, F, P), Aim(repeat=5)) is None


def test_wary_hunt_asks_twice_for_a_pass() -> None:
    """Once VMs have disagreed, one pass is no proof any more."""
    assert weigh(seen(P), Aim(), wary=True) is None
    assert weigh(seen(P, P), Aim(), wary=True) is not None


@pytest.mark.parametrize(
    ("aim", "sight", "mark"),
    [
        (Aim(), P, Mark.OLD),
        (Aim(), F, Mark.NEW),
        (Aim(), M, Mark.SKIP),
        (Aim(), D, Mark.SKIP),
        (Aim(), U, Mark.SKIP),
        (Aim(), N, Mark.SKIP),
        (Aim(boot=True), D, Mark.NEW),
        (Aim(missing_fails=True), M, Mark.NEW),
        (Aim(missing_fails=True), R, Mark.SKIP),
        (Aim(find_fix=True), P, Mark.NEW),
        (Aim(find_fix=True), F, Mark.OLD),
        (Aim(find_fix=True), M, Mark.SKIP),
        (Aim(find_fix=True, missing_fails=True), M, Mark.OLD),
        (Aim(find_fix=True, boot=True), D, Mark.OLD),
    ],
)
def test_what_git_is_told(aim: Aim, sight: Sight, mark: Mark) -> None:
    """Only what is hunted is bad; what cannot be built, booted or expressed is skipped."""
    assert aim.mark(sight) is mark


def test_dying_is_confirmed_only_when_it_is_hunted() -> None:
    """A kernel that does not boot is skipped at once, unless that is the question."""
    assert weigh(seen(D), Aim(boot=True)) is None
    assert weigh(seen(D, D), Aim(boot=True)) is not None


def observation(sight: Sight, **cases: Sight) -> Observation:
    return Observation(sight=sight, why="", cases=cases)


def test_hunted_is_what_tells_the_ends_apart() -> None:
    """A case that fails at both ends was broken before; one that passes at both is of no interest."""
    good, bad = observation(F, a=P, b=P, c=F), observation(F, a=P, b=F, c=F)
    assert hunted_cases(good, bad) == ("b",)


def test_hunted_where_the_thing_is_not_there() -> None:
    """At an end that has no such variant, or where the case does not apply, all that pass elsewhere count."""
    assert hunted_cases(observation(P, a=P, b=F), observation(M)) == ("a",)
    assert hunted_cases(observation(P, a=P), observation(M, a=M)) == ("a",)
    assert hunted_cases(observation(P, a=P), observation(P, a=P)) == ()
