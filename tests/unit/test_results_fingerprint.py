# SPDX-License-Identifier: GPL-2.0-only
"""Splat fingerprints: equal for one cause, different for two."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.machine.splat import Detector
from harness.results.fingerprint import LENGTH, account_of, fingerprint

GOLDEN = Path(__file__).parents[1] / "golden"


def splats(name: str) -> list[str]:
    detector = Detector()
    for line in (GOLDEN / name).read_text().splitlines():
        detector.feed(line, 0)
    return ["\n".join(splat.lines) for splat in detector.splats]


def test_what_a_boot_decides_does_not_count() -> None:
    """Times, addresses, offsets, line numbers, pids and the process's name are not the cause."""
    (kasan,) = splats("console-kasan.txt")
    other = re.sub(r"T(\d+)\]", r"T9\1]", kasan.replace("20.", "77.", 5))
    other = other.replace("+0x4c/0x120", "+0x5a/0x130").replace("ffff888004c5a818", "ffff88800badc0de")
    other = other.replace("python3/80", "agent/4711").replace("Read of size 8", "Read of size 8")
    assert other != kasan
    assert fingerprint(other) == fingerprint(kasan)
    (warn,) = splats("console-warn.txt")
    moved = warn.replace("device.c:742", "device.c:751").replace("CPU#0: python3/71", "CPU#3: sh/9")
    moved = "\n".join(re.sub(r"^\[.*?\]\[.*?\] ", "", line) for line in moved.splitlines())
    assert fingerprint(moved) == fingerprint(warn)
    assert account_of(warn).title.startswith("WARNING: drivers/iommu/iommufd/device.c:742")


def test_another_cause_is_another_fingerprint() -> None:
    """Every golden console has its own, and another caller makes another."""
    found = [
        fingerprint(splat)
        for name in ("console-kasan.txt", "console-lockdep.txt", "console-oops.txt", "console-warn.txt")
        for splat in splats(name)
    ]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(f"[0-9a-f]{{{LENGTH}}}", one) for one in found)
    (warn,) = splats("console-warn.txt")
    assert fingerprint(warn.replace("vfio_df_ioctl_detach_pt", "vfio_df_unbind")) != fingerprint(warn)


def report(*messages: str) -> str:
    return "\n".join(f"[   10.000001][  T200] {message}" for message in messages)


TAIL = ("Call Trace:", " <TASK>", " vfio_guilty+0x12/0x40", " do_syscall_64+0x90/0x1a0", " </TASK>")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "BUG: scheduling while atomic: probe a/200/0x00000002",
            "BUG: scheduling while atomic: kworker/3/0x00000001",
        ),
        (
            "BUG: using __this_cpu_read() in preemptible [00000000] code: probe a/200",
            "BUG: using __this_cpu_read() in preemptible [00000000] code: kworker/u8:2/31",
        ),
        ("BUG: spinlock bad magic on CPU#0, probe a/200", "BUG: spinlock bad magic on CPU#1, kworker/3:1/9"),
        ("BUG: probe a/200 still has locks held!", "BUG: kworker/u8:2/31 still has locks held!"),
        (
            "BUG: Bad rss-counter state mm:1 type:MM_ANONPAGES val:2 Comm:a b Pid:4",
            "BUG: Bad rss-counter state mm:5 type:MM_ANONPAGES val:6 Comm:c Pid:8",
        ),
        (
            "BUG kmalloc-64 (Not tainted): Poison overwritten",
            "BUG kmalloc-64 (Tainted: G        W          ): Poison overwritten",
        ),
        (
            "WARNING: drivers/vfio/a.c:12 at vfio_guilty.cold+0x1/0x2, CPU#1: probe/200",
            "WARNING: drivers/vfio/a.c:12 at vfio_guilty.isra.0.cold+0x1/0x2, CPU#1: probe/200",
        ),
        (
            "INFO: task probe:200 blocked for more than 60 seconds.",
            "INFO: task kworker/u8:2:31 blocked for more than 122 seconds.",
        ),
        (
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [probe:200]",
            "watchdog: BUG: soft lockup - CPU#3 stuck for 48s! [kworker/0:1:7]",
        ),
        ("BUG: Bad page state in process probe  pfn:1a2b3", "BUG: Bad page state in process sh  pfn:5"),
        (
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
        ),
        (
            "WARNING: drivers/vfio/a.c:12 at vfio_guilty+0x1/0x2, CPU#1: probe/200",
            "WARNING: drivers/vfio/a.c:19 at vfio_guilty+0x4/0x9, CPU#0: sh/3",
        ),
        (
            "WARNING: drivers/vfio/a.c:12 at vfio_guilty+0x1/0x2, CPU#1: probe/200",
            "WARNING: drivers/vfio/a.c:12 at vfio_guilty+0x1/0x2 [vfio], CPU#1: probe/200",
        ),
        (
            "divide error: 0000 [#1] PREEMPT SMP NOPTI",
            "divide error: 0000 [#2] SMP KASAN",
        ),
    ],
)
def test_who_ran_where_and_for_how_long_does_not_count(one: str, other: str) -> None:
    assert fingerprint(report(one, *TAIL)) == fingerprint(report(other, *TAIL))


