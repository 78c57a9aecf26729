# SPDX-License-Identifier: GPL-2.0-only
"""CI files: valid by the services' own schemas, and about what was asked for."""

from __future__ import annotations

import datetime
import itertools
import re
import sys
from pathlib import Path

import pytest

from harness.base import process, yamlfile
from harness.base.errors import UsageError
from harness.cli.moment import parse_moment
from harness.kernel.arch import ARCHES
from harness.matrix import load_matrix
from harness.matrix.recipes import SERVICES, recipe


@pytest.mark.parametrize("service", SERVICES)
def test_recipe_is_valid(service: str, tmp_path: Path) -> None:
    """check-jsonschema ships the schemas of both."""
    path = tmp_path / f"{service}.yml"
    path.write_text(recipe(service, load_matrix("nightly"), ["--tree", "debian:7.3"], 8))
    schema = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}[service]
    words = ["--builtin-schema", schema, "--data-transform", "gitlab-ci"][: 4 if service == "gitlab" else 2]
    done = process.run([sys.executable, "-m", "check_jsonschema", *words, path])
    assert done.ok, done.stdout + done.stderr
    yamlfile.load(path)
    text = path.read_text()
    assert "matrix nightly --tree debian:7.3" in text
    assert "junit.xml" in text


@pytest.mark.parametrize("service", SERVICES)
def test_toolchains_are_installed_first(service: str) -> None:
    text = recipe(service, load_matrix("nightly"), [], 4)
    foreign = next(arch.name for arch in ARCHES.values() if arch.label)
    installed = text.index(f"vfio-harness doctor --toolchain llvm --arch {foreign} --fix --quiet")
    assert text.index("make setup") < installed < text.index("vfio-harness matrix nightly", 200)
    assert "doctor" not in recipe(service, load_matrix("smoke"), [], 1)


def test_github_has_every_shard() -> None:
    assert "shard: [1, 2, 3]" in recipe("github", load_matrix("nightly"), [], 3)


@pytest.mark.parametrize("service", SERVICES)
def test_history_is_kept_whatever_the_night_came_to(service: str, tmp_path: Path) -> None:
    """The history is kept also when a run fails."""
    text = recipe(service, load_matrix("nightly"), [], 4)
    kept = text.count("runs/history.sqlite")
    if service == "gitlab":
        assert kept == 1
        assert "when: always" in text[text.index("cache:") : text.index("before_script:")]
        return
    restore, save = text.index("actions/cache/restore@"), text.index("actions/cache/save@")
    assert kept == 2
    assert "actions/cache@" not in text
    assert "if: always()" in text[save - 40 : save]
    assert restore < text.index("vfio-harness matrix nightly", 200) < text.index("gc --max-size") < save
    keys = re.findall(r"  key: (.*)", text)
    assert len(keys) == 2
    assert keys[0] == keys[1]
    (prefix,) = re.findall(r"restore-keys: (.*)", text)
    assert keys[0].startswith(prefix)


@pytest.mark.parametrize("service", SERVICES)
def test_a_run_ends_before_its_job(service: str) -> None:
    """The default deadline is valid and shorter than the job's time limit."""
    text = recipe(service, load_matrix("nightly"), [], 4)
    now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    (deadline,) = re.findall(r"--junit-xml junit.xml --deadline (\S+)", text)
    patterns = {
        "github": [r"timeout-minutes: (.*)"],
        "gitlab": [r"SCRIPT_TIMEOUT: (.*)", r"\n  timeout: (.*)"],
    }
    found = [re.findall(pattern, text)[0] for pattern in patterns[service]]
    spans = [f"{word}m" if word.isdigit() else word for word in found]
    moments = [parse_moment(word, now) for word in (deadline, *spans)]
    assert all(late - soon >= datetime.timedelta(minutes=15) for soon, late in itertools.pairwise(moments))


@pytest.mark.parametrize("service", SERVICES)
def test_a_deadline_of_the_users_own_is_the_only_one(service: str) -> None:
    text = recipe(service, load_matrix("nightly"), ["--deadline", "1h"], 4)
    assert re.findall(r"^ .*--deadline (\S+)", text, re.MULTILINE) == ["1h"]


ACCEPTING = {"github": "ACCEPT", "gitlab": "VFIO_HARNESS_ACCEPT"}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("reason", ["", 'it "is"  $(meant); *'])
def test_lost_coverage_can_be_accepted(service: str, reason: str, tmp_path: Path) -> None:
    """--accept of a manual run is quoted as one word; a scheduled run has none."""
    text = recipe(service, load_matrix("nightly"), [], 2)
    (words,) = re.findall(r"\$\{\w*ACCEPT:\+.*", text)
    script = f"printf '<%s>' {words}"
    done = process.run(["sh", "-ec", script], env={ACCEPTING[service]: reason}, cwd=tmp_path)
    assert done.stdout == (f"<--accept><{reason}>" if reason else "<>")
    asked = {"github": "workflow_dispatch:\n    inputs:\n      accept:", "gitlab": 'value: ""'}
    assert asked[service] in text


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("shards", [1, 3, 8])
def test_caches_of_all_shards_fit(service: str, shards: int) -> None:
    """The cache of all shards fits into GitHub's 10 GB."""
    (size,) = re.findall(
        r"gc --max-size (\d+)M --no-snapshots --spare 0", recipe(service, load_matrix("nightly"), [], shards)
    )
    assert 7 * 1024 < int(size) * shards <= 9 * 1024


def test_too_many_shards() -> None:
    with pytest.raises(UsageError, match="has 3 jobs, too few for 4 shards"):
        recipe("gitlab", load_matrix("smoke"), [], 4)
