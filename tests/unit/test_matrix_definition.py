# SPDX-License-Identifier: GPL-2.0-only
"""Matrix files: their jobs, and their errors with file and line."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.kernel.variants import load_catalogue
from harness.matrix import load_matrix, matrix_names, with_coverage

GOOD = """\
matrices:
  mine:
    summary: two by two, less one, and one more
    trees: [debian:7.3]
    variants: [group-cdev, cdev]
    topologies: [edu, igb]
    suites: [probes]
    exclude:
      - {variant: cdev, topology: "i*"}
    include:
      - variants: [group-cdev]
        topologies: [edu]
        with: [debug]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "matrix.yaml"
    path.write_text(GOOD)
    return path


def test_product_less_excludes_plus_includes(file: Path) -> None:
    """The product comes first, in the order of the file; an include inherits suites and trees."""
    entries = load_matrix("mine", file).entries
    assert [str(entry) for entry in entries] == [
        "group-cdev edu debian:7.3",
        "group-cdev igb debian:7.3",
        "cdev edu debian:7.3",
        "group-cdev-debug edu debian:7.3",
    ]
    assert {entry.suites for entry in entries} == {("probes",)}


@pytest.mark.parametrize("name", ["nightly", "full"])
def test_shipped_matrix_has_every_variant(name: str) -> None:
    """Every variant is in a matrix; a variant that none has would never be tested."""
    assert {entry.variant for entry in load_matrix(name).entries} == set(load_catalogue().variants)


def test_trees_of_the_command_line_take_the_place_of_its_own(file: Path) -> None:
    """Every job, also of an include, is made for every tree."""
    entries = load_matrix("mine", file, ["debian:7.2", "a@b"]).entries
    assert collections.Counter(entry.tree for entry in entries) == {"debian:7.2": 4, "a@b": 4}


@pytest.mark.parametrize(
    ("own", "chosen", "jobs"),
    [
        ("[debian:7.2, debian:7.3]", [], 6),
        ("[debian:7.2, debian:7.3]", ["debian:7.3"], 5),
        ("[debian:7.2, debian:7.3]", ["debian:7.2"], 1),
        (None, [], 5),
        (None, ["debian:7.2"], 1),
    ],
)
def test_exclude_of_a_tree_that_was_not_chosen(
    file: Path, own: str | None, chosen: list[str], jobs: int
) -> None:
    """An exclude of a tree that --tree left out is valid."""
    text = GOOD.replace('{variant: cdev, topology: "i*"}', '{tree: "debian:7.2"}')
    file.write_text(text.replace("    trees: [debian:7.3]\n", f"    trees: {own}\n" if own else ""))
    assert len(load_matrix("mine", file, chosen).entries) == jobs


def test_toolchains_are_a_list_like_the_others(file: Path) -> None:
    """They are named in the job when they are not the default; --toolchain takes the place of all."""
    both = "    topologies: [edu, igb]\n    toolchains: [gcc, llvm-19]\n"
    excluded = GOOD.replace('topology: "i*"', "toolchain: gcc")
    file.write_text(excluded.replace("    topologies: [edu, igb]\n", both))
    assert [str(entry) for entry in load_matrix("mine", file).entries] == [
        "group-cdev edu debian:7.3",
        "group-cdev igb debian:7.3",
        "group-cdev-llvm-19 edu debian:7.3",
        "group-cdev-llvm-19 igb debian:7.3",
        "cdev-llvm-19 edu debian:7.3",
        "cdev-llvm-19 igb debian:7.3",
        "group-cdev-debug edu debian:7.3",
    ]
    chosen = load_matrix("mine", file, toolchains=["llvm"]).entries
    assert {entry.toolchain for entry in chosen} == {"llvm"}
    assert len(chosen) == 5


def test_exclude_of_a_tree_that_can_never_be(file: Path) -> None:
    file.write_text(GOOD.replace('{variant: cdev, topology: "i*"}', '{tree: "debian:7.1"}'))
    with pytest.raises(UsageError, match=r"matrix\.yaml:9: this exclude matches no job"):
        load_matrix("mine", file, ["debian:7.1"])


def test_blocked_variant_is_proved_once(file: Path) -> None:
    """A blocked variant is one job, however many topologies there are."""
    file.write_text(GOOD.replace("[group-cdev, cdev]", "[blocked-group, cdev]"))
    entries = load_matrix("mine", file).entries
    assert sum(entry.variant == "blocked-group" for entry in entries) == 1


