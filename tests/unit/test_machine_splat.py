# SPDX-License-Identifier: GPL-2.0-only
"""The splat detector against captured consoles."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import UsageError
from harness.machine import splatpolicy
from harness.machine.splat import Detector, Splat
from harness.results.fingerprint import account_of

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
    """The messages that no-IOMMU mode prints by design are no splats."""
    detector = read("console-noiommu-clean.txt")
    assert detector.splats == ()
    assert detector.case is None
    assert detector.after == "misc/words_that_only_look_bad"


def test_panic() -> None:
    """A panic is fatal and belongs to the case that was running."""
    found = only("console-panic.txt")
    assert (found.kind, found.fatal, found.case) == ("panic", True, "capabilities/crash")


def test_warn() -> None:
    """A WARN reaches from `cut here` to `end trace` and is not attributed to the next case."""
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
    """A NULL pointer dereference, its Oops and the panic that follows are one splat."""
    found = only("console-oops.txt")
    assert (found.kind, found.fatal) == ("oops", True)
    assert found.lines[-1].endswith("---[ end Kernel panic - not syncing: Fatal exception ]---")


def test_oops_of_arm64() -> None:
    """A fault of arm64, whose registers and trace name the function, and the panic that follows."""
    found = only("console-oops-arm64.txt")
    assert (found.kind, found.fatal) == ("oops", True)
    assert found.title.endswith("in iopt_alloc_pages")
    assert any(line.endswith("Kernel panic - not syncing: Oops: Fatal exception") for line in found.lines)


def test_lockdep() -> None:
    """A lockdep report is fatal, because lockdep turns itself off."""
    found = only("console-lockdep.txt")
    assert (found.kind, found.fatal, found.case) == ("lockdep", True, "races/bind_unbind")


def test_stalls() -> None:
    """Hung task, soft lockup and RCU stall in a row are three splats."""
    found = read("console-stalls.txt").splats
    assert [splat.kind for splat in found] == ["hung-task", "soft-lockup", "rcu-stall"]
    assert {splat.case for splat in found} == {"lifecycle/unbind_while_open"}


def test_leaks_and_late_reports() -> None:
    """A splat between cases has no case and names the one that ended last."""
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
    """The splat ends with the line that names the disabled interrupt, and is fatal."""
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
    """A sysfs name registered twice is a splat."""
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
    """Once the kernel printed a time stamp, text without one is a program's and no splat."""
    detector = Detector()
    detector.feed("[    0.000000] Linux version 7.3.4", 0)
    for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines():
        detector.feed(splatpolicy.message_of(line) or line, 0)
    assert detector.splats == ()


def test_kernel_line_after_a_programs_unfinished_line() -> None:
    """A kernel message is found behind a program's prompt on the same line."""
    detector = Detector()
    detector.feed("login: [    1.000000] BUG: Bad page state in process x  pfn:1", 0)
    assert [found.kind for found in detector.splats] == ["bug"]


def test_an_endless_splat_is_closed() -> None:
    """A splat without an end is closed after a maximum number of lines."""
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
        "WARNING: [a < b] drivers/vfio/group.c:526 at vfio_group_x+0x1/0x2, CPU#1: python3/55",
        "divide error: 0000 [#1] PREEMPT SMP NOPTI",
        "Unable to handle kernel paging request at virtual address dead000000000122",
        "Internal error: : 81b [#1] SMP ARM",
        "Insufficient stack space to handle exception!",
        "invalid opcode: 0000 [#1] SMP",
        "stack segment: 0000 [#1] PREEMPT SMP",
        "int3: 0000 [#1] SMP",
        "Internal error: Oops - Undefined instruction: 0000000002000000 [#1] SMP",
        "[ BUG: bad unlock balance detected! ]",
        "WARNING: at vfio_group_x+0x1/0x2, CPU#1: python3/55",
        "BUG: sleeping function called from invalid context at mm/slab.h:1",
        "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP KASAN",
        "kernel BUG at mm/slub.c:546!",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-...D } 22 jiffies s: 5",
        "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1",
        'irq 16: nobody cared (try booting with the "irqpoll" option)',
        "irq event 16: bogus return value 4",
        "smp: csd: Detected non-responsive CSD lock (#1) on CPU#0, waiting 5009 ns for CPU#01 x.",
        "sysfs: cannot create duplicate filename '/devices/virtual/vfio-dev/vfio0'",
        "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    ],
)
def test_each_format_trips(message: str) -> None:
    """The spellings of different kernel releases are recognised."""
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
        "Oops, the device is gone",
    ],
)
def test_each_harmless_message_does_not(message: str) -> None:
    """Messages that only mention such words are no splats."""
    detector = Detector()
    detector.feed(f"[    1.000000][    C0] {message}", 0)
    assert detector.splats == ()


