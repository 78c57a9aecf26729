# SPDX-License-Identifier: GPL-2.0-only
"""What is left to do after a run."""

from __future__ import annotations

import dataclasses

from report_sample import RUN, result

from harness.results import Outcome
from harness.session.remaining import done_in


def test_what_had_its_chance_is_done() -> None:
    """A program is done when all of its points had their chance; silence about one is an answer."""
    results = (
        result("probes/get_pa/a", Outcome.PASS, job="j"),
        result("probes/get_pa/b", Outcome.LOST, job="j"),
        result("kselftest:vfio/x/1", Outcome.PASS, job="j"),
        result("kselftest:vfio/x/2", Outcome.ERROR, job="j", reason="vanished: the manifest lists it"),
        result("kselftest:vfio/y/1", Outcome.PASS, job="j"),
        result("kselftest:vfio/y/2", Outcome.NOT_RUN, job="j", reason="not reached: 1 was LOST"),
    )
    done = done_in(dataclasses.replace(RUN, results=results))
    assert done == ("j probes/get_pa/a", "j kselftest:vfio/x")
