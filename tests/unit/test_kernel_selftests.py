# SPDX-License-Identifier: GPL-2.0-only
"""The building of a tree's own selftests, of which released kernels have some that do not compile."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from harness.base.errors import InfraError
from harness.kernel.arch import host_arch
from harness.kernel.make import Make
from harness.kernel.selftests import build_selftests, failures, features, list_programs, sources
from harness.kernel.toolchain import GCC

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


def make_for(source: Path, log: Path) -> Make:
    return Make(tree=source, log=log, arch=host_arch(), toolchain=GCC)


def build(directory: Path, **programs: str) -> Path:
    source, target = tree(directory / "linux", **programs), directory / "target"
    target.mkdir()
    build_selftests(make_for(source, directory / "log"), directory / "work", target)
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
    build_selftests(make_for(source, tmp_path / "log"), tmp_path / "work", target)
    named.write_text("/* another ref */\n", encoding="utf-8")
    assert sources(target) == {"vfio/x_test": hashlib.sha256(GOOD.encode()).hexdigest()}


def test_collection_that_does_not_compile_costs_only_itself(tmp_path: Path) -> None:
    """Why is kept beside the programs of the others."""
    target = build(tmp_path, vfio="int main(void) { return calloc_assert(1); }\n", iommu=GOOD)
    assert names(target) == ["iommu/x_test"]
    assert list(failures(target)) == ["vfio"]
    assert "calloc_assert" in failures(target)["vfio"]


MANY = """\
all: $(OUTPUT)/a_test $(OUTPUT)/b_test
$(OUTPUT)/%: %.c
	gcc -Wall -Werror $< -o $@
"""


def test_missing_file_costs_only_its_program(tmp_path: Path) -> None:
    """A program without its C file is named in a message; the others of its collection are built."""
    source, target = tree(tmp_path / "linux", vfio=GOOD, iommu=GOOD), tmp_path / "target"
    target.mkdir()
    place = source / "tools/testing/selftests/vfio"
    (place / "Makefile").write_text(MANY, encoding="utf-8")
    (place / "b_test.c").write_text(GOOD, encoding="utf-8")
    build_selftests(make_for(source, tmp_path / "log"), tmp_path / "work", target)
    assert names(target) == ["iommu/x_test", "vfio/b_test"]
    assert list(failures(target)) == ["vfio"]
    assert "a_test" in failures(target)["vfio"]


def test_program_of_another_ref_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Refs of one repository share the place where they are built."""
    source, place = tree(tmp_path / "linux", vfio=GOOD), tmp_path / "linux/tools/testing/selftests/vfio"
    (place / "Makefile").write_text(MANY, encoding="utf-8")
    for name in ("a_test", "b_test"):
        (place / f"{name}.c").write_text(GOOD, encoding="utf-8")
    for name, text in {"one": MANY, "other": MANY.replace(" $(OUTPUT)/a_test", "")}.items():
        (place / "Makefile").write_text(text, encoding="utf-8")
        (tmp_path / name).mkdir()
        build_selftests(make_for(source, tmp_path / "log"), tmp_path / "work", tmp_path / name)
    assert names(tmp_path / "other") == ["vfio/b_test"]


CDEV = """
/* The comments of noiommu-vfio do not count. */
const char *vfio_pci_get_cdev_path(const char *bdf)
{{
	while ((entry = readdir(dir)) != NULL) {{
		if ({0})
			continue;
	}}
}}
"""
GROUP = """
void vfio_pci_group_setup(struct vfio_pci_device *device, const char *bdf)
{{
	snprintf_assert(group_path, sizeof(group_path), {0}, group);
}}
"""
OLD_LOOKUP = 'strncmp("vfio", entry->d_name, 4)'
OLD_CDEV, OLD_GROUP = CDEV.format(OLD_LOOKUP), GROUP.format('"/dev/vfio/%d"')
NEW_CDEV = CDEV.format(f'{OLD_LOOKUP} && strncmp("noiommu-vfio", entry->d_name, 12)')


@pytest.mark.parametrize(
    ("cdev", "group", "known"),
    [
        (OLD_CDEV, OLD_GROUP, ()),
        (OLD_CDEV, GROUP.format('"/dev/vfio/noiommu-%d"'), ("libvfio-noiommu-group",)),
        (NEW_CDEV, OLD_GROUP, ("libvfio-noiommu-cdev",)),
        (CDEV.format('!strstr(entry->d_name, "vfio")'), OLD_GROUP, ("libvfio-noiommu-cdev",)),
    ],
)
def test_what_libvfio_can_do_is_read_from_the_tree(
    tmp_path: Path, cdev: str, group: str, known: tuple[str, ...]
) -> None:
    """Only code that certainly misses such a device makes a libvfio one that cannot find it."""
    source, target = tree(tmp_path / "linux", vfio=GOOD), tmp_path / "target"
    library = source / "tools/testing/selftests/vfio/lib/vfio_pci_device.c"
    library.parent.mkdir()
    library.write_text(cdev + group, encoding="utf-8")
    target.mkdir()
    build_selftests(make_for(source, tmp_path / "log"), tmp_path / "work", target)
    library.unlink()
    assert features(target) == known


def test_library_that_the_host_lacks_is_not_the_trees_fault(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=r"this host has no <uuid/none\.h>"):
        build(tmp_path, iommu="#include <uuid/none.h>\n")


def test_source_that_only_names_a_library_is_the_trees_fault(tmp_path: Path) -> None:
    """#error may say anything."""
    assert list(failures(build(tmp_path, iommu="#error uuid/uuid.h: No such file\n"))) == ["iommu"]


def test_compiler_that_was_stopped_is_no_failure_of_the_tree(tmp_path: Path) -> None:
    """A failure that the host is to blame for would be kept for good."""
    source, target = tree(tmp_path / "linux", vfio=GOOD), tmp_path / "target"
    target.mkdir()
    makefile = source / "tools/testing/selftests/vfio/Makefile"
    makefile.write_text("all:\n\tkill -9 $$$$\n", encoding="utf-8")
    with pytest.raises(InfraError):
        build_selftests(make_for(source, tmp_path / "log"), tmp_path / "work", target)
