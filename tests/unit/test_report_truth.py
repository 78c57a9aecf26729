# SPDX-License-Identifier: GPL-2.0-only
"""Reports say which failures are new and where they come from, and list each cause once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from report_night import GOLDEN, night
from report_sample import RUN, SPLAT, result

from harness.base.places import Line, Place
from harness.machine.splat import Detector
from harness.report import console, html, markdown, view
from harness.report.splats import essence
from harness.results import Background, Change, Comparison, Outcome, Run, reach_verdict
from harness.suites.registry import declared_cases

CASE = declared_cases()[0]


def failing(*cases: tuple[str, str], reason: str = "want 1, got 2", **fields: object) -> Run:
    """RUN with only these failures: addresses, each with its job."""
    found = [result(address, Outcome.FAIL, job=job, reason=reason, **fields) for address, job in cases]
    return dataclasses.replace(RUN, results=tuple(found))


def test_without_a_baseline_nothing_is_called_old() -> None:
    """Failures in a job's first run are not reported as "0 of them newly"."""
    run = failing(("probes/a/b", "j"))
    assert "1 case failed (job j has no baseline to tell what is new)" in reach_verdict(run, Comparison()).why
    # An other job that was lost has a run to be compared with; this one still has none.
    assert "newly" not in reach_verdict(run, Comparison(against={"lost": "run1"})).why
    for text in (
        console.render(run, Background(comparison=Comparison())),
        html.render(run, Background(comparison=Comparison())),
        markdown.render(run, Background(comparison=Comparison())),
    ):
        assert "no baseline: job j has no earlier run to compare with" in text


def test_a_baseline_is_told_per_job() -> None:
    """New failures are counted among those of jobs that have one."""
    run = failing(("probes/a/b", "old"), ("probes/a/c", "old"), ("probes/a/b", "fresh"))
    new = Change(job="old", address=run.results[0].address, before=None, after=run.results[0])
    comparison = Comparison(new_failures=(new,), against={"old": "run1"})
    assert "3 cases failed (1 of 2 newly; job fresh has no baseline)" in reach_verdict(run, comparison).why
    comparison = dataclasses.replace(comparison, against={"old": "run1", "fresh": "run1"})
    assert "3 cases failed (1 of them newly)" in reach_verdict(run, comparison).why
    assert view.no_baseline(run, comparison) == ""


def test_equal_failures_are_one_block() -> None:
    """A kernel that fails everywhere prints each cause once, with a count and the first addresses."""
    run = failing(*((f"probes/a/case{n}", "j") for n in range(283)))
    text = console.render(run)
    assert text.count("\nFAIL ") == 1
    assert "283 times for this cause; also probes/a/case1 [j], probes/a/case2 [j]," in " ".join(text.split())
    assert "and 279 more" in " ".join(text.split())
    assert html.render(run).count('<details class="case') == 1
    assert "probes/a/case282" in html.render(run).replace("/</span><b>", "/")
    assert markdown.render(run).count("**FAIL**") == 1


def test_causes_that_differ_are_not_one_block() -> None:
    """Another reason, another outcome, another splat, or no reason at all."""
    one = failing(("probes/a/b", "j")).results[0]
    others = (
        dataclasses.replace(one, reason="want 1, got 3"),
        dataclasses.replace(one, outcome=Outcome.TIMEOUT),
        dataclasses.replace(one, outcome=Outcome.CRASH, splat=SPLAT),
        dataclasses.replace(one, outcome=Outcome.CRASH, splat=SPLAT.replace("vfio_df_unbind", "kfree")),
        dataclasses.replace(one, reason=""),
        dataclasses.replace(one, reason="", job="k"),
    )
    results = [
        dataclasses.replace(case, address=dataclasses.replace(case.address, case=f"c{number}"))
        for number, case in enumerate((one, *others))
    ]
    groups = view.failure_groups(dataclasses.replace(RUN, results=tuple(results)))
    assert [len(group) for group in groups] == [1] * len(results)


def test_new_and_old_failures_are_not_one_block() -> None:
    """What is new is not hidden behind an old failure of the same cause."""
    run = failing(("probes/a/b", "j"), ("probes/a/c", "j"))
    news = frozenset({("j", run.results[1].address)})
    assert [len(group) for group in view.failure_groups(run, news)] == [1, 1]