OOPS = (
    "divide error: 0000 [#1] PREEMPT SMP NOPTI",
    "RIP: 0010:vfio_guilty+0x12/0x40",
    "Call Trace:",
    " <TASK>",
    " vfio_caller+0x5/0x20",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
)
WARN = (
    "------------[ cut here ]------------",
    "WARNING: drivers/base/b.c:12 at boot_thing+0x12/0x40, CPU#1: swapper/1",
    "---[ end trace 0000000000000000 ]---",
)
PANIC = "Kernel panic - not syncing: Fatal exception"
ARM64_PANIC = "Kernel panic - not syncing: Oops: Fatal exception"


def read_open(*messages: str) -> Detector:
    detector = Detector()
    for message in messages:
        detector.feed(f"[    1.000000][   T55] {message}", 0)
    return detector


def test_panic_belongs_to_the_oops_and_to_no_older_warning() -> None:
    """Kernels up to 6.9 print `divide error:` bare; the panic after it is not the WARN's of long ago."""
    for panic in (PANIC, ARM64_PANIC):
        (oops,) = read_open(*OOPS, panic).splats
        assert (oops.kind, oops.fatal, oops.lines[-1][-len(panic) :]) == ("oops", True, panic)
    warn, oops = read_open(*WARN, "vfio-pci: enabled", *OOPS, PANIC).splats
    assert (warn.kind, warn.fatal, len(warn.lines)) == ("warn", False, 3)
    assert (oops.kind, oops.fatal, "in vfio_guilty" in oops.title) == ("oops", True, True)


def test_panic_whose_oops_was_not_seen_is_its_own() -> None:
    """A panic because of an oops is not because of a WARN; nor is any because of what is long past."""
    assert [one.kind for one in read_open(*WARN, PANIC).splats] == ["warn", "panic"]
    chatter = [f"chatter {number}" for number in range(99)]
    assert [one.kind for one in read_open(*OOPS, *chatter, PANIC).splats] == ["oops", "panic"]
    on_warn = "Kernel panic - not syncing: kernel: panic_on_warn set ..."
    (warn,) = read_open(*WARN[:2], on_warn).splats
    assert (warn.kind, warn.fatal) == ("warn", True)


@pytest.mark.parametrize("stamp", ["", "[    1.000000][   T55] "])
def test_splat_whose_head_was_dropped(stamp: str) -> None:
    """What printk dropped may have been anything, so the rest of a splat is bad and says so."""
    detector = Detector()
    detector.feed(f"{stamp}** 99 printk messages dropped **", 0)
    for message in ("vfio-pci: enabled", "Modules linked in:", *OOPS[1:]):
        detector.feed(f"[    1.000000][   T55] {message}", 40)
    (found,) = detector.splats
    assert (found.kind, found.fatal, found.offset) == ("headless", True, 0)
    said = "a splat whose head was lost: ** 99 printk messages dropped **, in vfio_guilty"
    assert found.title == said


