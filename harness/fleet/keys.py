# SPDX-License-Identifier: GPL-2.0-only
"""Keys of a fleet: a certificate authority, and one certificate for schedulers, workers and clients.

Whoever has the certificate and its key is of the fleet; Dask checks no host names.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import HostError, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA, CERTIFICATE, KEY = "ca.pem", "fleet.pem", "fleet-key.pem"
_CA_KEY = "ca-key.pem"

_DAYS = 3650
_EARLY = datetime.timedelta(days=1)
"""A host whose clock is late takes the certificates all the same."""


def make_keys(directory: Path) -> tuple[Path, ...]:
    """Write a new authority and a certificate to *directory*; return the files for every host of the fleet.

    Raises UsageError if there are keys already, HostError when they cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    if found := [name for name in (CA, CERTIFICATE, KEY, _CA_KEY) if (directory / name).exists()]:
        raise UsageError(f"{directory} has the {found[0]} of a fleet already", hint="give another directory")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("vfio-harness fleet CA", ca_key, None, ca_key)
    certificate = _certificate("vfio-harness fleet", key, ca, ca_key)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, one in ((_CA_KEY, ca_key), (KEY, key)):
            _write(directory / name, _private(one), 0o600)
        for name, made in ((CA, ca), (CERTIFICATE, certificate)):
            _write(directory / name, _pem(made), 0o644)
    except OSError as error:
        raise HostError(f"cannot write keys: {error.filename or directory}: {error.strerror}") from error
    return tuple(directory / name for name in (CA, CERTIFICATE, KEY))


def _certificate(
    name: str, key: EllipticCurvePrivateKey, issuer: x509.Certificate | None, by: EllipticCurvePrivateKey
) -> x509.Certificate:
    """Return a certificate for *key* that *issuer*, or nobody but itself, signed *by* its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    is_ca = issuer is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    return builder.sign(by, hashes.SHA256())


def _private(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.touch(mode, exist_ok=False)
    path.write_bytes(data)


def security(directory: Path | None) -> Any:
    """Return Dask's Security with the keys in *directory*; None without one.

    Raises UsageError when a file is missing or no certificate.
    """
    import ssl

    from distributed.security import Security

    if directory is None:
        return None
    ca, certificate, key = (directory / name for name in (CA, CERTIFICATE, KEY))
    for path in (ca, certificate, key):
        if not path.is_file():
            raise UsageError(f"{path} is missing", hint=f"make it with: vfio-harness fleet keys {directory}")
    try:
        ssl.create_default_context(cafile=str(ca)).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"the certificates in {directory} cannot be used: {error}") from error
    roles = {
        f"tls_{role}_{what}": str(path)
        for role in ("client", "worker", "scheduler")
        for what, path in (("cert", certificate), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=str(ca), **roles)
