# SPDX-License-Identifier: GPL-2.0-only
"""Which object has a function's code, how it was compiled, and what addr2line says."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.places import CodeAddress, Line, Place, find_addresses
from harness.kernel import lines
from harness.kernel.arch import host_arch
from harness.kernel.lines import (
    Definition,
    Unknown,
    choose_object,
    find_places,
    parse_addr2line,
    parse_nm,
    recorded_command,
)
from harness.kernel.plan import KernelPlan
from harness.kernel.ready import ReadyKernel
from harness.kernel.store import kernel_entry

NM = """\
drivers/vfio/vfio_main.o:0000000000000010 0000000000000036 t probe
drivers/vfio/pci/vfio_pci.o:0000000000000000 000000000000001b t probe
lib/vsprintf.o:0000000000000020 0000000000000012 T other
/b/vmlinux.a:arch/x86/entry/entry_64.o:0000000000000116 T label
/b/vmlinux.a:kernel/weak.o:0000000000000000 0000000000000004 W arch_f
/b/vmlinux.a:arch/x86/f.o:0000000000000000 0000000000000004 T arch_f
"""


def _address(symbol: str, size: int) -> CodeAddress:
    return CodeAddress(text=f"{symbol}+0x1/{size:#x}", symbol=symbol, offset=1, size=size)


def test_definitions_are_read_from_nm() -> None:
    """With or without the archive before the object, and for labels, which have no size."""
    found = parse_nm(NM, {"probe", "label"})
    assert found == {
        "probe": [
            Definition("drivers/vfio/vfio_main.o", 0x36, False),
            Definition("drivers/vfio/pci/vfio_pci.o", 0x1B, False),
        ],
        "label": [Definition("arch/x86/entry/entry_64.o", 0, False)],
    }


@pytest.mark.parametrize(
    ("symbol", "size", "path"),
    [
        # Sizes in splats have the padding up to the next function.
        ("probe", 0x40, "drivers/vfio/vfio_main.o"),
        ("probe", 0x20, "drivers/vfio/pci/vfio_pci.o"),
        ("label", 0x7E, "arch/x86/entry/entry_64.o"),
        ("arch_f", 0x10, "arch/x86/f.o"),
    ],
)
def test_size_tells_functions_of_one_name_apart(symbol: str, size: int, path: str) -> None:
    """The largest that fits is meant; a weak definition gives way."""
    assert choose_object(_address(symbol, size), parse_nm(NM, {symbol})[symbol]) == path


@pytest.mark.parametrize(
    ("defined", "reason"),
    [
        ([], "no object of the build defines it"),
        (
            [Definition("a.o", 0x100, False), Definition("b.o", 0x90, False)],
            "no function of this name has 0x40 bytes in the build",
        ),
        (
            [Definition("b.o", 0x38, False), Definition("a.o", 0x38, False)],
            "several functions have this name and size: a.o, b.o",
        ),
    ],
)
def test_what_is_not_certain_is_not_decoded(defined: list[Definition], reason: str) -> None:
    """Another version of a function, or one of two that look alike, is never shown."""
    with pytest.raises(Unknown, match=reason):
        choose_object(_address("f", 0x40), defined)


def test_only_definition_is_compiled_even_if_its_size_differs() -> None:
    """The objects may be of another commit; the code that is compiled anew must have the size."""
    assert choose_object(_address("f", 0x40), [Definition("a.o", 0x100, False)]) == "a.o"


def test_the_recorded_command_ends_before_objtool() -> None:
    """kbuild's escapes are undone, and nothing is left that writes beside the object."""
    record = (
        "savedcmd_a/b.o := gcc -Wp,-MMD,a/.b.o.d -DN='\"b\"' -DM='$(pound)$$x' -c -o a/b.o ../a/b.c   ; "
        "./tools/objtool/objtool --orc a/b.o\n\nsource_a/b.o := ../a/b.c\n"
    )
    assert recorded_command(record) == ["gcc", '-DN="b"', "-DM=#$x", "-c", "-o", "a/b.o", "../a/b.c"]


