# SPDX-License-Identifier: GPL-2.0-only
"""The splat detector against captured consoles."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.machine import splat
from harness.machine.splat import Detector, Splat

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def read(name: str) -> Detector:
    detector = Detector()
    offset = 0
    for line in (GOLDEN / name).read_bytes().splitlines(keepends=True):
        detector.feed(line.decode().rstrip("\n"), offset)
        offset += len(line)
    return detector


def only(name: str) -> Splat:
    (found,) = read(name).splats
    return found


def test_noiommu_boot_is_clean() -> None:
    """What no-IOMMU prints by design, and words that only look bad, are no splats."""
    detector = read("console-noiommu-clean.txt")
    assert detector.splats == ()
    assert detector.case is None
    assert detector.after == "misc/words_that_only_look_bad"


def test_panic() -> None:
    """A panic is fatal and belongs to the case that was running."""
    found = only("console-panic.txt")
    assert (found.kind, found.fatal, found.case) == ("panic", True, "capabilities/crash")


def test_warn() -> None:
    """A WARN reaches from `cut here` to `end trace`; the next case is not blamed."""
    found = only("console-warn.txt")
    assert (found.kind, found.fatal, found.case) == ("warn", False, "iommufd/detach_twice")
    assert found.lines[0].endswith("[ cut here ]------------")
    assert found.lines[-1].endswith("---[ end trace 0000000000000000 ]---")
    text = (GOLDEN / "console-warn.txt").read_bytes()
    assert text[found.offset :].startswith(b"[   12.204512][   T71] ------------[ cut here")


def test_kasan() -> None:
    """A KASAN report ends with its second row of =."""
    found = only("console-kasan.txt")
    assert (found.kind, found.fatal) == ("kasan", True)
    assert found.title.startswith("BUG: KASAN: slab-use-after-free in vfio_group_fops_release")
    assert found.lines[-1].endswith("=" * 66)


def test_oops_with_its_panic_is_one_splat() -> None:
    """NULL pointer, Oops and the panic that follows have one cause and make one splat."""
    found = only("console-oops.txt")
    assert (found.kind, found.fatal) == ("oops", True)
    assert found.lines[-1].endswith("---[ end Kernel panic - not syncing: Fatal exception ]---")


def test_lockdep() -> None:
    """A report of the lock validator is fatal, for it is the last."""
    found = only("console-lockdep.txt")
    assert (found.kind, found.fatal, found.case) == ("lockdep", True, "races/bind_unbind")


def test_stalls() -> None:
    """Hung task, soft lockup and RCU stall in a row are three splats."""
    found = read("console-stalls.txt").splats
    assert [splat.kind for splat in found] == ["hung-task", "soft-lockup", "rcu-stall"]
    assert {splat.case for splat in found} == {"lifecycle/unbind_while_open"}


def test_leaks_and_late_reports() -> None:
    """What arrives between cases belongs to none, and names the one that ended last."""
    found = read("console-leaks.txt").splats
    assert [splat.kind for splat in found] == ["ubsan", "bug", "kmemleak", "slab"]
    assert found[0].case == "iommufd/shift"
    assert (found[1].case, found[1].after) == (None, "iommufd/shift")
    assert found[2].lines == (found[2].lines[0],)


def feed(*messages: str) -> tuple[Splat, ...]:
    detector = Detector()
    for message in messages:
        detector.feed(f"[    1.000000][    C0] {message}", 0)
    assert detector.settled
    return detector.splats


def test_unhandled_interrupt() -> None:
    """It reaches beyond its stack trace to the line that says which interrupt is off now, and is fatal."""
    (found,) = feed(
        'irq 16: nobody cared (try booting with the "irqpoll" option)',
        "Call Trace:",
        " <IRQ>",
        " __report_bad_irq+0x2f/0xa0",
        " </IRQ>",
        " <TASK>",
        " </TASK>",
        "handlers:",
        "[<00000000c0ffee00>] vfio_intx_handler",
        "Disabling IRQ #16",
        "vfio-pci 0000:00:04.0: something else",
    )
    assert (found.kind, found.fatal, len(found.lines)) == ("irq", True, 10)


def test_duplicate_name_in_sysfs() -> None:
    """A node registered twice is a bug even where its driver survives it."""
    (found,) = feed(
        "sysfs: cannot create duplicate filename '/devices/virtual/vfio-dev/vfio0'",
        "Call Trace:",
        " <TASK>",
        " sysfs_warn_dup+0x1/0x2",
        " </TASK>",
        "kobject: kobject_add_internal failed for vfio0 with -EEXIST, don't try to register things",
    )
    assert (found.kind, found.fatal, len(found.lines)) == ("sysfs", False, 5)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("console-*.txt")))
def test_a_program_cannot_splat(name: str) -> None:
    """The same text without printk's time stamps is a program's, and says nothing about the kernel."""
    detector = Detector()
    for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines():
        detector.feed(splat.message_of(line) or line, 0)
    assert detector.splats == ()


def test_kernel_line_after_a_programs_unfinished_line() -> None:
    """A program's prompt may stand before the kernel's message on the same line."""
    detector = Detector()
    detector.feed("login: [    1.000000] BUG: Bad page state in process x  pfn:1", 0)
    assert [found.kind for found in detector.splats] == ["bug"]


def test_an_endless_splat_is_closed() -> None:
    """A splat whose end never comes does not swallow the rest of the console."""
    detector = Detector()
    detector.feed("[    1.000000] BUG: something", 0)
    for number in range(500):
        detector.feed(f"[    2.000000] chatter {number}", 0)
    assert detector.settled
    assert len(detector.splats[0].lines) == 200


@pytest.mark.parametrize(
    "message",
    [
        "WARNING: CPU: 0 PID: 1 at drivers/vfio/group.c:526 vfio_group_x+0x1/0x2",
        "WARNING: drivers/vfio/group.c:526 at vfio_group_x+0x1/0x2, CPU#1: python3/55",
        "WARNING: at vfio_group_x+0x1/0x2, CPU#1: python3/55",
        "BUG: sleeping function called from invalid context at mm/slab.h:1",
        "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP KASAN",
        "kernel BUG at mm/slub.c:546!",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-...D } 22 jiffies s: 5",
        "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1",
        'irq 16: nobody cared (try booting with the "irqpoll" option)',
        "irq event 16: bogus return value 4",
        "sysfs: cannot create duplicate filename '/devices/virtual/vfio-dev/vfio0'",
        "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    ],
)
def test_each_format_trips(message: str) -> None:
    """The ways in which releases of the kernel spell their complaints."""
    detector = Detector()
    detector.feed(f"[    1.000000][    C0] {message}", 0)
    assert len(detector.splats) == 1


@pytest.mark.parametrize(
    "message",
    [
        "WARNING: this driver prints its own warnings",
        "**  WARNING: IOMMU DebugFS SUPPORT HAS BEEN ENABLED IN THIS KERNEL  **",
        "ACPI Warning: SystemIO range conflicts",
        "[Firmware Bug]: the BIOS has corrupted hw-PMU resources",
        "FAULT_INJECTION: forcing a failure.",
        "sysrq: Show Blocked State",
        "NMI backtrace for cpu 0",
        "pci 0000:00:05.0: DEBUG BUG-like words",
    ],
)
def test_each_harmless_message_does_not(message: str) -> None:
    """Words alone are no splat."""
    detector = Detector()
    detector.feed(f"[    1.000000][    C0] {message}", 0)
    assert detector.splats == ()


def test_every_rule_has_a_reason() -> None:
    """The policy is reviewed data."""
    assert all(rule.reason for rule in splat.policy().deny)
    assert all(reason for _, reason in splat.policy().allow)


def test_a_bad_policy_names_its_line(tmp_path: Path) -> None:
    """A broken pattern is the user's error, with its place."""
    path = tmp_path / "policy.yaml"
    path.write_text("deny:\n  - {kind: x, pattern: '(', fatal: true, reason: y}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"policy\.yaml:2: not a regular expression"):
        splat.read_policy(path)
