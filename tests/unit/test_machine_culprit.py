# SPDX-License-Identifier: GPL-2.0-only
"""Which function a splat names, in the formats of several kernels and architectures."""

from __future__ import annotations

import pytest

from harness.machine.culprit import Account, explain, function_in
from harness.results.fingerprint import fingerprint


def report(*messages: str, caller: str = "[  T200]") -> list[str]:
    return [f"[   10.000001]{caller} {message}" for message in messages]


def trace(*names: str) -> tuple[str, ...]:
    return ("Call Trace:", " <TASK>", *(f" {name}+0x1/0x2" for name in names), " </TASK>")


def account(*messages: str) -> Account:
    return explain(report(*messages))


@pytest.mark.parametrize(
    "line",
    [
        " vfio_spin+0x12/0x40",
        " [<ffffffff81a05b4c>] vfio_spin+0x12/0x40",
        "RIP: 0010:vfio_spin+0x12/0x40",
        "pc : vfio_spin+0x12/0x40",
        "epc : vfio_spin+0x12/0x40",
        "PC is at vfio_spin+0x12/0x40",
        "NIP [c00000000022d79c] vfio_spin+0x12/0x40",
        "[c000000049a87780] [c000000001385b4c] vfio_spin+0x12/0x40 (unreliable)",
        "[<80de7abc>] (vfio_spin) from [<807a02bc>] (vfio_ioctl+0x170/0x20c)",
        " vfio_spin from vfio_ioctl+0x170/0x20c",
    ],
)
def test_frame_of_any_architecture(line: str) -> None:
    assert function_in(line) == "vfio_spin"


@pytest.mark.parametrize(
    "line", [" ? vfio_spin+0x12/0x40", "lr : vfio_spin+0x12/0x40", "vfio-pci from the host", "a b from c"]
)
def test_what_is_no_frame(line: str) -> None:
    assert function_in(line) == ""


def test_what_an_interrupt_interrupted_is_not_to_blame() -> None:
    """Nor does it make another bug of one."""

    def of(*interrupted: str) -> list[str]:
        names = ("vfio_timer", "call_timer_fn", "handle_softirqs", "irq_exit_rcu", "asm_sysvec_apic_timer")
        return report("BUG: KASAN: slab-use-after-free in vfio_timer+0x1/0x2", *trace(*names, *interrupted))

    assert explain(of("iommufd_map", "iommufd_ioctl")).functions == ("vfio_timer",)
    assert fingerprint("\n".join(of("a", "b"))) == fingerprint("\n".join(of("c")))


def test_stack_begins_where_the_first_line_says() -> None:
    """What another CPU without a caller prints before it does not count."""
    found = account(
        "WARNING: CPU: 0 PID: 1 at drivers/vfio/a.c:3 vfio_guilty+0x1/0x2",
        *trace("e1000_watchdog", "__warn", "asm_exc_invalid_op", "vfio_guilty", "vfio_caller"),
    )
    assert found.functions == ("vfio_guilty", "vfio_caller")


@pytest.mark.parametrize(
    ("names", "innermost", "outermost"),
    [
        # A page fault is the task's own work.
        (("vfio_fault", "handle_mm_fault", "asm_exc_page_fault", "vfio_copy"), "vfio_fault", "vfio_copy"),
        # The scheduler ran on the way back from an interrupt.
        (
            ("pick_next", "__schedule", "preempt_schedule_irq", "asm_sysvec_x", "vfio_spin"),
            *2 * ("vfio_spin",),
        ),
        # arm64 has several functions on the way in.
        (("el1_interrupt", "el1h_64_irq_handler", "el1h_64_irq", "vfio_spin"), *2 * ("vfio_spin",)),
    ],
)
def test_stall_names_the_work_that_does_not_end(
    names: tuple[str, ...], innermost: str, outermost: str
) -> None:
    watchdog = ("dump_stack", "rcu_dump_cpu_stacks", "asm_sysvec_apic_timer_interrupt")
    found = account(
        "rcu: INFO: rcu_preempt self-detected stall on CPU", *trace(*watchdog, *names, "x64_sys_call")
    )
    assert f"in {innermost}" in found.title
    assert found.functions[0] == outermost