@pytest.mark.parametrize("record", ["", "savedcmd_a.o := rustc --emit=obj=a.o a.rs\n", "cmd_x := ld a.o\n"])
def test_other_commands_are_refused(record: str) -> None:
    with pytest.raises(Unknown):
        recorded_command(record)


def test_addr2line_lists_callers_of_inlined_functions() -> None:
    """One group for each address, innermost first; discriminators and unknown lines are dropped."""
    printed = (
        "0x0000000000000a80\ninner\n/b/../x.h:15\nouter\n/b/../y.c:99 (discriminator 3)\n"
        "0x0000000000000010\n??\n??:0\n0x0000000000000020\nf\n/b/../y.c:?\n"
    )
    found = list(parse_addr2line(printed, lambda name, file, at: Line(function=name, file=file, line=at)))
    assert [[(one.function, str(one)) for one in lines_] for lines_ in found] == [
        [("inner", "/b/../x.h:15"), ("outer", "/b/../y.c:99")],
        [],
        [],
    ]


MAIN_C = """\
int shown;

static inline __attribute__((always_inline)) void inlined(void)
{
\tshown = *(volatile int *)4;
}

void start_kernel(void)
{
\tinlined();
}
"""


@pytest.mark.skipif(not process.find_tool("gcc"), reason="needs a compiler")
def test_a_kernel_with_debug_information_is_asked_itself(tmp_path: Path) -> None:
    """Its source is known by init/main.c, and shown unless it changed since."""
    source, vmlinux = tmp_path / "linux" / "init" / "main.c", tmp_path / "vmlinux"
    source.parent.mkdir(parents=True)
    source.write_text(MAIN_C)
    options = ("-g", "-O1", "-nostdlib", "-static", "-no-pie", "-Wl,-e,start_kernel")
    process.run(["gcc", *options, "-o", vmlinux, source]).check("gcc")
    built = SimpleNamespace(vmlinux=vmlinux, modules_dir=None)
    plan = cast(ReadyKernel, SimpleNamespace(built=built, key="no such kernel", arch=host_arch()))
    size = next(
        int(line.split()[1], 16)
        for line in process.run(["nm", "-S", vmlinux]).stdout.splitlines()
        if line.endswith("start_kernel")
    )
    wanted = list(find_addresses(f"start_kernel+0x1/{size:#x}, f+0x1/0x2 [vfio]"))
    found = find_places(plan, wanted, Deadline.after(60))
    inlined, outer = found[wanted[0].text].lines
    assert [(one.function, str(one)) for one in (inlined, outer)] == [
        ("inlined", "init/main.c:5"),
        ("start_kernel", "init/main.c:10"),
    ]
    assert inlined.code[inlined.line - inlined.first] == "\tshown = *(volatile int *)4;"
    assert found[wanted[1].text].reason == "the module vfio has no uncompressed file in the store"
    os.utime(source, (2**31, 2**31))
    assert not find_places(plan, wanted, Deadline.after(60))[wanted[0].text].lines[0].code


def test_code_that_was_committed_since_is_uncommitted_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is the same, and so is what was found in it."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path))
    kernel_entry("k").mkdir(parents=True)
    plan = object.__new__(KernelPlan)
    object.__setattr__(plan, "tree", None)
    monkeypatch.setattr(KernelPlan, "key", "k")
    wanted = _address("f", 0x20)
    place = Place(lines=(Line(function="f", file="a.c", line=1), Line(function="g", file="b.h", line=2)))
    monkeypatch.setattr(lines, "_find_in_objects", lambda *_: {wanted.text: place})
    for changed in ({"a.c"}, set(), {"b.h"}):
        monkeypatch.setattr(lines, "_uncommitted", lambda tree, changed=changed: frozenset(changed))
        found = find_places(plan, [wanted], Deadline.after(60))[wanted.text].lines
        assert {one.file for one in found if one.changed} == changed
        monkeypatch.setattr(lines, "_find_in_objects", None)
