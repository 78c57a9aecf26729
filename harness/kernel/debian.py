# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources from Debian: linux-source packages of any suite, by apt with a configuration of our own.

The mirror is the one that this host's apt uses, the keys are debian-archive-keyring's; apt verifies
signatures and digests.  The system's own lists and sources are neither read nor written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from harness.base import paths, process
from harness.base.cause import Cause
from harness.base.deadline import Deadline
from harness.base.errors import InfraError, SourceError, UsageError, nearest
from harness.base.files import write_atomic
from harness.base.locks import locked, shared
from harness.kernel.store import writing_cache

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "VFIO_HARNESS_DEBIAN_MIRROR"
LISTS_FRESH_SECONDS = 24 * 3600
"""How long the lists are used without asking the mirror again; suites are updated a few times a day."""

LISTS_LOCK = "apt"
"""The lock on everything below `apt` in the cache."""

CANDIDATES_FILE = "candidates.json"
"""The file beside the lists with what they offered when the mirror was last asked."""

RELEASES = ("bookworm", "trixie", "forky", "duke")
"""Debian's releases in order, for those newer than this machine's own."""

_ABSENT = "does not have a Release file"
"""Part of apt's message about a suite that the mirror lacks."""

_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 1800.0
_PACKAGE = re.compile(r"linux-source-(\d+\.\d+)")
_REQUEST = re.compile(r"latest|\d+\.\d+(=[\w.+~-]+)?", re.ASCII)
_log = logging.getLogger("harness.kernel")

Extract = Callable[[Path, Path], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DebianSource:
    """A linux-source package, in some suite or unpacked in our cache."""

    package: str
    version: str

    @property
    def mainline(self) -> str:
        """The version it is a package of, `7.3`."""
        return self.package.removeprefix("linux-source-")

    @property
    def request(self) -> str:
        """The request that only this upload satisfies."""
        return f"{self.mainline}={self.version}"

    @property
    def names(self) -> tuple[str, str, str]:
        """The requests that it satisfies."""
        return ("latest", self.mainline, self.request)

    @property
    def path(self) -> Path:
        """Where it is unpacked, or would be."""
        return _root() / f"{self.package}_{self.version}"

    @property
    def digest(self) -> str:
        """Its identity: an archive never reuses a version."""
        return f"debian {self.package} {self.version}"

    @property
    def label(self) -> str:
        """The name for people."""
        return f"Debian {self.package} {self.version}"


def fetch(request: str, extract: Extract) -> DebianSource:
    """Return the newest source that satisfies *request*: `latest`, `7.3` or one upload, `7.3=7.3.4-1`.

    When the mirror cannot be used (no network, no answer, a read-only cache), the newest cached copy is
    returned with a warning.
    Raises UsageError for a source no suite has, SourceError or InfraError without a cached copy.
    """
    if not _REQUEST.fullmatch(request):
        raise UsageError(
            f"debian:{request} is no kernel version",
            hint="write debian:latest, debian:7.3 or debian:7.3=7.3.4-1",
        )
    if "=" in request and (exact := _newest_cached(request)) is not None:
        return exact
    try:
        chosen = choose(request, find_candidates())
        if not chosen.path.is_dir():
            _download(chosen, extract)
    except InfraError as error:
        cached = _newest_cached(request)
        if cached is None:
            raise
        _log.warning("%s; using the cached %s %s", error.message, cached.package, cached.version)
        return cached
    return chosen


def choose(request: str, offered: list[DebianSource]) -> DebianSource:
    """Return the newest of *offered* that satisfies *request*; UsageError with the nearest when none does."""
    fitting = [c for c in offered if request in c.names]
    if not fitting:
        raise UsageError(
            f"no Debian suite has the sources of Linux {request}",
            hint=nearest(request, {name for c in offered for name in c.names}),
        )
    newest = max(_numbers(c.mainline) for c in fitting)
    by_version = functools.cmp_to_key(compare_versions)
    return max((c for c in fitting if _numbers(c.mainline) == newest), key=lambda c: by_version(c.version))


def _numbers(mainline: str) -> tuple[int, ...]:
    return tuple(int(number) for number in mainline.split("."))


def compare_versions(left: str, right: str) -> int:
    """Return a negative, zero or positive number, as dpkg orders the two versions."""
    if left == right:
        return 0
    return 1 if process.run(["dpkg", "--compare-versions", left, "gt", right]).ok else -1


def _root() -> Path:
    return paths.cache_dir() / "sources" / "debian"


def _newest_cached(request: str) -> DebianSource | None:
    found = []
    for path in _root().glob("linux-source-*_*"):
        package, _, version = path.name.partition("_")
        if _PACKAGE.fullmatch(package) and path.is_dir() and not path.name.endswith(".partial"):
            found.append(DebianSource(package=package, version=version))
    return choose(request, found) if any(request in source.names for source in found) else None


def find_candidates() -> list[DebianSource]:
    """Return every linux-source package in suites(); the mirror is asked once a day.

    Raises SourceError when the lists of no suite could be fetched.
    """
    if process.find_tool("apt-get") is None:
        raise SourceError(
            "this host has no apt to fetch Debian's kernel sources with", hint="give a kernel tree"
        )
    if not KEYRING.is_file():
        raise SourceError(
            f"{KEYRING} is missing", hint="install debian-archive-keyring, or give a kernel tree"
        )
    memo = apt_root() / CANDIDATES_FILE
    settings = _apt_settings()
    remembered = _recall(memo, settings)
    if remembered:
        return remembered
    mirror = find_mirror()
    with locked(LISTS_LOCK, "another process is asking Debian's mirror"):
        remembered = _recall(memo, settings)
        if remembered:
            return remembered
        errors = _update(mirror)
        offered = _offered()
        if not offered:
            first = errors[0] if errors else "its suites have no kernel sources"
            raise SourceError(
                f"cannot fetch Debian's package index: {first}", hint="give a kernel tree instead"
            )
        if not errors:
            facts = {"settings": settings, "offered": [dataclasses.asdict(c) for c in offered]}
            with contextlib.suppress(OSError):
                write_atomic(memo, json.dumps(facts))
    return offered


def _apt_settings() -> str:
    """Return what decides the mirror: our variable, and apt's own settings by name, size and time.

    Asking apt itself takes half a second.
    """
    facts = [(str(path), path.stat()) for path in sorted(Path("/etc/apt").rglob("*")) if path.is_file()]
    stamps = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts]
    return "\n".join([os.environ.get(MIRROR_VARIABLE, ""), *stamps])


