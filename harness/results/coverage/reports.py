# SPDX-License-Identifier: GPL-2.0-only
"""Coverage as gcovr makes it: HTML that stands alone, and an lcov tracefile."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from harness.base import process
from harness.base.csource import find_functions
from harness.base.errors import HostError
from harness.base.files import write_atomic
from harness.results.coverage.model import Coverage


def write_reports(coverage: Coverage, *, html: Path | None = None, lcov: Path | None = None) -> None:
    """Write the HTML pages below the directory *html*, and the lcov tracefile *lcov*.

    Raises HostError when they cannot be written or gcovr fails.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="vfio-harness-gcovr-") as scratch:
            _write_reports(coverage, html, lcov, Path(scratch).resolve())
    except OSError as error:
        raise HostError(f"cannot write {error.filename or lcov}: {error.strerror}") from error


def _write_reports(coverage: Coverage, html: Path | None, lcov: Path | None, top: Path) -> None:
    for name in coverage.files:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, coverage.sources[name])
    write_atomic(top / "trace.json", json.dumps(_tracefile(coverage)))
    argv = [sys.executable, "-m", "gcovr", "--add-tracefile", "trace.json", "--root", "."]
    argv += ["--merge-mode-functions", "separate", "--lcov", "lcov.info"]
    if html is not None:
        html.mkdir(exist_ok=True)
        argv += ["--html-details", str(html.absolute() / "index.html")]
        argv += ["--html-title", f"Coverage of {coverage.tree}"]
    process.run(argv, cwd=top).check("gcovr failed")
    if lcov is not None:
        # Names relative to the tree, whatever its place was.
        text = (top / "lcov.info").read_text(encoding="utf-8").replace(f"SF:{top}/", "SF:")
        lcov.write_text(text, encoding="utf-8")


def _tracefile(coverage: Coverage) -> dict[str, object]:
    """Return *coverage* in gcovr's own format (https://gcovr.com/en/stable/output/json.html)."""
    # gcovr reads no other version than its own.
    from gcovr.data_model.version import FORMAT_VERSION

    return {
        "gcovr/format_version": FORMAT_VERSION,
        "files": [_file(name, coverage) for name in sorted(coverage.files)],
    }


def _file(name: str, coverage: Coverage) -> dict[str, object]:
    counted = coverage.files[name]
    text = coverage.sources[name].splitlines()
    ran = {
        one: [counted.lines[line] for line in one.lines if line in counted.lines]
        for one in find_functions(coverage.sources[name])
    }
    return {
        "file": name,
        "lines": [
            {
                "line_number": line,
                "count": count,
                "gcovr/md5": hashlib.md5(text[line - 1].encode(), usedforsecurity=False).hexdigest(),
                "branches": [
                    {"count": taken, "fallthrough": False, "throw": False, "branchno": number}
                    for number, taken in enumerate(counted.branches.get(line, ()))
                ],
            }
            for line, count in sorted(counted.lines.items())
        ],
        "functions": [
            {
                "name": one.name,
                "demangled_name": one.name,
                "lineno": one.start,
                "execution_count": max(counts),
                "blocks_percent": 100.0,
            }
            for one, counts in ran.items()
            if counts
        ],
    }