def test_dropped_messages_alone_are_no_splat() -> None:
    """Nor is the stack trace that somebody asked for after them, nor the code of a program that died."""
    drop = "** 9 printk messages dropped **"
    assert read_open(drop, "NMI backtrace for cpu 0", "RIP: 0010:a+0x1/0x2").splats == ()
    assert read_open(drop, "sh[9]: segfault at 0 ip 0", "Code: 00 01").splats == ()
    dump = (
        "FAULT_INJECTION: forcing a failure.",
        "CPU: 1 PID: 5 Comm: x",
        "Call Trace:",
        " <TASK>",
        " a+0x1/0x2",
    )
    assert read_open("** 9 printk messages dropped **", *dump, " </TASK>", "RIP: 0033:0x7f").splats == ()


def test_stall_has_the_stack_of_the_cpu_that_stalls() -> None:
    """It does not close at the first stack trace, which is that of RCU's own thread."""
    detector = read_open(
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: rcu_preempt kthread starved for 20999 jiffies! g5 f0x0",
        "rcu: RCU grace-period kthread stack dump:",
        "task:rcu_preempt     state:R  running task",
        "Call Trace:",
        " <TASK>",
        " rcu_gp_fqs_loop+0x100/0x500",
        " </TASK>",
        "rcu: Stack dump where RCU GP kthread last ran:",
        "Sending NMI from CPU 1 to CPUs 0:",
        "NMI backtrace for cpu 0",
        "RIP: 0010:vfio_spin+0x12/0x40",
        "Call Trace:",
        " <TASK>",
        " vfio_spin+0x12/0x40",
        " </TASK>",
        "vfio-pci 0000:00:04.0: something else",
    )
    (found,) = detector.splats
    assert (found.kind, len(found.lines), detector.settled) == ("rcu-stall", 16, True)
    assert found.title == "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks, in vfio_spin"


def test_two_cpus_print_at_once() -> None:
    """Each line goes to the splat of its caller, if the kernel tells who that is."""
    detector = Detector()
    other = [line.replace("vfio_", "iommufd_") for line in OOPS]
    for mine, theirs in zip(OOPS, other, strict=True):
        detector.feed(f"[    1.000000][   T55] {mine}", 0)
        detector.feed(f"[    1.000000][   T66] {theirs}", 0)
    first, second = detector.splats
    assert len(first.lines) == len(second.lines) == len(OOPS)
    assert (first.title[-11:], second.title[-14:]) == ("vfio_guilty", "iommufd_guilty")


def test_line_of_another_after_cut_here_is_no_title() -> None:
    """What says what happened is known by its words, and may stand before `cut here` too."""
    link = "e1000: eth0 NIC Link is Up 1000 Mbps"
    bug = ("kernel BUG at lib/list_debug.c:62!", *OOPS[1:])
    (found,) = read_open(WARN[0], link, *bug).splats
    assert found.title == "kernel BUG at lib/list_debug.c:62!, in vfio_guilty"
    said = "list_del corruption. prev->next should be ffff888000000001, but was dead000000000100"
    for order in ((said, WARN[0]), (WARN[0], said)):
        (found,) = read_open(*order, *bug).splats
        assert found.title == f"{said}, in vfio_guilty"
        assert found.lines[0].endswith(order[0])


def test_older_line_is_no_title() -> None:
    """A line that says something else some lines earlier is not part of the splat."""
    (found,) = read_open("workqueue: some notice", "vfio-pci: enabled", *WARN).splats
    assert found.lines[0].endswith(WARN[0])
    assert found.title == WARN[1]