@pytest.mark.parametrize("form", [console.render, html.render, markdown.render])
def test_a_failure_names_its_probe(form: object) -> None:
    """Its promise, what that cites in the kernel, and file and line of the probe."""
    text = form(failing((CASE.address, "j")), view.NOTHING)  # type: ignore[operator]
    plain = " ".join(text.replace("\\", "").replace("&#39;", "'").split())
    path, _, line = CASE.where.partition(":")
    source = (Path(__file__).parents[2] / path).read_text(encoding="utf-8").splitlines()
    assert source[int(line) - 1].startswith("@case")
    for words in (CASE.promise, CASE.cites, CASE.where):
        assert " ".join(words.split()) in plain


def test_an_oops_shows_where() -> None:
    """Title, RIP and the first frames; not the first three lines of a dump."""
    splat = """\
[    5.000001] BUG: kernel NULL pointer dereference, address: 0000000000000018
[    5.000002] #PF: supervisor read access in kernel mode
[    5.000003] #PF: error_code(0x0000) - not-present page
[    5.000004] PGD 0 P4D 0
[    5.000005] Oops: Oops: 0000 [#1] SMP NOPTI
[    5.000006] CPU: 0 UID: 0 PID: 80 Comm: python3 Not tainted 7.3.4 #3
[    5.000007] RIP: 0010:vfio_df_unbind+0x18/0x60
[    5.000008] Code: 90 90
[    5.000009] Call Trace:
[    5.000010]  <TASK>
[    5.000011]  ? __die+0x1e/0x60
[    5.000012]  vfio_df_close+0x18/0x60
[    5.000013]  __fput+0x1fa/0x540
[    5.000014]  </TASK>
"""
    assert essence(splat) == [
        "BUG: kernel NULL pointer dereference, address: 0000000000000018, in vfio_df_unbind",
        "RIP: 0010:vfio_df_unbind+0x18/0x60",
        "  vfio_df_close+0x18/0x60",
        "  __fput+0x1fa/0x540",
    ]


def test_frames_of_the_subsystem_come_first_and_the_source_follows() -> None:
    """A bug that shows in a helper is told where the subsystem calls it, with the lines around."""
    splat = """\
[    5.000001] BUG: kernel NULL pointer dereference, address: 0000000000000018
[    5.000002] RIP: 0010:rb_next+0x18/0x60
[    5.000003] Call Trace:
[    5.000004]  <TASK>
[    5.000005]  walk_all+0x18/0x60
[    5.000006]  vfio_df_close+0x18/0x60 [vfio]
[    5.000007]  </TASK>
"""
    code = ("{", "\twalk_all(df);", "}")
    own = Line(function="vfio_df_put", file="drivers/vfio/vfio.h", line=8, code=code, first=7)
    outer = Line(function="vfio_df_close", file="drivers/vfio/vfio_main.c", line=98, code=("x",), first=98)
    places = {
        "rb_next+0x18/0x60": Place(
            lines=(Line(function="rb_next", file="lib/rbtree.c", line=4, code=("y",)),)
        ),
        "vfio_df_close+0x18/0x60 [vfio]": Place(lines=(own, outer)),
        "walk_all+0x18/0x60": Place(reason="no time was left"),
    }
    assert essence(splat, places) == [
        "BUG: kernel NULL pointer dereference, address: 0000000000000018, in walk_all",
        "RIP: 0010:rb_next+0x18/0x60 lib/rbtree.c:4",
        "  vfio_df_put drivers/vfio/vfio.h:8 [inline]",
        "  vfio_df_close+0x18/0x60 [vfio] drivers/vfio/vfio_main.c:98",
        "  walk_all+0x18/0x60",
        "drivers/vfio/vfio.h:8 in vfio_df_put():",
        "      7  {",
        ">     8          walk_all(df);",
        "      9  }",
    ]


def test_lockdep_tells_where_both_locks_are_taken() -> None:
    """These lines are no frames of a stack trace, and say most."""
    lines = (GOLDEN / "console-lockdep.txt").read_text(encoding="utf-8").splitlines()[1:-1]
    taken = ("vfio_group_fops_unl_ioctl+0x6b/0x5d0", "vfio_device_open_file+0x31/0x1a0")
    places = {
        text: Place(lines=(Line(function=text.partition("+")[0], file="drivers/vfio/group.c", line=number),))
        for number, text in enumerate(taken, start=1)
    }
    assert essence("\n".join(lines), places) == [
        "WARNING: possible circular locking dependency detected, in vfio_group_fops_unl_ioctl",
        "  python3/101 is trying to acquire lock:",
        f"    ffff888004a11378 (&group->group_lock){{+.+.}}-{{4:4}}, at: {taken[0]} drivers/vfio/group.c:1",
        "  but task is already holding lock:",
        f"    ffff888004a22ae8 (&dev_set->lock){{+.+.}}-{{4:4}}, at: {taken[1]} drivers/vfio/group.c:2",
    ]


