# SPDX-License-Identifier: GPL-2.0-only
"""How often what is tried: every number that says when the harness gives something another chance.

All attempts are kept and told.  Who carries them out: the Lab (LOST_TRIES, LOST_PROCESSOR_TRIES,
MOST_CONFIRMED), its JobVM (BOOT_TRIES), the scheduling of workers (WORKERS_PER_ITEM), and the session, which
tries once more at its end what had no chance (harness.session.remaining).
"""

LOST_TRIES = 2
"""A guest that is lost says nothing about the kernel: its work gets one more chance, which is counted."""

LOST_PROCESSOR_TRIES = 4
"""The same where it is certain that QEMU lost it: the emulator of 10.0.2 loses a processor once in some 200
to 300 seconds that it computes on a busy host, and a case may compute for 60."""

BOOT_TRIES = 2
"""A VM that does not come up is tried again, and told of: the host may have been busy, or the kernel may die
at one boot of many, which is no reason to leave all of its cases untried."""

MOST_CONFIRMED = 25
"""Failures of a job that one process tries again: a kernel that fails everywhere is bad, not flaky."""

WORKERS_PER_ITEM = 2
"""How many workers one item may cost."""
