# SPDX-License-Identifier: GPL-2.0-only
"""The building of a tree's own selftests, of which released kernels have some that do not compile."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from harness.errors import InfraError
from harness.kernel.selftests import build_selftests, failures, list_programs, sources

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", "gcc")), reason="the tools of a build are missing"
)

GOOD = "int main(void) { return 0; }\n"


def tree(directory: Path, **programs: str) -> Path:
    """A tree with one selftest per collection."""
    (directory / "Makefile").parent.mkdir(parents=True)
    (directory / "Makefile").write_text("headers:\n\t@:\n", encoding="utf-8")
    for name, source in programs.items():
        place = directory / "tools/testing/selftests" / name
        place.mkdir(parents=True)
        (place / "Makefile").write_text(
            "all:\n\tgcc -Wall -Werror x.c -o $(OUTPUT)/x_test\n", encoding="utf-8"
        )
        (place / "x.c").write_text(source, encoding="utf-8")
    return directory


def build(directory: Path, **programs: str) -> Path:
    source, target = tree(directory / "linux", **programs), directory / "target"
    target.mkdir()
    build_selftests(source, directory / "work", target, directory / "log", jobs=1)
    return target


def names(target: Path) -> list[str]:
    return [f"{program.collection}/{program.name}" for program in list_programs(target)]


def test_all_are_built(tmp_path: Path) -> None:
    target = build(tmp_path, vfio=GOOD, iommu=GOOD)
    assert names(target) == ["iommu/x_test", "vfio/x_test"]
    assert failures(target) == {}


def test_what_they_were_made_from_is_told_of_the_build(tmp_path: Path) -> None:
    """Refs of one repository share a worktree: what is in it later is another's."""
    source = tree(tmp_path / "linux", vfio=GOOD)
    named = source / "tools/testing/selftests/vfio/x_test.c"
    named.write_text(GOOD, encoding="utf-8")
    target = tmp_path / "target"
    target.mkdir()
    build_selftests(source, tmp_path / "work", target, tmp_path / "log", jobs=1)
    named.write_text("/* another ref */\n", encoding="utf-8")
    assert sources(target) == {"vfio/x_test": hashlib.sha256(GOOD.encode()).hexdigest()}


def test_collection_that_does_not_compile_costs_only_itself(tmp_path: Path) -> None:
    """Why is kept beside the programs of the others."""
    target = build(tmp_path, vfio="int main(void) { return calloc_assert(1); }\n", iommu=GOOD)
    assert names(target) == ["iommu/x_test"]
    assert list(failures(target)) == ["vfio"]
    assert "calloc_assert" in failures(target)["vfio"]


def test_library_that_the_host_lacks_is_not_the_trees_fault(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="of this host"):
        build(tmp_path, iommu="#error uuid/uuid.h: No such file\n")


def test_compiler_that_was_stopped_is_no_failure_of_the_tree(tmp_path: Path) -> None:
    """It would be kept for good."""
    source, target = tree(tmp_path / "linux", vfio=GOOD), tmp_path / "target"
    target.mkdir()
    makefile = source / "tools/testing/selftests/vfio/Makefile"
    makefile.write_text("all:\n\tkill -9 $$$$\n", encoding="utf-8")
    with pytest.raises(InfraError):
        build_selftests(source, tmp_path / "work", target, tmp_path / "log", jobs=1)