def test_lockdep_tells_who_took_the_locks_in_the_other_order() -> None:
    """The chain of earlier locks is half of the report; what lockdep calls #0 is the new one once more."""
    names = ("iommufd_ranges", "iommufd_allow", "iommufd_attach")
    places = {
        f"{name}+0x9/0x90": Place(
            lines=(Line(function=name, file="drivers/vfio/a.c", line=n, code=("x",), first=n),)
        )
        for n, name in enumerate(names, start=1)
    }
    splat = """\
[    5.0][  T90] WARNING: possible circular locking dependency detected
[    5.0][  T90] 7.3.4 #1 Not tainted
[    5.0][  T90] python3/90 is trying to acquire lock:
[    5.0][  T90] ffff888 (&ioas->mutex){+.+.}-{4:4}, at: iommufd_ranges+0x9/0x90
[    5.0][  T90]
[    5.0][  T90] but task is already holding lock:
[    5.0][  T90] ffff889 (&iopt->iova_rwsem){++++}-{4:4}, at: iommufd_ranges+0x9/0x90
[    5.0][  T90]
[    5.0][  T90] which lock already depends on the new lock.
[    5.0][  T90]
[    5.0][  T90] the existing dependency chain (in reverse order) is:
[    5.0][  T90]
[    5.0][  T90] -> #1 (&iopt->iova_rwsem){++++}-{4:4}:
[    5.0][  T90]        down_write+0x3a/0xd0
[    5.0][  T90]        iommufd_allow+0x9/0x90
[    5.0][  T90]        iommufd_attach+0x9/0x90
[    5.0][  T90]        iommufd_attach+0x9/0x90
[    5.0][  T90]        __x64_sys_ioctl+0x8b/0xc0
[    5.0][  T90]
[    5.0][  T90] -> #0 (&ioas->mutex){+.+.}-{4:4}:
[    5.0][  T90]        __mutex_lock+0x9f/0xe80
[    5.0][  T90]        iommufd_ranges+0x9/0x90
[    5.0][  T90]
[    5.0][  T90] other info that might help us debug this:
[    5.0][  T90]  *** DEADLOCK ***
[    5.0][  T90] Call Trace:
[    5.0][  T90]  <TASK>
[    5.0][  T90]  iommufd_ranges+0x9/0x90
[    5.0][  T90]  </TASK>
""".replace("5.0]", "5.000001]")
    assert essence(splat, places) == [
        "WARNING: possible circular locking dependency detected, in iommufd_ranges, earlier in iommufd_allow",
        "  python3/90 is trying to acquire lock:",
        "    ffff888 (&ioas->mutex){+.+.}-{4:4}, at: iommufd_ranges+0x9/0x90 drivers/vfio/a.c:1",
        "  but task is already holding lock:",
        "    ffff889 (&iopt->iova_rwsem){++++}-{4:4}, at: iommufd_ranges+0x9/0x90 drivers/vfio/a.c:1",
        "  -> #1 (&iopt->iova_rwsem){++++}-{4:4}:",
        "    iommufd_allow+0x9/0x90 drivers/vfio/a.c:2",
        "    iommufd_attach+0x9/0x90 drivers/vfio/a.c:3",
        "drivers/vfio/a.c:1 in iommufd_ranges():",
        ">     1  x",
    ]


HUNG = """\
[  196.241719][   T30] INFO: task python3:55 blocked for more than 61 seconds.
[  196.242085][   T30]       Tainted: G     U              7.3.4 #1
[  196.242181][   T30] "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
[  196.242273][   T30] task:python3         state:D stack:0     pid:55    tgid:55    ppid:53  flags:0x00080000
[  196.242632][   T30] Call Trace:
[  196.276258][   T30]  <TASK>
[  196.277381][   T30]  schedule+0x23/0x90
[  196.277431][   T30]  __mutex_lock.constprop.0+0x37e/0x7b0
[  196.277463][   T30]  vfio_pci_set_msi_trigger+0x7e/0x2a0
[  196.277582][   T30]  ? hrtimer_start_range_ns+0xa3/0xc0
[  196.335441][   T30]  vfio_device_fops_unl_ioctl+0x284/0x990
[  196.335749][   T30]  entry_SYSCALL_64_after_hwframe+0x4b/0x53
[  196.336307][   T30] RIP: 0033:0x7fdcdc5d8d6b
[  196.336637][   T30] RSP: 002b:00007ffcce71ff10 EFLAGS: 00000246 ORIG_RAX: 0000000000000010
[  196.336968][   T30]  </TASK>
[  196.337304][   T30] INFO: task python3:55 is blocked on a mutex likely owned by task python3:{owner}.
"""
OWNER = """\
[  196.337404][   T30] task:python3         state:S stack:0     pid:56    tgid:56    ppid:53  flags:0x00080000
[  196.337504][   T30] Call Trace:
[  196.337604][   T30]  <TASK>
[  196.337704][   T30]  schedule+0x23/0x90
[  196.337804][   T30]  vfio_pci_ioctl_reset+0x23/0x90
[  196.337904][   T30]  </TASK>
"""
LATER = "[  197.000000][    T1] vfio-pci 0000:00:05.0: enabling device (0000 -> 0002)\n"


