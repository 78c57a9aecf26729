# SPDX-License-Identifier: GPL-2.0-only
"""Read a vmlinux, and verify that a build made the requested one before it is stored under its key."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import HostError
from harness.kernel.kconfig import ResolvedConfig

_CONFIG_BEGIN, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
"""Markers around the compressed configuration (kernel/configs.c)."""

_BANNER, _RELEASE = b"Linux version ", re.compile(rb"([\w.+~-]+) \(")
"""init/version-timestamp.c."""

_TOOLCHAIN = re.compile(rb"[^()]*\) \((.*), ([^,]*)\) #")
"""In the same line, after the release: who compiled it, the compiler and the linker."""

_LONGEST_RELEASE = 80
_LONGEST_BANNER = 512

_GZIP = 16 + zlib.MAX_WBITS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What a vmlinux says about itself."""

    release: str
    """What `uname -r` will say; empty when it has no banner."""
    compiler: str
    linker: str
    config: ResolvedConfig | None
    """The configuration that it contains; None without CONFIG_IKCONFIG=y."""


def look_inside(vmlinux: Path) -> Inside:
    """Return what *vmlinux*, which is not empty, says about itself.  Raises OSError."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        release, tools = next(_banners(content), ("", None))
        compiler, linker = (word.decode(errors="replace") for word in tools.groups()) if tools else ("", "")
        return Inside(release=release, compiler=compiler, linker=linker, config=_own_config(content))


_AGAIN = "run the same command again: what was built is removed, so everything is compiled anew"


def prove_built(
    vmlinux: Path, config: ResolvedConfig, *, used: ResolvedConfig | None, release: str, version: str
) -> None:
    """Raise HostError unless *vmlinux* contains *release*, *version* and *config*.

    A kernel without IKCONFIG does not contain it; then *used*, the .config that make left, is compared.
    """
    if not vmlinux.stat().st_size:
        raise HostError(f"make built an empty {vmlinux.name}", hint=_AGAIN)
    inside = look_inside(vmlinux)
    own = inside.config
    if inside.release != release:
        named = inside.release or "without a release"
        raise HostError(f"make built kernel {named} instead of {release}", hint=_AGAIN)
    if not release.startswith(version):
        raise HostError(f"make built kernel {release} from a tree of version {version}", hint=_AGAIN)
    found = own if own is not None or config.get("IKCONFIG") == "y" else used
    differing = difference(config, found)
    if differing:
        raise HostError(
            f"make built a kernel with another configuration: {', '.join(differing[:4])}"
            f"{f' and {len(differing) - 4} more' if len(differing) > 4 else ''}",
            hint=_AGAIN,
        )


def _banners(content: mmap.mmap) -> Iterator[tuple[str, re.Match[bytes] | None]]:
    """Yield the release in each line that looks like the kernel's banner, and its compiler and linker."""
    at = content.find(_BANNER)
    while at >= 0:
        at += len(_BANNER)
        if found := _RELEASE.match(content[at : at + _LONGEST_RELEASE]):
            yield found[1].decode(), _TOOLCHAIN.match(content[at + found.end() : at + _LONGEST_BANNER])
        at = content.find(_BANNER, at)


def _own_config(content: mmap.mmap) -> ResolvedConfig | None:
    begin = content.find(_CONFIG_BEGIN)
    end = content.find(_CONFIG_END, begin)
    if begin < 0 or end < 0:
        return None
    with contextlib.suppress(zlib.error):
        text = zlib.decompress(content[begin + len(_CONFIG_BEGIN) : end], _GZIP)
        return ResolvedConfig.parse(text.decode(errors="replace"))
    return None


def difference(wanted: ResolvedConfig, found: ResolvedConfig | None) -> list[str]:
    """Say which symbols have another value than *wanted*, and which."""
    if found is None:
        return ["it does not say which"]
    return [
        f"CONFIG_{symbol}={found.get(symbol)} instead of {wanted.get(symbol)}"
        for symbol in sorted(wanted.differing(found))
        if found.get(symbol) != wanted.get(symbol)
    ]
