# SPDX-License-Identifier: GPL-2.0-only
"""The verb matrix: its options, and which exclude each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from history_runs import make_run

from harness.base import yamlfile
from harness.base.errors import UsageError
from harness.cli import matrix_verb
from harness.cli.matrix_verb import command
from harness.matrix.recipes import SERVICES
from harness.results import RunState
from harness.results.store import RunStore
from harness.session.pipeline import Request
from harness.session.planning import cell_of
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
    """It has the options of the command line, no defaults, and unchanged paths."""
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
    """Paths are quoted for the shell and for YAML."""
    file = tmp_path / "my: matrix # 1.yaml"
    text = "matrices:\n  m: {summary: x, variants: [cdev], topologies: [edu], suites: [probes]}\n"
    file.write_text(text)
    for service in SERVICES:
        done = matrix("m", "--file", str(file), "--emit", service, "--shards", "1")
        assert f"matrix m --file '{file}'" in done.stdout
        assert f"{file} must exist where the CI file is run" in done.stderr
        path = tmp_path / "ci.yml"
        path.write_text(done.stdout)
        yamlfile.load(path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--emit gitlab --plan", "--emit prints a CI file for other hosts: leave --plan out"),
        ("--emit gitlab --json", "--emit prints a CI file for other hosts: leave --json out"),
        ("--emit gitlab --shard 1/2", "--emit prints a CI file for other hosts: leave --shard out"),
        ("--emit gitlab --junit-xml x.xml", "--emit prints a CI file for other hosts: leave --junit-xml out"),
        ("--emit gitlab --case probes/nothing/here", "no case matches"),
        ("--emit gitlab --accept meant", "--emit prints a CI file for other hosts: leave --accept out"),
        ("--plan --accept meant", "--plan runs nothing"),
        ("--accept=", "--accept needs a reason"),
        ("--shards 4", "--shards is for --emit"),
    ],
)
def test_what_does_not_go_together(words: str, told: str) -> None:
    done = matrix("nightly", *words.split())
    assert isinstance(done.exception, UsageError)
    assert told in str(done.exception)


def test_help_says_what_a_plan_may_cost() -> None:
    """--plan may download a source."""
    told = " ".join(matrix("--help").stdout.split())
    assert "Builds no kernel and boots nothing, but downloads and unpacks a source that is missing" in told


def conduct_of(*words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[JobWish, ...], Conduct]:
    """What the verb asks for."""
    made: list[Request] = []

    def check(request: Request) -> None:
        made.append(request)
        raise UsageError("this is enough")

    monkeypatch.setattr(matrix_verb, "check", check)
    matrix(*words)
    return made[0].wishes, made[0].conduct


def test_a_shard_knows_what_the_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells of other shards are recorded, so that their jobs are not missing here."""
    words = ("nightly", "--tree", "debian:7.3")
    whole, conduct = conduct_of(*words, monkeypatch=monkeypatch)
    assert conduct.elsewhere == ()
    own, conduct = conduct_of(*words, "--shard", "1/2", monkeypatch=monkeypatch)
    assert sorted([*conduct.elsewhere, *map(cell_of, own)]) == sorted(map(cell_of, whole))
    assert {"debian:7.3 blocked-group", "debian:7.3 group-cdev edu-igb"} <= set(map(cell_of, whole))


def test_one_goes_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second --resume is refused while the first one is at any stage."""
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path))
    directory = make_run(tmp_path, 1, state=RunState.INTERRUPTED)
    monkeypatch.setattr(matrix_verb, "load_wishes", lambda directory: ((), Conduct()))
    seconds: list[Result] = []

    def meanwhile(*_: object, **__: object) -> int:
        seconds.append(matrix("--resume", "run01"))
        return 0

    monkeypatch.setattr(matrix_verb, "_run", meanwhile)
    first = matrix("--resume", "run01")
    assert (first.exception, len(seconds)) == (None, 1)
    assert str(seconds[0].exception) == "run run01 is still going on (wait for it, or stop it)"
    monkeypatch.setattr(matrix_verb, "_run", lambda *_, **__: 0)
    assert matrix("--resume", "run01").exception is None
    with RunStore.open(directory):
        assert "still going on" in str(matrix("--resume", "run01").exception)


def test_a_run_that_goes_on_is_not_emitted() -> None:
    done = matrix("--resume", "x", "--emit", "gitlab")
    assert "--resume uses the options of that run: leave --emit out" in str(done.exception)
