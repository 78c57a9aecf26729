# SPDX-License-Identifier: GPL-2.0-only
"""How figures are told; the figures themselves are measured on real VMs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from harness.base.errors import UsageError
from tools.bench import Bench, Figure, compare, in_turn
from tools.bench.__main__ import MEASURES, command

PLAIN = Figure(name="plain", unit="s", samples=(4.0, 2.0, 9.0))
OURS = Figure(name="ours", unit="s", samples=(1.0, 2.0, 3.0), baseline="plain", target=0.45)
ALONE = Figure(name="alone", unit="CPU s", samples=(0.5,), target=0.3)


def test_a_ratio_is_one_of_medians() -> None:
    plain, ours = compare([PLAIN, OURS])
    assert (plain.ratio, plain.kept) == (None, None)
    assert ours.ratio == 0.5
    assert ours.figure.spread == 2.0


@pytest.mark.parametrize(
    ("figure", "target", "kept"),
    [(OURS, 0.5, True), (OURS, 0.49, False), (ALONE, 0.5, True), (ALONE, 0.3, False)],
)
def test_a_target_is_a_ratio_or_a_value(figure: Figure, target: float, kept: bool) -> None:
    """A figure with a baseline is held to a ratio, one that stands alone to a value."""
    aimed = Figure(
        name=figure.name, unit="s", samples=figure.samples, baseline=figure.baseline, target=target
    )
    assert compare([PLAIN, aimed])[1].kept is kept


def test_json_tells_it_all() -> None:
    told = json.loads(json.dumps(compare([PLAIN, OURS])[1].to_json()))
    assert told["median"] == 2.0
    assert told["ratio"] == 0.5
    assert told["kept"] is False
    assert told["samples"] == [1.0, 2.0, 3.0]


def test_samples_are_taken_in_turn() -> None:
    """A host that grows slower slows the baseline too."""
    order: list[str] = []

    def sample(name: str, value: float) -> float:
        order.append(name)
        return value

    taken = in_turn({"a": lambda: sample("a", 1.0), "b": lambda: sample("b", 2.0)}, 2)
    assert order == ["a", "b", "a", "b"]
    assert taken == {"a": (1.0, 1.0), "b": (2.0, 2.0)}


def test_the_verb_knows_every_measure() -> None:
    """The names are spelt twice, so that --help need not import what measures."""
    bench = Bench(job=None, topology="edu", tree="x", repeat=1)  # type: ignore[arg-type]
    assert tuple(bench.measures()) == MEASURES


def test_a_wrong_measure_is_named() -> None:
    done = CliRunner().invoke(command, ["--only", "bot"])
    assert done.exit_code == 2
    assert "'bot'" in done.output


def test_everything_and_something_is_refused() -> None:
    """What would be left out of everything is not to be guessed."""
    done = CliRunner().invoke(command, ["--all", "--only", "boot"])
    assert isinstance(done.exception, UsageError)
    assert "--all measures everything, --only does not" in str(done.exception)
