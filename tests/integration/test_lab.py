# SPDX-License-Identifier: GPL-2.0-only
"""The lab without pytest: a Job made by the command line and run by another process."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from conftest import TREE

from harness.base import paths, process
from harness.base.deadline import Deadline
from harness.kernel.provide import Kernel
from harness.results import Outcome
from harness.results.store import load

CHILD = """
import json, sys
from pathlib import Path
from harness.lab import execute
from harness.lab.records import records
from harness.lab.settings import Settings
from harness.plan import load_plan
from harness.suites.catalogue import to_do

plan = load_plan(Path(sys.argv[1]))
(job,) = plan.jobs
found = {}
for attempt in execute(job, to_do(plan), Path(sys.argv[2]), settings=Settings.of(plan)):
    for result in records(attempt, job.name):
        found[str(result.address)] = result.outcome.value
assert not {"pytest", "sqlite3", "click"} & set(sys.modules)
print(json.dumps(found))
"""


def test_lab_alone_gives_the_outcomes_of_a_run(group_cdev: Kernel, tmp_path: Path) -> None:
    """The lab alone gives the same outcomes as a run, from its plan, with another home and working directory.

    It writes only to the directory that it is given and to the store.
    """
    words = ("run", "--tree", TREE, "--topology", "edu", "--case", "probes/nodes/*", "-n", "0")
    done = process.run([sys.executable, "-m", "harness", *words], deadline=Deadline.after(3600))
    where = re.search(r"^everything is in (.*)$", done.stderr, re.MULTILINE)
    assert where is not None, done.stderr
    ran = Path(where[1])
    expected = {str(case.address): case.outcome.value for case in load(ran).cases}
    assert Outcome.PASS.value in expected.values(), done.stderr

    places = [tmp_path / name for name in ("home", "cwd", "lab")]
    for place in places:
        place.mkdir()
    home, cwd, lab = places
    child = process.run(
        [sys.executable, "-c", CHILD, str(ran / "plan.json"), str(lab)],
        cwd=cwd,
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "VFIO_HARNESS_CACHE": str(paths.cache_dir()),
        },
        deadline=Deadline.after(3600),
    )
    assert child.status == 0, child.stderr
    assert json.loads(child.stdout) == expected
    assert not [*home.iterdir(), *cwd.iterdir()]
    assert [path.name for path in lab.iterdir()] == ["vm"]
