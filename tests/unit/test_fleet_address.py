# SPDX-License-Identifier: GPL-2.0-only
"""Where a fleet may be, and that nothing but loopback goes unencrypted by accident."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler, Worker

from harness.base.errors import HostError, UsageError
from harness.fleet.address import FleetAddress, check_encrypted, is_loopback, listening, parse_scheduler
from harness.fleet.keys import make_keys, security


def test_forms(tmp_path: Path) -> None:
    file = tmp_path / "slurm.yaml"
    file.write_text("class: x\n", encoding="utf-8")
    assert FleetAddress.parse("local:3").local == 3
    assert FleetAddress.parse("tls://build1:8786").scheduler == "tls://build1:8786"
    assert FleetAddress.parse("tcp://[::1]:8786").scheduler == "tcp://[::1]:8786"
    assert FleetAddress.parse(str(file)).file == file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local:0", "--fleet local:0: want 1 to 64 workers"),
        ("local:65", "--fleet local:65: want 1 to 64 workers"),
        ("local:9999999999", "--fleet local:9999999999: want 1 to 64 workers"),
        ("local", "--fleet local: this is no address of a scheduler"),
        ("build1:8786", "--fleet build1:8786: this is no address of a scheduler"),
        ("http://build1:8786", "--fleet http://build1:8786: this is no address of a scheduler"),
        ("tcp://build1", "--fleet tcp://build1: this is no address of a scheduler"),
        ("tcp://build1:99999", "--fleet tcp://build1:99999: this is no address of a scheduler"),
        ("no.yaml", "--fleet no.yaml: there is no such file"),
    ],
)
def test_bad_forms(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        FleetAddress.parse(text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.9.1:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("tcp://localhost.example:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://0.0.0.0:1", False),
    ],
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_worker_of_this_host_listens_on_loopback_alone(host: str, tmp_path: Path) -> None:
    """Whoever reaches a worker without TLS can run programs as its user."""
    pages: dict[str, Any] = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}

    async def addresses() -> list[str]:
        async with Scheduler(host=f"tcp://{host}:0", **pages) as scheduler:
            address = f"tcp://{host}:{scheduler.address.rpartition(':')[2]}"
            options: dict[str, Any] = {"dashboard": False, "local_directory": str(tmp_path)}
            async with Worker(address, nthreads=1, memory_limit=0, **options, **listening(address)) as worker:
                sockets = worker.http_server._sockets.values()
                pages_at = [f"tcp://{one.getsockname()[0]}:1" for one in sockets]
                return [*(one.listen_address for one in worker.listeners), *pages_at]

    found = asyncio.run(addresses())
    assert len(found) == 2
    assert all(map(is_loopback, found)), found


def test_a_worker_of_other_hosts_can_be_reached() -> None:
    assert listening("tls://build1:8786") == {"dashboard_address": "127.0.0.1:0"}


def test_plain_tcp_needs_a_word(tmp_path: Path) -> None:
    far = parse_scheduler("worker", "tcp://10.0.0.1:8786")
    with pytest.raises(UsageError, match=r"worker tcp://10.0.0.1:8786 is not encrypted: .* run programs as"):
        check_encrypted("worker", far, insecure=False, keys=tmp_path)
    assert check_encrypted("worker", far, insecure=True, keys=None).startswith("WARNING: ")
    assert check_encrypted("worker", "tcp://127.0.0.1:8786", insecure=False, keys=None) == ""
    with pytest.raises(UsageError, match="needs certificates: give --fleet-keys DIR"):
        check_encrypted("worker", "tls://10.0.0.1:8786", insecure=True, keys=None)
    assert check_encrypted("worker", "tls://10.0.0.1:8786", insecure=False, keys=tmp_path) == ""


def test_keys_are_private_and_of_one_authority(tmp_path: Path) -> None:
    fleet, other = tmp_path / "fleet", tmp_path / "other"
    ca, certificate, key = make_keys(fleet)
    make_keys(other)
    assert key.stat().st_mode & 0o777 == 0o600
    assert (fleet / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context(cafile=str(ca))
    context.load_cert_chain(certificate, key)
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(certificate, other / "fleet-key.pem")
    with pytest.raises(UsageError, match=r"has the ca\.pem of a fleet already"):
        make_keys(fleet)


def test_bad_keys_are_named(tmp_path: Path) -> None:
    assert security(None) is None
    with pytest.raises(UsageError, match=r"ca\.pem is missing"):
        security(tmp_path)
    make_keys(tmp_path / "fleet")
    assert security(tmp_path / "fleet").require_encryption is True
    (tmp_path / "fleet" / "fleet.pem").write_text("rubbish", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be used"):
        security(tmp_path / "fleet")


@pytest.mark.parametrize("name", ["ca-key.pem", "ca.pem", "fleet.pem", "fleet-key.pem"])
def test_a_key_that_is_there_is_named(name: str, tmp_path: Path) -> None:
    """One may be left of an attempt on a full disk, or point to nowhere."""
    (tmp_path / name).write_text("left", encoding="utf-8")
    with pytest.raises(UsageError, match=f"has the {name} of a fleet already"):
        make_keys(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(HostError, match=f"cannot write keys: {tmp_path / name}: File exists"):
        make_keys(tmp_path)
