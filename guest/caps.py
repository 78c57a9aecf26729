# SPDX-License-Identifier: GPL-2.0-only
"""Drop privileges for real: capset(2) on every set of the calling task, or a change to another user."""

from __future__ import annotations

import ctypes
import os

from guest import libc

# include/uapi/linux/capability.h
CAP_DAC_OVERRIDE = 1
CAP_SYS_RAWIO = 17
CAP_IPC_LOCK = 14
CAP_SYS_RESOURCE = 24
_VERSION_3 = 0x20080522

NOBODY = 65534


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def _get() -> tuple[int, int, int]:
    header = _Header(_VERSION_3, 0)
    data = (_Data * 2)()
    libc.call("capget", ctypes.byref(header), ctypes.byref(data))
    low, high = data[0], data[1]
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _set(effective: int, permitted: int, inheritable: int) -> None:
    header = _Header(_VERSION_3, 0)
    data = (_Data * 2)()
    for index, shift in ((0, 0), (1, 32)):
        data[index] = _Data(
            effective >> shift & 0xFFFFFFFF,
            permitted >> shift & 0xFFFFFFFF,
            inheritable >> shift & 0xFFFFFFFF,
        )
    libc.call("capset", ctypes.byref(header), ctypes.byref(data))


def has(capability: int) -> bool:
    """Return whether the calling task has *capability* in its effective set."""
    return bool(_get()[0] >> capability & 1)


def drop(*capabilities: int) -> None:
    """Remove *capabilities* from the bounding, effective, permitted and inheritable sets.

    The process cannot get them back, so a case does this in its last step, or in a fork.
    """
    mask = 0
    for capability in capabilities:
        libc.prctl(libc.PR_CAPBSET_DROP, capability)
        mask |= 1 << capability
    effective, permitted, inheritable = _get()
    _set(effective & ~mask, permitted & ~mask, inheritable & ~mask)


def lower(*capabilities: int) -> None:
    """Remove *capabilities* from the effective set; raise_again() puts them back."""
    effective, permitted, inheritable = _get()
    for capability in capabilities:
        effective &= ~(1 << capability)
    _set(effective, permitted, inheritable)


def raise_again(*capabilities: int) -> None:
    """Put permitted *capabilities* back into the effective set."""
    effective, permitted, inheritable = _get()
    for capability in capabilities:
        effective |= 1 << capability
    _set(effective, permitted, inheritable)


def keep_only(capability: int, uid: int = NOBODY, gid: int = NOBODY) -> None:
    """Become another user with *capability* in effect and no other."""
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    become(uid, gid)
    _set(1 << capability, 1 << capability, 1 << capability)


def make_ambient(capability: int) -> None:
    """Make *capability* ambient, so that executed programs get it; it must be inheritable
    (capabilities(7))."""
    libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_RAISE, capability)


def become(uid: int = NOBODY, gid: int = NOBODY) -> None:
    """Become another user permanently; leaving root drops every capability."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