@pytest.mark.parametrize("callers", [True, False])
@pytest.mark.parametrize("name", ["console-warn.txt", "console-oops.txt", "console-kasan.txt"])
def test_kernel_without_time_stamps_is_heard(name: str, callers: bool) -> None:
    """As long as no line has one, nothing tells a program's lines apart, and a splat is a splat."""
    stamped = read(name)
    detector = Detector()
    for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines():
        caller, message = splatpolicy.split(line)
        detector.feed(f"[{caller:>6}] {message}" if callers and caller else message, 0)
    assert [one.kind for one in detector.splats] == [one.kind for one in stamped.splats]
    assert [one.case for one in detector.splats] == [one.case for one in stamped.splats]


def test_message_of_a_kernel_without_time_stamps_is_heard() -> None:
    detector = Detector()
    said = "refcount_t: underflow; use-after-free."
    for message in (WARN[0], said, *WARN[1:]):
        detector.feed(message, 0)
    (found,) = detector.splats
    assert (found.title, len(found.lines)) == (f"{said.rstrip('.')}, in boot_thing", 4)


@pytest.mark.parametrize(
    ("caller", "others"), [("[  T200]", ()), ("", ()), ("", ("e1000: eth0 NIC Link is Up", "systemd[1]: hi"))]
)
def test_stack_without_a_tag_at_its_end(caller: str, others: tuple[str, ...]) -> None:
    """As on arm64: what comes after it is not part of the splat; another CPU's line does not end it."""
    trace = ("Call trace:", " vfio_guilty+0x30/0x78 (P)", *others, " vfio_caller+0x2c/0x78")
    after = ("vfio-pci 0000:00:04.0: reset", "a", "b", "c", "d")
    detector = Detector()
    for message in ("BUG: scheduling while atomic: probe/200/0x2", "Modules linked in:", *trace, *after):
        detector.feed(f"[    1.000000]{caller} {message}", 0)
    (found,) = detector.splats
    assert detector.settled
    assert 2 + len(trace) <= len(found.lines) <= 2 + len(trace) + 2
    assert account_of("\n".join(found.lines)).functions == ("vfio_guilty", "vfio_caller")


def test_every_rule_has_a_reason() -> None:
    """Every entry of the policy gives its reason."""
    assert all(rule.reason for rule in splatpolicy.policy().deny)
    assert all(reason for _, reason in splatpolicy.policy().allow)


def test_a_bad_policy_names_its_line(tmp_path: Path) -> None:
    """An invalid pattern is a UsageError with file and line."""
    path = tmp_path / "policy.yaml"
    path.write_text("deny:\n  - {kind: x, pattern: '(', fatal: true, reason: y}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"policy\.yaml:2: not a regular expression"):
        splatpolicy.read_policy(path)


@pytest.mark.parametrize(
    "message",
    [
        "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010",
        "Unable to handle kernel paging request at virtual address dfff800000000001",
        "Internal error: Oops - BTI: 0000000034000002 [#1]  SMP",
        "Internal error: Oops - FPAC: 0000000072000000 [#1]  SMP",
        "SError Interrupt on CPU1, code 0x00000000be000011 -- SError",
        "Unhandled 64-bit el1h sync exception on CPU1, ESR 0x000000000be00011 -- SError",
    ],
)
def test_what_only_arm64_prints(message: str) -> None:
    """A fault, a failed check of a branch or a pointer, an asynchronous abort: each once, fatal."""
    dump = ("pc : edu_raise+0x10/0x20", "lr : edu_raise+0x8/0x20", "Call trace:", " edu_raise+0x10/0x20 (P)")
    whys = {"SError Interrupt": "Asynchronous SError Interrupt", "Unhandled": "Unhandled exception"}
    known = next((why for begin, why in whys.items() if message.startswith(begin)), "")
    why = known or "Oops: Fatal exception"
    panic = (f"Kernel panic - not syncing: {why}", f"---[ end Kernel panic - not syncing: {why} ]---")
    (splat,) = feed(message, *dump, *(() if known else ("---[ end trace 0 ]---",)), *panic)
    assert (splat.kind, splat.fatal) == ("oops", True)
    assert "edu_raise" in splat.title
