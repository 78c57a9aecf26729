# SPDX-License-Identifier: GPL-2.0-only
"""The splat of a Result with the source lines that the Run has found for its addresses."""

from __future__ import annotations

from collections.abc import Mapping

from harness.base.places import Place
from harness.machine.addresses import with_places
from harness.results.model import Result, Run


def places_of(run: Run, result: Result) -> Mapping[str, Place]:
    """Return the places of the kernel of *result*, by address; empty where none were sought."""
    kernel = next((job.kernel for job in run.jobs if job.name == result.job), "")
    return run.places.get(kernel, {})


def decoded_splat(run: Run, result: Result) -> str:
    """Return the splat of *result* with file and line at each function."""
    places = places_of(run, result)
    return with_places(result.splat, places) if places and result.splat else result.splat
