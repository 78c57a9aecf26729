# SPDX-License-Identifier: GPL-2.0-only
"""Share: a directory of this host that a guest sees, over 9p.

QEMU serves 9p itself, and every kernel has it for the `virtme` root; virtiofs would need a daemon and memory
that both share.  A snapshot is saved before, and restored without, anything being mounted: QEMU saves no
machine with a mounted share (hw/9pfs/9p.c v9fs_attach()).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.base import paths
from harness.base.errors import UsageError

GUEST_SHARES = "/run/share"
"""Where guests mount them, each below its name."""

_MOST = 8
"""They are the functions of one slot."""

_MODES = {"ro": False, "rw": True}


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A directory, read-only for the guest or not."""

    directory: Path
    """Its absolute path."""
    writable: bool

    @property
    def point(self) -> str:
        """Its path in the guest."""
        return f"{GUEST_SHARES}/{self.directory.name}"


def read_share(word: str) -> Share:
    """Read `DIR[:rw]`; `:ro` may be given too.  Raises UsageError for what cannot be shared."""
    path, _, mode = word.rpartition(":")
    if not path or mode not in _MODES:
        if path and Path(path).is_dir() and not Path(word).exists():
            raise UsageError(f"--share {word}: there is no mode {mode!r}", hint="rw lets the guest write")
        path, mode = word, "ro"
    if not path:
        raise UsageError("--share: the directory's name is empty")
    # A link keeps its name, by which two directories of one name can be told apart.
    share = Share(Path(os.path.abspath(paths.expanded(path))), _MODES[mode])  # noqa: PTH100
    fault = _fault(share)
    if fault is not None:
        raise UsageError(f"--share: {fault[0]}", hint=fault[1])
    return share


def _fault(share: Share) -> tuple[str, str | None] | None:
    """Return why *share* cannot be shared, and what to do; None if it can."""
    directory = share.directory
    if not os.path.lexists(directory):
        return f"there is no {directory}", None
    if not directory.is_dir():
        return f"{directory} is not a directory", f"share {directory.parent}"
    if not directory.name:
        return "/ has no name in the guest", "--root virtme shows this host's root in its place"
    if not directory.name.isprintable():
        return f"the name {directory.name!r} is not printable UTF-8", "share it through a link"
    if not os.access(directory, os.R_OK | os.X_OK):
        return f"{directory} is not readable", None
    if share.writable and not os.access(directory, os.W_OK):
        return f"{directory} is not writable", "leave :rw out"
    return None


def read_shares(words: Sequence[str]) -> tuple[Share, ...]:
    """Read all --share options.  Raises UsageError for one that is wrong, and for a name that comes twice."""
    shares = tuple(map(read_share, words))
    seen: dict[str, Share] = {}
    for share in shares:
        other = seen.setdefault(share.point, share)
        if other is not share:
            message = f"--share: {other.directory} and {share.directory} would both be {share.point}"
            raise UsageError(message, hint="share one through a link with another name")
    if len(shares) > _MOST:
        raise UsageError(f"--share: at most {_MOST} directories, not {len(shares)}")
    return shares


def tag(number: int) -> str:
    """Return what QEMU and the guest call share *number*, and its link in the VM's directory."""
    return f"share{number}"


def arguments(shares: Sequence[Share], slot: int) -> Iterator[str]:
    """Return QEMU's options for *shares*, as functions of *slot*.

    QEMU gets a link in its working directory: a path may contain its option syntax, and a snapshot is the
    same whichever directory is shared.
    """
    for number, share in enumerate(shares):
        name = tag(number)
        # `none`: files have the owner and mode that the guest gives them, as far as QEMU's user may do that.
        backend = f"local,id={name},path={name},security_model=none,multidevs=remap"
        yield from ("-fsdev", backend if share.writable else f"{backend},readonly=on")
        where = f"bus=pcie.0,addr={slot:#x}.{number},multifunction=on"
        yield from ("-device", f"virtio-9p-pci,fsdev={name},mount_tag={name},{where}")


def link(shares: Sequence[Share], directory: Path) -> None:
    """Make the links that arguments() names in the VM's *directory*.  Raises OSError."""
    for number, share in enumerate(shares):
        place = directory / tag(number)
        place.unlink(missing_ok=True)
        place.symlink_to(share.directory)


def mount_words(number: int, share: Share) -> tuple[str, ...]:
    """Return the command with which the guest mounts *share*."""
    # The largest message that the transport takes: 128 pages, less 3 (net/9p/trans_virtio.c).
    options = f"trans=virtio,version=9p2000.L,msize=512000{'' if share.writable else ',ro'}"
    return "mount", "-t", "9p", "-o", options, tag(number), share.point