def test_rcu_thread_of_old_kernels_does_not_stall() -> None:
    """Up to 4.18 its stack has no `rcu: ` before it."""
    found = account(
        "INFO: rcu_sched self-detected stall on CPU",
        "RCU grace-period kthread stack dump:",
        *("Call Trace:", " schedule+0x1/0x2", " rcu_gp_kthread+0x1/0x2", "NMI backtrace for cpu 0"),
        *trace("dump_stack", "apic_timer_interrupt", "vfio_spin"),
    )
    assert found.functions == ("vfio_spin",)


def test_overflown_stack_of_arm64() -> None:
    """It names the work that used the stack up, not the function in which it ended."""
    found = account(
        "Insufficient stack space to handle exception!",
        "pc : vfio_leaf+0x4/0x8",
        "Kernel panic - not syncing: kernel stack overflow",
        *trace(
            "dump_stack",
            "panic",
            "handle_bad_stack",
            "__bad_stack",
            "vfio_leaf",
            *("vfio_loop",) * 9,
            "vfio_ioctl",
        ),
    )
    assert found.functions[0] == "vfio_ioctl"


LOCKS_HELD = (
    " #0: ffff888 (a){++++}-{3:3}, at: vfio_holder+0x5/0x9",
    " #1: ffff888 (b), at: vfio_taker+0x5/0x9",
)


def test_lock_that_is_only_held_is_not_to_blame() -> None:
    found = account(
        "WARNING: inconsistent lock state",
        "probe/1 [HC0[0]:SC0[0]:HE0:SE1] takes:",
        "ffff888 (b){?.-.}-{2:2}, at: vfio_taker+0x5/0x9",
        "{IN-HARDIRQ-W} state was registered at:",
        "  lock_acquire+0x1/0x2",
        "  vfio_irq+0x1/0x2",
        *LOCKS_HELD,
        *trace("dump_stack", "mark_lock", "vfio_caller"),
    )
    assert found.functions == ("vfio_taker", "vfio_caller")
    assert found.title == "WARNING: inconsistent lock state, in vfio_taker, earlier in vfio_irq"


@pytest.mark.parametrize(
    "first", ["WARNING: lock held when returning to user space!", "[ BUG: probe/9 still has locks held! ]"]
)
def test_lock_that_is_still_held_is_to_blame(first: str) -> None:
    assert account(first, *LOCKS_HELD).functions == ("vfio_holder", "vfio_taker")


def test_deadlock_names_the_other_side() -> None:
    """Workqueue functions alone took the lock here; who flushes is in the chain."""
    found = account(
        "WARNING: possible circular locking dependency detected",
        "kworker/u8:2/43 is trying to acquire lock:",
        "ffff888 ((work_completion)(&x->work)){+.+.}, at: process_one_work+0x8/0x9",
        "-> #1 ((wq_completion)x){+.+.}:",
        "       flush_workqueue+0x1/0x2",
        "       vfio_remove+0x1/0x2",
        "-> #0 ((work_completion)(&x->work)){+.+.}:",
        "       __lock_acquire+0x1/0x2",
        *trace("dump_stack", "print_circular_bug", "process_one_work", "worker_thread"),
    )
    assert found.title.endswith(", earlier in vfio_remove")


WARNING = "WARNING: drivers/vfio/a.c:12 at vfio_guilty+0x1/0x2, CPU#1: probe/200"
BODY = ("Modules linked in:", "CPU: 1 UID: 0 PID: 200 Comm: probe", *trace("vfio_guilty"))


def test_message_of_a_warning_is_its_title() -> None:
    """Newer kernels print it after the first line; its caller shows that it belongs there."""
    said = "container has 3 users left"
    for lines in ((said, WARNING), (WARNING, said)):
        assert (
            account("------------[ cut here ]------------", *lines, *BODY).title == f"{said}, in vfio_guilty"
        )
    assert account(WARNING, *BODY).title == WARNING


