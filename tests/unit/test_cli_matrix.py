# SPDX-License-Identifier: GPL-2.0-only
"""The verb matrix: what its options come to, and which go together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result
from history_runs import make_run

from harness import yamlfile
from harness.cli import matrix_verb
from harness.cli.matrix_verb import command
from harness.errors import UsageError
from harness.matrix.recipes import SERVICES
from harness.results import RunStore, State
from harness.session.planning import seat_of
from harness.session.wishes import Conduct, JobWish

SAID = (
    "--case probes/get_pa/* --memory 4096 --root virtme --seed 7 --deadline 06:30 --no-confirm -n 3"
    " --tree debian:7.3 --tree ../linux --jobs 5 --accel tcg --no-snapshots --cpus 4 --isolation case"
    " --no-compare -v"
)


def matrix(*words: str) -> Result:
    return CliRunner().invoke(command, words)


@pytest.mark.parametrize("service", SERVICES)
def test_a_ci_file_says_every_option_again(service: str, tmp_path: Path) -> None:
    """Those of the command line, and no default; a path stays what it was."""
    done = matrix("nightly", "--emit", service, "--shards", "2", *SAID.split())
    assert done.exit_code == 0, done.exception
    path = tmp_path / "ci.yml"
    path.write_text(done.stdout)
    yamlfile.load(path)
    (line,) = re.findall(r"bin/vfio-harness matrix (.*)", done.stdout)
    words = line.replace("'", "").split()
    assert words[0] == "nightly"
    assert sorted(words[1:]) == sorted(SAID.split())
    assert line.index("--tree debian:7.3") < line.index("--tree ../linux")
    assert f"--emit {service} --shards 2" in done.stdout


def test_what_is_emitted_is_quoted(tmp_path: Path) -> None:
    """For the runner's shell, and for YAML."""
    file = tmp_path / "my: matrix # 1.yaml"
    text = "matrices:\n  m: {summary: x, variants: [cdev], topologies: [edu], suites: [probes]}\n"
    file.write_text(text)
    for service in SERVICES:
        done = matrix("m", "--file", str(file), "--emit", service, "--shards", "1")
        assert f"matrix m --file '{file}'" in done.stdout
        assert f"{file} must be there where the CI file is run" in done.stderr
        path = tmp_path / "ci.yml"
        path.write_text(done.stdout)
        yamlfile.load(path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--emit gitlab --plan", "in which --plan has no place"),
        ("--emit gitlab --json", "in which --json has no place"),
        ("--emit gitlab --shard 1/2", "in which --shard has no place"),
        ("--emit gitlab --junit-xml x.xml", "in which --junit-xml has no place"),
        ("--emit gitlab --case probes/nothing/here", "no case matches"),
        ("--emit gitlab --accept meant", "in which --accept has no place"),
        ("--plan --accept meant", "--plan runs nothing"),
        ("--accept=", "--accept wants a reason"),
        ("--shards 4", "--shards is for --emit"),
    ],
)
def test_what_does_not_go_together(words: str, told: str) -> None:
    done = matrix("nightly", *words.split())
    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


def test_help_says_what_a_plan_may_cost() -> None:
    """A source of hundreds of megabytes is something."""
    told = " ".join(matrix("--help").stdout.split())
    assert "builds no kernel and boots nothing, but downloads and unpacks a source that is not here" in told


def conduct_of(*words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[JobWish], Conduct]:
    """What the verb makes a session of."""
    made: list[tuple[list[JobWish], Conduct]] = []

    def session(wishes: list[JobWish], conduct: Conduct, **_: object) -> None:
        made.append((wishes, conduct))
        raise UsageError("this is enough")

    monkeypatch.setattr(matrix_verb, "Session", session)
    matrix(*words)
    return made[0]


def test_a_shard_knows_what_the_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the seats that results give, so that a job which moved there is not missed here."""
    words = ("nightly", "--tree", "debian:7.3")
    whole, conduct = conduct_of(*words, monkeypatch=monkeypatch)
    assert conduct.elsewhere == ()
    own, conduct = conduct_of(*words, "--shard", "1/2", monkeypatch=monkeypatch)
    assert sorted([*conduct.elsewhere, *map(seat_of, own)]) == sorted(map(seat_of, whole))
    assert {"debian:7.3 blocked-group", "debian:7.3 group-cdev edu-igb"} <= set(map(seat_of, whole))


class _Preparing:
    """A session that is still at its preparations when something else happens."""

    meanwhile: ClassVar[Callable[[], object]]

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def check(self) -> None:
        pass

    def prepare(self, *, build: bool) -> None:
        type(self).meanwhile()

    def build(self) -> None:
        pass

    def test(self, *_: object) -> int:
        return 0


def test_one_goes_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sources are fetched and its kernels built before its results are touched."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    directory = make_run(tmp_path, 1, state=State.INTERRUPTED)
    monkeypatch.setattr(matrix_verb, "load_wishes", lambda directory: ((), Conduct()))
    monkeypatch.setattr(matrix_verb, "Session", _Preparing)
    seconds: list[Result] = []
    monkeypatch.setattr(_Preparing, "meanwhile", lambda: seconds.append(matrix("--resume", "run01")), False)
    first = matrix("--resume", "run01")
    assert (first.exception, len(seconds)) == (None, 1)
    assert str(seconds[0].exception) == "run run01 is still going on (wait for it, or stop it)"
    monkeypatch.setattr(_Preparing, "meanwhile", lambda: None, False)
    assert matrix("--resume", "run01").exception is None
    with RunStore.open(directory):
        assert "still going on" in str(matrix("--resume", "run01").exception)


def test_a_run_that_goes_on_is_not_emitted() -> None:
    done = matrix("--resume", "x", "--emit", "gitlab")
    assert "--resume goes on with what was asked for then: leave --emit out" in str(done.exception)
