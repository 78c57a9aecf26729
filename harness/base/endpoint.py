# SPDX-License-Identifier: GPL-2.0-only
"""Endpoint: what a machine says about the SSH server of its guest, and a client of that server needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a guest's SSH server listens and how both sides prove who they are."""

    host: str
    port: int
    user: str
    client_key: Path
    """Private key file, OpenSSH format, ed25519."""
    host_key: str
    """The server's public key in one OpenSSH line: `ssh-ed25519 AAAA...`."""
