# SPDX-License-Identifier: GPL-2.0-only
"""Where a fleet is, as `--fleet` and `worker` take it, and whether its connections are encrypted."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from pathlib import Path
from typing import Any, Self

from harness.base import paths
from harness.base.errors import UsageError

MOST_LOCAL = 64
"""More worker processes than this on one host are a slip of the finger."""

_LOCAL = re.compile(r"local:0*(\d{1,9})\d*")
"""int() refuses numbers of more than 4300 digits; those beyond the ninth make no allowed number."""
_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9a-fA-F:]+\]|[^\[\]:/\s]+):(\d{1,9})")

_FORMS = "give tls://HOST:8786, tcp://HOST:8786, local:3 or a file FILE.yaml"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetAddress:
    """A fleet: one of the three is set."""

    local: int = 0
    """So many workers on this host."""
    scheduler: str = ""
    """The address of a scheduler that runs."""
    file: Path | None = None
    """A file that names a class of clusters."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the fleet that *text* names.  Raises UsageError."""
        if local := _LOCAL.fullmatch(text):
            workers = int(local[1])
            if not 1 <= workers <= MOST_LOCAL:
                raise UsageError(f"--fleet {text}: want 1 to {MOST_LOCAL} workers")
            return cls(local=workers)
        if text.endswith((".yaml", ".yml")):
            path = paths.expanded(text)
            if not path.is_file():
                raise UsageError(f"--fleet {text}: there is no such file", hint=_FORMS)
            return cls(file=path)
        return cls(scheduler=parse_scheduler("--fleet", text, _FORMS))


def parse_scheduler(
    option: str, text: str, forms: str = "give tls://HOST:8786 or tcp://127.0.0.1:8786"
) -> str:
    """Return *text* if it is the address of a scheduler.  Raises UsageError, which names *option*."""
    found = _ADDRESS.fullmatch(text)
    if not found or not 0 < int(found[3]) < 65536:
        raise UsageError(f"{option} {text}: this is no address of a scheduler", hint=forms)
    return text


def is_loopback(address: str) -> bool:
    """Return whether only this host can reach the scheduler *address*."""
    found = _ADDRESS.fullmatch(address)
    host = found[2].strip("[]") if found else ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(address: str) -> dict[str, Any]:
    """Return where a distributed.Worker of the scheduler *address* listens, as its arguments.

    By itself it listens on all interfaces.  Its web pages are never encrypted.
    """
    found = _ADDRESS.fullmatch(address) if is_loopback(address) else None
    host = {"host": found[2].replace("localhost", "127.0.0.1")} if found else {}
    return {**host, "dashboard_address": "127.0.0.1:0"}


def check_encrypted(option: str, address: str, *, insecure: bool, keys: Path | None) -> str:
    """Refuse an address that is neither encrypted nor this host's, unless *insecure*.

    A scheduler runs whatever code it is sent.  Returns the warning to print first; empty if there is none.
    """
    if address.startswith("tls:"):
        if keys is None:
            hint = "make them with: vfio-harness fleet keys DIR"
            raise UsageError(f"{option} {address} needs certificates: give --fleet-keys DIR", hint=hint)
        return ""
    if is_loopback(address):
        return ""
    if not insecure:
        raise UsageError(
            f"{option} {address} is not encrypted: whoever reaches it can run programs as you",
            hint="use tls:// with --fleet-keys DIR; on a network that you trust: --insecure",
        )
    return unencrypted(address)


def unencrypted(address: str) -> str:
    """Return the warning about a fleet without encryption."""
    return f"WARNING: {address} is not encrypted (--insecure): whoever reaches it can run programs as you"
