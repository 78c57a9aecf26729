# SPDX-License-Identifier: GPL-2.0-only
"""Cause: why a guest was lost, a case did not run or a kernel is missing, as data.

A cause is named where it is known and travels with the error and the Result.  Nothing decides by the words of
a message, so that words can change freely.
"""

from __future__ import annotations

import enum


class Cause(enum.StrEnum):
    """The values are stored in results and reports: add, never rename."""

    # The guest did not come up.
    NO_BOOT = "no-boot"
    """The console did not reach the harness's process 1 in time."""
    INIT_FAILED = "init-failed"
    """Process 1 said that it cannot set the guest up."""
    NO_SSH = "no-ssh"
    """No SSH answer in time."""
    NO_AGENT = "no-agent"
    """The agent did not start, or cannot run cases."""
    WRONG_GUEST = "wrong-guest"
    """What answered is not what was asked for: nonce, build-id, devices or host key differ."""
    UNHEARD = "unheard"
    """Kernel messages do not reach the console with time stamps, so a splat would be missed."""
    BOOT_CRASH = "boot-crash"
    """The console shows that the kernel died or splatted before its guest was verified."""

    # A guest that had come up went away.
    PANICKED = "panicked"
    """The guest's kernel panicked."""
    QEMU_DIED = "qemu-died"
    """QEMU ended by itself or by a signal."""
    GUEST_RESET = "guest-reset"
    """The guest reset itself."""
    GUEST_OFF = "guest-off"
    """The guest powered itself off."""
    NO_ANSWER = "no-answer"
    """The guest stopped answering, or the connection to it broke."""
    STOOD_STILL = "stood-still"
    """A vCPU no longer runs."""
    LOST_VCPU = "lost-vcpu"
    """QEMU lost a vCPU in a way that no kernel can cause."""
    TIMED_OUT = "timed-out"
    """The work did not end before its timeout, or it failed after it had waited in vain."""

    # A case that did not run.
    NOT_APPLICABLE = "not-applicable"
    """The job lacks what the case needs."""
    DEADLINE = "deadline"
    """The run's deadline had passed."""
    STOPPED = "stopped"
    """The run was stopped or interrupted before the case started."""
    BY_WISH = "by-wish"
    """The user wished for other cases only: it does not reach the change (`run --affected`)."""
    NOT_REACHED = "not-reached"
    """Its program ended, or was lost, before the case started."""
    VANISHED = "vanished"
    """Its program did not report it."""
    WORKER_DIED = "worker-died"
    """The process that ran it died."""
    NO_WORKER = "no-worker"
    """No worker of the fleet could run it."""
    NO_CASE = "no-case"
    """None of the requested cases exists in this tree."""

    # Why a kernel is missing.
    COMPILER = "compiler"
    """The compiler, assembler or linker refused this source."""
    KCONFIG = "kconfig"
    """Kconfig refused the configuration, or this tree cannot express it."""
    HOST = "host"
    """The host failed: no space, memory, processes, files, I/O, tools."""
    SOURCE = "source"
    """The source could not be fetched, verified or checked out."""
    KERNEL_MISSING = "kernel-missing"
    """The kernel is not in the store and nothing builds it."""
    ROOT_MISSING = "root-missing"
    """A disk of the image root is not in the store, and the disk that this host would make differs."""
    HARNESS = "harness"
    """The harness itself failed."""