@pytest.mark.parametrize("owner", [55, 56])
def test_hung_task_tells_who_holds_the_lock(owner: int) -> None:
    """The kernel says it below the stack; the program counter there is that of the system call."""
    text = HUNG.format(owner=owner) + OWNER * (owner == 56) + LATER
    detector = Detector()
    for line in text.splitlines():
        detector.feed(line, 0)
    (splat,) = detector.splats
    holder = ["  task:python3 state:S stack:0 pid:56 tgid:56 ppid:53 flags:0x00080000"]
    holder.append("    vfio_pci_ioctl_reset+0x23/0x90")
    assert essence("\n".join(splat.lines)) == [
        "INFO: task python3:55 blocked for more than 61 seconds, in vfio_pci_set_msi_trigger",
        "  task:python3 state:D stack:0 pid:55 tgid:55 ppid:53 flags:0x00080000",
        "    vfio_pci_set_msi_trigger+0x7e/0x2a0",
        f"  INFO: task python3:55 is blocked on a mutex likely owned by task python3:{owner}.",
        *holder * (owner == 56),
    ]


def test_frames_of_every_form_are_shown() -> None:
    """With the caller of CONFIG_PRINTK_CALLER, a compiler's suffix, and as KMSAN prints them."""
    splat = """\
[    5.000001][   T80] BUG: KMSAN: uninit-value in vfio_one+0x18/0x60
[    5.000002][   T80]  vfio_one.isra.0+0x18/0x60
[    5.000003][   T80]  vfio_two drivers/vfio/vfio_main.c:12 [inline]
[    5.000004][   T80]  vfio_three+0x1fa/0x540
"""
    assert essence(splat)[1:] == [
        "  vfio_one.isra.0+0x18/0x60",
        "  vfio_two drivers/vfio/vfio_main.c:12 [inline]",
        "  vfio_three+0x1fa/0x540",
    ]


def test_frames_that_only_report_are_left_out() -> None:
    """KASAN's own functions stand above those that use, allocate and free the memory."""
    splat = "\n".join((GOLDEN / "console-kasan.txt").read_text(encoding="utf-8").splitlines()[1:-2])
    object_at = "24 bytes inside of freed 1024-byte region [ffff888004c5a800, ffff888004c5ac00)"
    assert essence(splat) == [
        "BUG: KASAN: slab-use-after-free in vfio_group_fops_release+0x4c/0x120",
        "  Read of size 8 at addr ffff888004c5a818 by task python3/80",
        "    vfio_group_fops_release+0x4c/0x120",
        "  Allocated by task 78:",
        "    vfio_group_alloc+0x58/0x1f0",
        "  Freed by task 80:",
        f"  The buggy address is located {object_at}",
    ]
    assert essence("only\none line\n") == ["only", "one line"]


def test_builds_are_not_tests() -> None:
    """What the tests took is told apart from the whole run, which counts the builds."""
    run = dataclasses.replace(failing(("probes/a/b", "j")), tested=4.2)
    assert view.totals(run) == "1 case: 1 FAIL; tests took 4.2 s, the whole run 1 min 23 s"
    for text in (console.render(run), html.render(run), markdown.render(run)):
        assert "1 case in 1 min" not in text
        assert "tests took 4.2 s" in text


def test_the_first_screen_names_the_tree(tmp_path: Path) -> None:
    """Before any failure, without the digest of all files, which looks like a commit."""
    run, background = night(tmp_path)
    page = html.render(run, background)
    assert "tree: Debian linux-source-7.3 7.3.5-1" in page[: page.index("<main>")]
    assert "tree: Debian linux-source-7.3 7.3.5-1" in "\n".join(console.render(run).splitlines()[:3])
    job = dataclasses.replace(RUN.jobs[0], tree=f"v7.3-2-gdeadbeef {'ab' * 32}")
    assert view.trees(dataclasses.replace(RUN, jobs=(job,))) == "v7.3-2-gdeadbeef"