def test_message_of_a_warning_without_callers_is_known_by_its_words() -> None:
    """There the line may be of another CPU; neither case makes another bug of a known one."""
    link = explain(report(WARNING, "e1000: eth0 NIC Link is Up", *BODY, caller=""))
    assert link.title == WARNING
    saturated = "refcount_t: saturated; leaking memory."
    assert (
        explain(report(WARNING, saturated, *BODY, caller="")).title
        == f"{saturated.rstrip('.')}, in vfio_guilty"
    )
    old = fingerprint("\n".join(report(saturated, WARNING, *BODY)))
    assert fingerprint("\n".join(report(WARNING, saturated, *BODY))) == old


def test_two_kinds_of_bug_in_one_function_differ() -> None:
    out, after = (
        "\n".join(report(f"BUG: KASAN: {kind} in vfio_guilty+0x1/0x2", *trace("vfio_guilty")))
        for kind in ("slab-out-of-bounds", "slab-use-after-free")
    )
    assert fingerprint(out) != fingerprint(after)


def test_name_of_a_hung_task_does_not_count() -> None:
    """A task may call itself anything, a line end included."""
    texts = [
        "\n".join(report(f"{task} blocked for more than 60 seconds.", *trace("__schedule", "vfio_wait")))
        for task in ("INFO: task probe:200", "INFO: task a b:3", "\N{REPLACEMENT CHARACTER} !:18088")
    ]
    assert len({fingerprint(text) for text in texts}) == 1


def test_data_race_is_known_by_its_first_line() -> None:
    """Which of the two comes first is chance."""
    reader = (
        "read to 0xffff88 of 8 bytes by task 200 on cpu 1:",
        " vfio_read+0x1/0x2",
        " vfio_ioctl+0x1/0x2",
    )
    writer = ("write to 0xffff88 of 8 bytes by task 201 on cpu 0:", " vfio_write+0x1/0x2")
    head, end = "BUG: KCSAN: data-race in vfio_read / vfio_write", "=" * 66
    one, other = (
        report(head, *first, *second, end) for first, second in ((reader, writer), (writer, reader))
    )
    assert fingerprint("\n".join(one)) == fingerprint("\n".join(other))
    assert explain(one).title == head


@pytest.mark.parametrize(
    "messages",
    [
        (
            "BUG kmalloc-64 (Not tainted): Poison overwritten",
            "Allocated in iommufd_alloc+0x1/0x2 age=5 cpu=1 pid=200",
            *trace(
                "dump_stack_lvl", "check_bytes_and_report", "check_object", "___slab_alloc", "vfio_guilty"
            ),
        ),
        (
            "BUG: KFENCE: use-after-free read in vfio_guilty+0x1/0x2",
            "Use-after-free read at 0xffff8880ba4e4f80 (in kfence-#61):",
            *(
                " vfio_guilty+0x1/0x2",
                "freed by task 200 on cpu 1 at 10.0s (0.01s ago):",
                " iommufd_free+0x1/0x2",
            ),
        ),
        (
            "Kernel panic - not syncing: Asynchronous SError Interrupt",
            *trace("vpanic", "arm64_serror_panic", "do_serror", "el1h_64_error", "vfio_guilty"),
        ),
    ],
)
def test_reporter_allocator_and_releaser_are_not_to_blame(messages: tuple[str, ...]) -> None:
    assert account(*messages).functions == ("vfio_guilty",)


@pytest.mark.parametrize(
    ("first", "heading"),
    [
        ("BUG: KASAN: slab-use-after-free in vfio_guilty+0x1/0x2", "Freed by task 200:"),
        ("BUG: KFENCE: use-after-free read in vfio_guilty+0x1/0x2", "freed by task 200 on cpu 1 at 10.0s:"),
        (
            "BUG: Bad page state in process probe  pfn:1",
            "page last allocated via order 0, migratetype Movable",
        ),
    ],
)
def test_what_happened_to_the_memory_before_is_told(first: str, heading: str) -> None:
    """It takes both to understand the splat; it does not decide which bug it is."""
    freed = (heading, *(f" {name}+0x1/0x2" for name in ("stack_trace_save", "kfree", "iommufd_release")))
    found = account(first, *trace("vfio_guilty"), *freed)
    assert found.title.endswith(", earlier in iommufd_release")
    assert found.functions == ("vfio_guilty",)
