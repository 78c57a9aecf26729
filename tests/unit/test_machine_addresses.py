# SPDX-License-Identifier: GPL-2.0-only
"""Code addresses in splats, and splats with the source lines of these."""

from __future__ import annotations

from harness.base.places import Line, Place
from harness.machine.addresses import addresses_in, with_places

OOPS = """\
[    5.100000] BUG: kernel NULL pointer dereference, address: 0000000000000038
[    5.100100] RIP: 0010:vfio_ioctl_feature+0x1b/0x40 [vfio]
[    5.100200] Call Trace:
[    5.100300]  <TASK>
[    5.100400]  ? vfio_open+0x0/0x20
[    5.100500]  vfio_unl_ioctl+0x80/0x120 [vfio]
[    5.100600]  entry_SYSCALL_64_after_hwframe+0x76/0x7e
[    5.100700]  </TASK>"""

PLACES = {
    "vfio_ioctl_feature+0x1b/0x40 [vfio]": Place(
        lines=(
            Line(function="owner_of", file="drivers/vfio/vfio.h", line=7),
            Line(function="vfio_ioctl_feature", file="drivers/vfio/vfio_main.c", line=12),
        )
    ),
    "vfio_unl_ioctl+0x80/0x120 [vfio]": Place(
        lines=(Line(function="vfio_unl_ioctl", file="drivers/vfio/vfio_main.c", line=40),)
    ),
    "entry_SYSCALL_64_after_hwframe+0x76/0x7e": Place(reason="no object of the build defines it"),
}


def test_addresses_are_found_with_their_modules() -> None:
    """Symbol, offset, size and module; only the program counter is that of the instruction itself."""
    counter, opened, caller, entry = addresses_in(OOPS)
    assert (counter.symbol, counter.offset, counter.size) == ("vfio_ioctl_feature", 0x1B, 0x40)
    assert (counter.module, counter.asked) == ("vfio", 0x1B)
    assert opened.asked == 0, "a symbol's own start has no instruction before it"
    assert (caller.exact, caller.asked) == (False, 0x7F)
    assert entry.module == ""


def test_an_address_that_is_exact_anywhere_is_exact() -> None:
    """A WARN names its own instruction first; a frame of registers on arm64 is exact as well."""
    warn = "WARNING: a.c:3 at f+0x10/0x20, CPU#0: a/1\n f+0x10/0x20\n g+0x8/0x10 (P)\n h+0x8/0x10"
    assert [one.exact for one in addresses_in(warn)] == [True, True, False]


def test_build_ids_and_taints_belong_to_the_module() -> None:
    """%pSb prints the build-id of a module behind its name."""
    text = "f+0x1/0x2 [vfio-pci 4ea28b86c7]"
    assert [(one.text, one.module) for one in addresses_in(text)] == [(text, "vfio_pci")]


def test_places_stand_behind_addresses_and_inlined_functions_before() -> None:
    """As in syzbot's reports; an address without a place keeps its form and has its reason at the end."""
    assert with_places(OOPS, PLACES).splitlines() == [
        "[    5.100000] BUG: kernel NULL pointer dereference, address: 0000000000000038",
        "[    5.100100] RIP: 0010:owner_of drivers/vfio/vfio.h:7 [inline]",
        "[    5.100100] RIP: 0010:vfio_ioctl_feature+0x1b/0x40 [vfio] drivers/vfio/vfio_main.c:12",
        "[    5.100200] Call Trace:",
        "[    5.100300]  <TASK>",
        "[    5.100400]  ? vfio_open+0x0/0x20",
        "[    5.100500]  vfio_unl_ioctl+0x80/0x120 [vfio] drivers/vfio/vfio_main.c:40",
        "[    5.100600]  entry_SYSCALL_64_after_hwframe+0x76/0x7e",
        "[    5.100700]  </TASK>",
        "(no source line for entry_SYSCALL_64_after_hwframe+0x76/0x7e: no object of the build defines it)",
    ]


def test_an_address_in_a_sentence_is_decoded_in_its_line() -> None:
    """Lockdep and KASAN name addresses within a line."""
    line = "(&set->lock){+.+.}-{4:4}, at: vfio_ioctl_feature+0x1b/0x40 [vfio]"
    assert with_places(line, PLACES) == (
        f"{line} drivers/vfio/vfio_main.c:12 (owner_of drivers/vfio/vfio.h:7)"
    )
