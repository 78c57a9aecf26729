# SPDX-License-Identifier: GPL-2.0-only
"""The `virtme` root: the live host root, read-only over 9p, made habitable by virtme-ng.

The only module that spells virtme-ng's options.  virtme-run is asked what it *would* run (`--dry-run
--show-command`), and of its answer we take what virtme-ng is good at: the shares, the kernel arguments of its
guest protocol and its init, which lays tmpfs over what must be writable and starts none of the host's own
services.
It is not run as QEMU's parent, because
 - it forks, so that QEMU would outlive a `kill -9` of the harness (the death signal reaches virtme-run only),
 - it puts its shares before our options, and what precedes an IOMMU on the command line bypasses it,
 - it adds a watchdog and six virtio-serial controllers, and picks microvm or i440fx when KVM works.

Nothing stays behind: 9p shares need no daemon (`--force-9p`), and `--mods none` needs no initramfs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

from harness import process
from harness.deadline import Deadline
from harness.errors import InfraError
from harness.machine.roots import GUEST_DIR, RootParts

GUEST_MODULES = "/run/vfio-harness/modules"
"""Where the modules are mounted; virtme-ng's init links /lib/modules/<release> to it."""

_ASK_SECONDS = 30.0

_OURS = re.compile(r"(console|earlyprintk|loglevel|panic|psmouse\.proto|TERM|virtme_stty_con)=|quiet$")
"""Kernel arguments of virtme-ng's that harness.machine.machine decides."""

_SHARABLE = re.compile(r"[a-zA-Z0-9_+ /.-]+$")
"""Paths virtme-run can share (virtme/commands/run.py: _SAFE_PATH_PATTERN)."""


@dataclasses.dataclass(frozen=True, slots=True)
class VirtmeRoot:
    """The developer's own tools inside the guest; nothing to prepare."""

    @property
    def name(self) -> str:
        return "virtme"

    @property
    def frozen(self) -> bool:
        return False

    def identity(self, guest_dir: Path) -> str:
        return ""

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        return _parts(guest_dir.resolve(), modules_dir.resolve() if modules_dir else None)


@functools.cache
def _parts(guest_dir: Path, modules_dir: Path | None) -> RootParts:
    argv = ask_argv(guest_dir, modules_dir)
    answer = process.run(argv, deadline=Deadline.after(_ASK_SECONDS))
    parts = read_command(answer.check("asking virtme-ng for its root").stdout)
    if modules_dir is None:
        return parts
    link = f"virtme_link_mods={GUEST_MODULES}"
    return dataclasses.replace(parts, kernel_args=(link, *parts.kernel_args))


def ask_argv(guest_dir: Path, modules_dir: Path | None) -> list[str]:
    """The virtme-run command that prints the QEMU command of a guest with our shares.

    Raises InfraError for a directory virtme-run cannot share.
    """
    shares = {GUEST_DIR: guest_dir}
    if modules_dir is not None:
        shares[GUEST_MODULES] = modules_dir
    for path in shares.values():
        if not _SHARABLE.match(str(path)):
            raise InfraError(
                f"virtme-ng cannot share {str(path)!r}",
                hint="use a path of letters, digits, blanks and +-_./ only",
            )
    argv = [sys.executable, "-m", "virtme.commands.run"]
    argv += ["--dry-run", "--show-command"]
    argv += ["--kimg", "/dev/null", "--mods", "none"]  # the kernel and its modules are our own business
    argv += ["--force-9p", "--disable-microvm", "--disable-kvm", "--no-dhcp"]
    argv += [f"--rodir={inside}={outside}" for inside, outside in shares.items()]
    if modules_dir is not None and not Path("/lib/modules").is_dir():
        # The link needs a place that exists, and the host's root is read-only: give it a writable layer.
        argv.append(f"--overlay-rwdir={Path('/lib').resolve()}")
    # Without its virtio ports virtme-ng's init runs the script on the console, and powers off when it ends.
    argv += ["--script-sh", f"exec /bin/sh {GUEST_DIR}/init.sh"]
    return argv


def read_command(printed: str) -> RootParts:
    """Pick shares and kernel arguments out of the QEMU command virtme-run printed.

    Raises InfraError when what makes a bootable root is not in it: virtme-ng has changed.
    """
    words = shlex.split(printed)
    options: list[str] = []
    devices: list[str] = []
    append = ""
    for option, value in itertools.pairwise(words):
        if option == "-fsdev":
            options += [option, value]
        elif option == "-device" and value.startswith("virtio-9p"):
            devices.append(value)
        elif option == "-append":
            append = value
    kernel_args = tuple(_cached(word) for word in shlex.split(append) if not _OURS.match(word))
    whole = (
        len(devices) * 2 == len(options)
        and any(device.endswith("mount_tag=/dev/root") for device in devices)
        and any(word.startswith("virtme.exec=") for word in kernel_args)
        and kernel_args[-1].startswith("init=")
    )
    if not whole:
        raise InfraError(
            f"virtme-ng {_version()} printed a command without a root in it: {printed.strip()[:200]!r}",
            hint="install virtme-ng 1.42",
        )
    return RootParts(options=tuple(options), devices=tuple(devices), kernel_args=kernel_args)


def _cached(word: str) -> str:
    """Let the guest keep what it read from its root, which nobody changes under a VM of minutes.

    Under TCG `python3 -c pass` takes 0.25 s so, 1.8 s without.  The shares stay uncached: they may be edited.
    """
    return f"{word},cache=loose" if word.startswith("rootflags=") else word


def _version() -> str:
    try:
        return metadata.version("virtme-ng")
    except metadata.PackageNotFoundError:
        return "(not installed)"
