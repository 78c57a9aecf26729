# SPDX-License-Identifier: GPL-2.0-only
"""Matrix files: what they mean, and what is wrong with them in one sentence with its place."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernel.variants import load_catalogue
from harness.matrix import load_matrix, matrix_names

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
    """What a tree cannot express is told there; a variant that no matrix has is never tried."""
    assert {entry.variant for entry in load_matrix(name).entries} == set(load_catalogue().variants)


def test_trees_of_the_command_line_take_the_place_of_its_own(file: Path) -> None:
    """Every job is made for every tree, those of an include too."""
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
    """Right as the matrix is defined, or on a tree that it may be given: it has nothing to do today."""
    text = GOOD.replace('{variant: cdev, topology: "i*"}', '{tree: "debian:7.2"}')
    file.write_text(text.replace("    trees: [debian:7.3]\n", f"    trees: {own}\n" if own else ""))
    assert len(load_matrix("mine", file, chosen).entries) == jobs


def test_exclude_of_a_tree_that_can_never_be(file: Path) -> None:
    file.write_text(GOOD.replace('{variant: cdev, topology: "i*"}', '{tree: "debian:7.1"}'))
    with pytest.raises(UsageError, match=r"matrix\.yaml:9: this exclude matches no job"):
        load_matrix("mine", file, ["debian:7.1"])


def test_blocked_variant_is_proved_once(file: Path) -> None:
    """However many topologies there are, a configuration is one."""
    file.write_text(GOOD.replace("[group-cdev, cdev]", "[blocked-group, cdev]"))
    entries = load_matrix("mine", file).entries
    assert sum(entry.variant == "blocked-group" for entry in entries) == 1


def test_topology_file_is_looked_for_beside_the_matrix(file: Path) -> None:
    """A matrix and its topologies travel together."""
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
        ("[edu, igb]", "[]", "matrix.yaml:6: 'topologies' is empty"),
        ('variant: cdev, topology: "i*"', 'variant: "*"', None),
        ("matrices:", "matrixes:", "lacks the key 'matrices'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(file: Path, old: str, new: str, told: str | None) -> None:
    """File, line, the nearest right spelling."""
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
    """Each loads, and a bigger one is bigger."""
    sizes = {name: len(load_matrix(name).entries) for name in matrix_names()}
    assert sizes["smoke"] < sizes["nightly"] < sizes["full"]