def test_topology_file_is_looked_for_beside_the_matrix(file: Path) -> None:
    """A topology file is relative to the matrix file."""
    (file.parent / "mine.yaml").write_text(
        'summary: x\ndevices:\n - {id: edu0, driver: edu, addr: "0x5", pci: "1234:11e8"}\n'
    )
    file.write_text(GOOD.replace("[edu, igb]", "[edu, igb, mine.yaml]"))
    assert str(file.parent / "mine.yaml") in {entry.topology for entry in load_matrix("mine", file).entries}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[group-cdev, cdev]", "[group-cdev, cdv]", "matrix.yaml:5: .*'cdv'.*did you mean 'cdev'"),
        ("[edu, igb]", "[edu, ibg]", "matrix.yaml:6: .*'ibg'"),
        ("[probes]", "[probe]", "matrix.yaml:7: there is no suite 'probe' .did you mean 'probes'"),
        ("[debug]", "[debugg]", "matrix.yaml:13: .*'debugg'.*did you mean 'debug'"),
        (
            "variant: cdev,",
            "variant: cedv,",
            "matrix.yaml:9: this exclude matches no job.*did you mean 'cdev'",
        ),
        ('variant: cdev, topology: "i*"', "variants: cdev", "matrix.yaml:9: .*has no key 'variants'"),
        ("    suites:", "    suits:", "matrix.yaml:.*lacks the key 'suites'"),
        ("[probes]", "[probes]\n    toolchains: [clang]", "yaml:8: there is no toolchain.*mean 'llvm'"),
        ("[edu, igb]", "[]", "matrix.yaml:6: 'topologies' is empty"),
        ('variant: cdev, topology: "i*"', 'variant: "*"', None),
        ("matrices:", "matrixes:", "lacks the key 'matrices'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(file: Path, old: str, new: str, told: str | None) -> None:
    """The error has file, line and the closest name."""
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    if told is None:
        # What the include adds is left.
        assert len(load_matrix("mine", file).entries) == 1
        return
    with pytest.raises(UsageError) as caught:
        load_matrix("mine", file)
    assert re.search(told, str(caught.value)), str(caught.value)


def test_unknown_matrix(file: Path) -> None:
    with pytest.raises(UsageError, match=r"no matrix 'mien' \(did you mean 'mine'"):
        load_matrix("mien", file)


def test_shipped_ones_are_sound() -> None:
    """Every shipped matrix loads, and their sizes are in order."""
    sizes = {name: len(load_matrix(name).entries) for name in matrix_names()}
    assert sizes["smoke"] < sizes["nightly"] < sizes["full"]


def test_nightly_of_another_architecture_has_what_it_can_have() -> None:
    """Its own IOMMU, and no add-on that its kernels cannot have."""
    jobs = {arch: load_matrix("nightly", arches=[arch]).entries for arch in ("x86_64", "arm64")}
    kunit = {arch: any("kunit" in job.addons for job in found) for arch, found in jobs.items()}
    assert kunit == {"x86_64": True, "arm64": False}
    topologies = {arch: {job.topology for job in found} for arch, found in jobs.items()}
    assert topologies["arm64"] - topologies["x86_64"] == {"iommu-smmuv3", "mixed-smmuv3"}
    assert topologies["x86_64"] - topologies["arm64"] >= {"iommu-intel", "iommu-amd", "mixed"}


def test_coverage_counts_in_every_job_of_gcc(file: Path) -> None:
    """The add-on comes to those of the job; under the name of another matrix nothing is lost."""
    both = "    topologies: [edu, igb]\n    toolchains: [gcc, llvm-19]\n"
    file.write_text(GOOD.replace("    topologies: [edu, igb]\n", both))
    counted = with_coverage(load_matrix("mine", file))
    assert counted.name == "mine+gcov"
    assert {entry.toolchain for entry in counted.entries} == {"gcc"}
    assert {entry.addons for entry in counted.entries} == {("gcov",), ("debug", "gcov")}


def test_architectures_are_a_list_like_the_others(file: Path) -> None:
    """A topology that its machines cannot have gives no job; --arch takes the place of all."""
    both = "    topologies: [edu, iommu-smmuv3]\n    arches: [x86_64, aarch64]\n"
    excluded = GOOD.replace('topology: "i*"', "arch: arm64")
    file.write_text(excluded.replace("    topologies: [edu, igb]\n", both))
    jobs = [(entry.arch, entry.variant, entry.topology) for entry in load_matrix("mine", file).entries[:4]]
    assert jobs == [
        ("x86_64", "group-cdev", "edu"),
        ("arm64", "group-cdev", "edu"),
        ("arm64", "group-cdev", "iommu-smmuv3"),
        ("x86_64", "cdev", "edu"),
    ]
    assert {entry.arch for entry in load_matrix("mine", file, arches=["arm64"]).entries} == {"arm64"}
    file.write_text(
        GOOD.replace("    topologies: [edu, igb]\n", "    topologies: [edu, igb]\n    arches: [arm46]\n")
    )
    with pytest.raises(UsageError, match=r"there is no architecture 'arm46' .*'arm64'"):
        load_matrix("mine", file)