REPORTERS = (
    (
        "dump_stack_lvl",
        "print_circular_bug.cold",
        "check_noncircular",
        "check_prev_add",
        "validate_chain",
        "__lock_acquire",
        "lock_acquire",
        "__mutex_lock",
    ),
    ("dump_stack_lvl", "print_report", "kasan_report", "__asan_load8", "memcpy", "refcount_warn_saturate"),
    ("__schedule", "schedule", "schedule_timeout", "__wait_for_common", "wait_for_completion", "down_write"),
    ("check_unmap", "debug_dma_unmap_phys", "dma_unmap_page_attrs", "debug_print_object", "kfree"),
)


@pytest.mark.parametrize("reporters", REPORTERS)
def test_who_reports_is_not_to_blame(reporters: tuple[str, ...]) -> None:
    """Eight functions of the report, and those of allocators and locks, do not hide whose bug it is."""

    def of(guilty: str) -> str:
        frames = (f" {name}+0x1/0x2" for name in (*reporters, guilty, "vfio_ioctl"))
        return report("BUG: something", "Call Trace:", " <TASK>", *frames, " </TASK>")

    assert fingerprint(of("vfio_group_open")) != fingerprint(of("iommufd_ioas_map"))
    assert account_of(of("vfio_group_open")).title == "BUG: something, in vfio_group_open"


def test_stack_of_the_allocation_does_not_count() -> None:
    """page_owner prints two stack traces of the page before the one of the bug."""

    def of(allocator: str, guilty: str) -> str:
        owner = (
            "page_owner tracks the page as allocated",
            "page last allocated via order 0, migratetype Unmovable, pid 5096, ts 10",
            *(f" {name}+0x1/0x2" for name in (*"abcdefg", allocator)),
            "page last free pid 5083 tgid 5083 stack trace:",
            " pipe_read+0x1/0x2",
            "Modules linked in:",
        )
        trace = ("Call Trace:", " <TASK>", " bad_page+0x1/0x2", f" {guilty}+0x1/0x2", " </TASK>")
        return report("BUG: Bad page state in process probe  pfn:7deea", *owner, *trace)

    assert fingerprint(of("x", "vfio_unpin")) == fingerprint(of("y", "vfio_unpin"))
    assert fingerprint(of("x", "vfio_unpin")) != fingerprint(of("x", "iommufd_unpin"))


@pytest.mark.parametrize(
    "said",
    [
        "list_del corruption. prev->next should be ffff888000000001, but was dead000000000100",
        "refcount_t: underflow; use-after-free.",
        "DMA-API: vfio-pci 0000:00:04.0: device driver tries to free DMA memory it has not allocated",
        "ODEBUG: free active (active state 0) object: ffff88807b3c4490 type: timer_list hint: x+0x0/0x3",
    ],
)
def test_what_says_what_it_is_counts(said: str) -> None:
    """It makes the title, and the number of the device in it makes no other bug."""
    warn = ("WARNING: lib/x.c:25 at check_unmap+0x1/0x2, CPU#0: probe/200", *TAIL)
    cut = "------------[ cut here ]------------"
    found = report(cut, said, *warn)
    assert account_of(found).title == f"{said.rstrip('.')}, in vfio_guilty"
    assert fingerprint(found) != fingerprint(report(cut, *warn))
    assert fingerprint(found) == fingerprint(
        found.replace("0000:00:04.0", "0000:00:1a.0").replace("c4490", "c1111")
    )


def test_lines_of_another_cpu_do_not_count() -> None:
    """Neither after `cut here` nor within the stack trace."""
    bug = ("------------[ cut here ]------------", "kernel BUG at drivers/vfio/a.c:12!", *TAIL)
    clean = report(*bug).splitlines()
    mixed = [clean[0], "[   10.000001][    C1] e1000: eth0 NIC Link is Up", *clean[1:4]]
    mixed += ["[   10.000001][  T300]  e1000_watchdog+0x1/0x2", *clean[4:]]
    assert fingerprint("\n".join(mixed)) == fingerprint("\n".join(clean))


def test_stall_is_known_by_its_outermost_functions() -> None:
    """The innermost ones are those of a random moment; what the interrupt itself does is left out."""

    def of(*spinning: str) -> str:
        report_of_itself = (
            "dump_stack_lvl",
            "rcu_dump_cpu_stacks",
            "rcu_sched_clock_irq",
            "asm_sysvec_apic_timer",
        )
        outer = ("vfio_loop", "vfio_pci_ioctl", "vfio_fops_ioctl", "__x64_sys_ioctl", "do_syscall_64")
        frames = (f" {name}+0x1/0x2" for name in (*report_of_itself, *spinning, *outer))
        return report("rcu: INFO: rcu_preempt self-detected stall on CPU", "Call Trace:", *frames)

    assert fingerprint(of("xas_load", "a_leaf")) == fingerprint(of("b_leaf", "b_helper"))
    assert account_of(of("a_leaf")).title.endswith("in a_leaf, for vfio_fops_ioctl")


def test_nothing_has_none() -> None:
    assert fingerprint("") == fingerprint("\n ===== \n") == ""
