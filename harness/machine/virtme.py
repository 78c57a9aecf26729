# SPDX-License-Identifier: GPL-2.0-only
"""The `virtme` root: the live root of the host, read-only over 9p, set up by virtme-ng.

The only module that knows virtme-ng's options.  virtme-run prints the command it would run (`--dry-run
--show-command`); from that come the shares, the kernel arguments of its guest protocol and its init, which
mounts tmpfs over what must be writable and starts none of the host's services.
QEMU is not started by virtme-run, because
 - it forks, so QEMU would outlive a `kill -9` of the harness (the death signal reaches only virtme-run),
 - it puts its shares before our options, and devices before an IOMMU on the command line bypass it,
 - it adds a watchdog and six virtio-serial controllers, and picks another machine type when KVM works.

Nothing needs cleaning up: 9p shares have no daemon (`--force-9p`), and `--mods none` makes no initramfs.
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

from harness.base import itself, process
from harness.base.deadline import Deadline
from harness.base.errors import InfraError
from harness.machine.rootparts import GUEST_DIR, RootParts

GUEST_MODULES = "/run/vfio-harness/modules"
"""The mount point of the modules; virtme-ng's init links /lib/modules/<release> to it."""

HIDDEN = ("/tmp", "/run")
"""Directories of the host that its guests do not see: virtme-ng's init mounts a tmpfs over them."""

_ASK_SECONDS = 30.0

_OURS = re.compile(r"(console|earlyprintk|loglevel|panic|psmouse\.proto|TERM|virtme_stty_con)=|quiet$")
"""virtme-ng's kernel arguments that harness.machine.machine sets itself."""

_SHARABLE = re.compile(r"[a-zA-Z0-9_+ /.-]+$")
"""Paths that virtme-run can share (virtme/commands/run.py: _SAFE_PATH_PATTERN)."""


@dataclasses.dataclass(frozen=True, slots=True)
class VirtmeRoot:
    """The host's own programs in the guest; nothing to prepare."""

    @property
    def name(self) -> str:
        return "virtme"

    @property
    def frozen(self) -> bool:
        return False

    def disks(self, guest_dir: Path) -> dict[str, str]:
        return {}

    def has(self, path: str) -> bool:
        return not path.startswith(tuple(f"{hidden}/" for hidden in HIDDEN)) and Path(path).exists()

    def parts(self, guest_dir: Path, modules_dir: Path | None, selftests_dir: Path | None) -> RootParts:
        return _parts(guest_dir.resolve(), modules_dir.resolve() if modules_dir else None)


@functools.cache
def _parts(guest_dir: Path, modules_dir: Path | None) -> RootParts:
    argv = ask_argv(guest_dir, modules_dir)
    answer = process.run(argv, env=itself.env(), deadline=Deadline.after(_ASK_SECONDS))
    parts = read_command(answer.check("asking virtme-ng for its root").stdout)
    if modules_dir is None:
        return parts
    link = f"virtme_link_mods={GUEST_MODULES}"
    return dataclasses.replace(parts, kernel_args=(link, *parts.kernel_args))


def ask_argv(guest_dir: Path, modules_dir: Path | None) -> list[str]:
    """Return the virtme-run command that prints the QEMU command of a guest with our shares.

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
    argv += ["--kimg", "/dev/null", "--mods", "none"]  # we provide the kernel and its modules
    argv += ["--force-9p", "--disable-microvm", "--disable-kvm", "--no-dhcp"]
    argv += [f"--rodir={inside}={outside}" for inside, outside in shares.items()]
    if modules_dir is not None and not Path("/lib/modules").is_dir():
        # The link needs an existing directory, and the host's root is read-only: add a writable layer.
        argv.append(f"--overlay-rwdir={Path('/lib').resolve()}")
    # Without virtio ports virtme-ng's init runs the script on the console and powers off when it ends.
    argv += ["--script-sh", f"exec /bin/sh {GUEST_DIR}/init.sh"]
    return argv


def read_command(printed: str) -> RootParts:
    """Return the shares and kernel arguments in the QEMU command that virtme-run printed.

    Raises InfraError when they make no bootable root: virtme-ng has changed.
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
            f"virtme-ng {_version()} printed a command without a root: {printed.strip()[:200]!r}",
            hint="install virtme-ng 1.42",
        )
    return RootParts(options=tuple(options), devices=tuple(devices), kernel_args=kernel_args)


def _cached(word: str) -> str:
    """Let the guest cache its root, which does not change while a VM runs.

    Under TCG `python3 -c pass` takes 0.25 s with the cache, 1.8 s without.  Shares stay uncached: users edit
    them.
    """
    return f"{word},cache=loose" if word.startswith("rootflags=") else word


def _version() -> str:
    try:
        return metadata.version("virtme-ng")
    except metadata.PackageNotFoundError:
        return "(not installed)"
