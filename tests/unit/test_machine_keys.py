# SPDX-License-Identifier: GPL-2.0-only
"""The keys of a VM."""

from __future__ import annotations

from pathlib import Path

import paramiko

from harness.machine import keys


def test_keys_fit_each_other_and_are_private(tmp_path: Path) -> None:
    """paramiko reads both private keys, and they match the public keys."""
    public = keys.make_keys(tmp_path)
    server = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / keys.HOST_KEY))
    client = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / keys.CLIENT_KEY))
    assert public == f"ssh-ed25519 {server.get_base64()}"
    assert (tmp_path / keys.AUTHORIZED_KEYS).read_text().split()[1] == client.get_base64()
    for name in (keys.HOST_KEY, keys.CLIENT_KEY):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_every_vm_has_its_own(tmp_path: Path) -> None:
    """A second start in the same directory makes new keys."""
    assert keys.make_keys(tmp_path) != keys.make_keys(tmp_path)
