# SPDX-License-Identifier: GPL-2.0-only
"""CI files that run a matrix, for the checkout of this project they are put into."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import jinja2

from harness.errors import UsageError
from harness.matrix.definition import Matrix

SERVICES = ("github", "gitlab")
"""CI services a recipe can be made for: GitHub Actions and GitLab CI/CD."""

_DEADLINES = {"github": "5h", "gitlab": "2h30m"}
"""When a run ends by itself, so that the rest of its job's time (see the templates) is for what it leaves: a
job that is out of time leaves nothing.  GitHub gives one 6 hours, GitLab's own runners 3."""

_CACHE_MIB = 8 * 1024
"""What all shards together may keep: GitHub gives a repository 10 GB of cache and then drops the oldest."""


def recipe(service: str, matrix: Matrix, options: Sequence[str], shards: int) -> str:
    """The file for *service* that runs *matrix*, with more *options* of the verb, on *shards* machines.

    Raises UsageError where there are fewer jobs than shards.
    """
    if shards > len(matrix.entries):
        raise UsageError(
            f"the matrix {matrix.name!r} has {len(matrix.entries)} jobs, too few for {shards} shards",
            hint="give a smaller --shards",
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.matrix"), undefined=jinja2.StrictUndefined, autoescape=False
    )
    template = environment.get_template(f"{service}.yml.j2")
    return template.render(
        matrix=matrix,
        words=shlex.join([matrix.name, *options]),
        deadline="" if "--deadline" in options else _DEADLINES[service],
        shards=shards,
        key=f"vfio-harness-{matrix.name}",
        budget=f"{_CACHE_MIB // shards}M",
    )