def _recall(memo: Path, settings: str) -> list[DebianSource]:
    """Return what the mirror last offered; nothing when that was long ago or under other settings of apt."""
    try:
        if time.time() - memo.stat().st_mtime > LISTS_FRESH_SECONDS:
            return []
        facts = json.loads(memo.read_text(encoding="utf-8"))
        if facts["settings"] != settings:
            return []
        return [DebianSource(package=one["package"], version=one["version"]) for one in facts["offered"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def suites(os_release: Path = Path("/etc/os-release")) -> tuple[str, ...]:
    """Return the suites to ask: this release's own and its backports, every later release's, and sid.

    By codename: some mirrors serve a `stable-backports` that is weeks older than `trixie-backports`.
    """
    own = own_codename(os_release)
    later = RELEASES[RELEASES.index(own) + 1 :] if own in RELEASES else RELEASES
    releases = [own, *later] if own and own != "sid" else later
    return (*(suite for name in releases for suite in (name, f"{name}-backports")), "sid")


def own_codename(os_release: Path = Path("/etc/os-release")) -> str:
    """Return the codename of this host's release, empty when it is not Debian."""
    try:
        facts = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    except OSError:
        return ""
    return facts.get("VERSION_CODENAME", "").strip('"') if facts.get("ID", "").strip('"') == "debian" else ""


def find_mirror() -> str:
    """Return the URI of the Debian archive that this host's apt uses, with or without downloaded lists.

    Raises SourceError when apt has none.
    """
    override = os.environ.get(MIRROR_VARIABLE)
    if override:
        return override
    line = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    done = process.run(["apt-get", "indextargets", "--no-release-info", "--format", line])
    for found in choose_mirrors(done.stdout, suites()):
        return found
    raise SourceError(
        "apt on this host has no Debian mirror", hint=f"set {MIRROR_VARIABLE}, or give a kernel tree"
    )


def choose_mirrors(targets: str, known: tuple[str, ...]) -> list[str]:
    """Return the URIs in `apt-get indextargets` output that serve a suite of *known*, component main."""
    releases = {*known, *(f"{suite}-updates" for suite in known), "stable", "testing", "unstable"}
    rows = (line.split() for line in targets.splitlines())
    return list(
        dict.fromkeys(row[0] for row in rows if len(row) >= 3 and row[1] in releases and row[2] == "main")
    )


def apt_root() -> Path:
    """Return the directory with all that apt keeps for us; it changes under LISTS_LOCK."""
    return paths.cache_dir() / "apt"


def _options() -> list[str]:
    return apt_options(apt_root())


def apt_options(root: Path, more: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the options that make apt keep all its package data in the directory *root*, and *more*."""
    values: Mapping[str, str] = {
        "Dir::Etc::sourcelist": os.fspath(root / "sources.list"),
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State": os.fspath(root),
        "Dir::State::lists": os.fspath(root / "lists"),
        "Dir::State::status": os.fspath(root / "status"),
        "Dir::Cache": os.fspath(root / "cache"),
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Sandbox::User": "root",
        "APT::Update::Error-Mode": "any",
        **more,
    }
    return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]


def _update(mirror: str) -> list[str]:
    """Refresh the lists of every suite; return what went wrong.  Older lists stay usable."""
    root = apt_root()
    try:
        write_sources(root, mirror, suites())
        done = bounded(["apt-get", *_options(), "update"], _UPDATE_SECONDS, f"asking {mirror}")
        # apt does not touch unchanged lists, and gc goes by this time.
        os.utime(root / "lists")
    except OSError as error:
        return [f"cannot write to the cache: {root}: {error.strerror}"]
    except SourceError as error:
        return [error.message]
    return [] if done.ok else [error for error in errors_in(done) if _ABSENT not in error]


def write_sources(root: Path, mirror: str, wanted: Iterable[str]) -> None:
    """Prepare *root* for apt_options(), with the suites *wanted* of *mirror*.  Raises OSError."""
    for name in ("lists/partial", "cache/archives/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    lines = (f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in wanted)
    write_atomic(root / "sources.list", "".join(lines))


def bounded(argv: list[str], seconds: float, what: str, cwd: Path | None = None) -> process.Completed:
    """Run apt for at most *seconds*; SourceError when that is not enough."""
    deadline = Deadline.after(seconds)
    try:
        return process.run(argv, cwd=cwd, deadline=deadline)
    except InfraError as error:
        if not deadline.expired:
            raise
        raise SourceError(f"{what} timed out after {seconds:.0f} s") from error


def errors_in(done: process.Completed) -> list[str]:
    """Return apt's messages about what went wrong, or how it ended."""
    errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
    return errors or [f"apt-get {done.ending}"]


def _offered() -> list[DebianSource]:
    names = process.run(["apt-cache", *_options(), "pkgnames", "linux-source-"]).stdout.split()
    packages = [name for name in names if _PACKAGE.fullmatch(name)]
    asked = ["apt-cache", *_options(), "madison", *packages]
    return parse_madison(process.run(asked).stdout) if packages else []


def parse_madison(text: str) -> list[DebianSource]:
    """Return the binary packages in `apt-cache madison` output: `name | version | where`."""
    rows = ([field.strip() for field in line.split("|")] for line in text.splitlines())
    found = (
        DebianSource(package=row[0], version=row[1])
        for row in rows
        if len(row) == 3 and _PACKAGE.fullmatch(row[0]) and "Sources" not in row[2]
    )
    return list(dict.fromkeys(found))


def _download(chosen: DebianSource, extract: Extract) -> None:
    """Fetch the package, which apt verifies, and unpack the source inside it to its path.

    The lock has the name of the working directory, which keeps it from being pruned.
    """
    target = chosen.path
    work = target.with_name(f".{target.name}.download")
    with locked(f"{target.name}.download", f"another process is fetching {chosen.package}"):
        if target.is_dir():
            return
        _log.info("fetching %s %s", chosen.package, chosen.version)
        try:
            shutil.rmtree(work, ignore_errors=True)
            with writing_cache(work):
                work.mkdir(parents=True)
                extract(_fetch_tarball(chosen, work), target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fetch_tarball(chosen: DebianSource, work: Path) -> Path:
    """Return the kernel source tarball inside the package, in *work*."""
    what = f"{chosen.package} {chosen.version}"
    argv = ["apt-get", *_options(), "download", f"{chosen.package}={chosen.version}"]
    with shared(LISTS_LOCK, "another process is asking Debian's mirror"):
        done = bounded(argv, _DOWNLOAD_SECONDS, f"fetching {what}", cwd=work)
    packages = list(work.glob("*.deb"))
    if not done.ok or len(packages) != 1:
        raise SourceError(f"cannot fetch {what}: {errors_in(done)[0]}")
    process.run(["dpkg-deb", "--extract", packages[0], work / "content"]).check(
        "cannot unpack the package", Cause.SOURCE
    )
    tarballs = list((work / "content" / "usr" / "src").glob("linux-source-*.tar*"))
    if len(tarballs) != 1:
        raise SourceError(f"{packages[0].name} has no kernel source tarball")
    _log.info("unpacking %s", tarballs[0].name)
    return tarballs[0]
