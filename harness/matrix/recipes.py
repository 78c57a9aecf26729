# SPDX-License-Identifier: GPL-2.0-only
"""CI files that run a matrix in a checkout of this project."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import jinja2

from harness.base.errors import UsageError
from harness.matrix.definition import Matrix
from harness.session import names
from harness.session.wishes import DEFAULT_TOOLCHAIN

SERVICES = ("github", "gitlab")
"""CI services: GitHub Actions and GitLab CI/CD."""

_DEADLINES = {"github": "5h", "gitlab": "2h30m"}
"""The deadline of a run, which leaves time to upload its results: a job that times out uploads nothing.
A job on GitHub has 6 hours, one on GitLab's own runners 3."""

_CACHE_MIB = 8 * 1024
"""Cache of all shards together: GitHub gives a repository 10 GB and then drops the oldest."""


def recipe(service: str, matrix: Matrix, options: Sequence[str], shards: int) -> str:
    """Return the file for *service* that runs *matrix*, with *options* of the verb, on *shards* machines.

    Raises UsageError when there are fewer jobs than shards.
    """
    if shards > len(matrix.entries):
        raise UsageError(
            f"the matrix {matrix.name!r} has {len(matrix.entries)} jobs, too few for {shards} shards",
            hint="use fewer --shards",
        )
    toolchains = dict.fromkeys(
        entry.toolchain for entry in matrix.entries if entry.toolchain != DEFAULT_TOOLCHAIN
    )
    arches = dict.fromkeys(entry.arch for entry in matrix.entries if entry.arch != names.default_arch())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.matrix"), undefined=jinja2.StrictUndefined, autoescape=False
    )
    template = environment.get_template(f"{service}.yml.j2")
    return template.render(
        matrix=matrix,
        words=shlex.join([matrix.name, *options]),
        setup=shlex.join(
            [
                *(word for name in toolchains for word in ("--toolchain", name)),
                *(word for name in arches for word in ("--arch", name)),
            ]
        ),
        deadline="" if "--deadline" in options else _DEADLINES[service],
        shards=shards,
        key=f"vfio-harness-{matrix.name}",
        budget=f"{_CACHE_MIB // shards}M",
    )
