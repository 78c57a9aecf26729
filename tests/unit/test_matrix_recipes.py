# SPDX-License-Identifier: GPL-2.0-only
"""CI files: valid by the services' own schemas, and about what was asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import process, yamlfile
from harness.errors import UsageError
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


def test_github_has_every_shard() -> None:
    assert "shard: [1, 2, 3]" in recipe("github", load_matrix("nightly"), [], 3)


def test_too_many_shards() -> None:
    with pytest.raises(UsageError, match="has 3 jobs, too few for 4 shards"):
        recipe("gitlab", load_matrix("smoke"), [], 4)
