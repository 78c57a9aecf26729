# SPDX-License-Identifier: GPL-2.0-only
"""The SSH keys of one VM: made for it and kept in its directory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CLIENT_KEY = "client_key"
AUTHORIZED_KEYS = "authorized_keys"
HOST_KEY = "host_key"
DROPBEAR_KEY = "dropbear_key"


def make_keys(directory: Path, host_key: Path | None = None) -> str:
    """Write client and server keys into *directory*, mode 0600; return the server's public key.

    *host_key* is the server's private key, for a restored guest, whose server has loaded it already.
    """
    client = Ed25519PrivateKey.generate()
    server = _read(host_key) if host_key else Ed25519PrivateKey.generate()
    _write(directory / CLIENT_KEY, _private(client))
    _write(directory / HOST_KEY, _private(server))
    _write(directory / DROPBEAR_KEY, _dropbear(server))
    _write(directory / AUTHORIZED_KEYS, _public(client) + b" vfio-harness\n")
    return _public(server).decode("ascii")


def _read(path: Path) -> Ed25519PrivateKey:
    key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _private(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _dropbear(key: Ed25519PrivateKey) -> bytes:
    """*key* as dropbear stores it: its type, then the seed and the public key as one string (dropbear
    src/ed25519.c buf_put_ed25519_priv_key())."""
    raw = key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return b"".join(struct.pack(">I", len(part)) + part for part in (b"ssh-ed25519", raw + public))


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
