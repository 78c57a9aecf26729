# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources from Debian: linux-source packages of any suite, by apt with a configuration of our own.

The mirror is the one this machine's apt uses already, the keys are debian-archive-keyring's; apt verifies
signatures and digests.  The system's own lists and sources are neither read nor written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import paths, process
from harness.deadline import Deadline
from harness.errors import InfraError, SourceError, UsageError, nearest
from harness.locks import locked, shared

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "VFIO_HARNESS_DEBIAN_MIRROR"
LISTS_FRESH_SECONDS = 24 * 3600
"""How long an index is used without asking the mirror again; suites are updated a few times a day."""

LISTS_LOCK = "apt"
"""The lock on everything below `apt` in the cache."""

CANDIDATES_FILE = "candidates.json"
"""Beside the lists: what they offered when they were last asked."""

RELEASES = ("bookworm", "trixie", "forky", "duke")
"""Debian's releases in order, for those newer than this machine's own."""

_ABSENT = "does not have a Release file"
_HOPELESS = re.compile(
    r"Could not (?:connect|resolve)|Temporary failure|timed out|unreachable|cannot write to the cache"
)
"""Errors that the next suite will meet as well."""

_UPDATE_SECONDS = 300.0
_DOWNLOAD_SECONDS = 1800.0
_PACKAGE = re.compile(r"linux-source-(\d+\.\d+)")
_REQUEST = re.compile(r"latest|\d+\.\d+(=[\w.+~-]+)?", re.ASCII)
_log = logging.getLogger("harness.kernel")

Extract = Callable[[Path, Path], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DebianSource:
    """An unpacked linux-source package."""

    path: Path
    package: str
    version: str
    digest: str  # of package name and version: an archive never reuses one

    @property
    def label(self) -> str:
        """What a person calls it, and request_in() understands."""
        return f"Debian {self.package} {self.version}"


def request_in(label: str) -> str | None:
    """The request for exactly the upload whose DebianSource.label *label* begins with, if it does."""
    found = re.match(rf"Debian {_PACKAGE.pattern} (\S+)", label)
    return f"{found[1]}={found[2]}" if found else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A linux-source package that some suite offers."""

    package: str
    series: str
    version: str
    suite: str = ""  # where it is; empty for one in our cache

    @property
    def names(self) -> tuple[str, str, str]:
        """The requests that it satisfies."""
        return ("latest", self.series, f"{self.series}={self.version}")


def fetch(request: str, extract: Extract) -> DebianSource:
    """The newest source that satisfies *request*: `latest`, a series such as `7.3`, or one version of it,
    `7.3=7.3.4-1`.

    Whatever keeps us from the mirror (no network, one that hangs, a read-only cache), the newest cached copy
    serves, and a warning says so.
    Raises UsageError for a source no suite has, SourceError or InfraError without a cached copy.
    """
    if not _REQUEST.fullmatch(request):
        raise UsageError(
            f"debian:{request} names no kernel series",
            hint="write debian:latest, debian:7.3 or debian:7.3=7.3.4-1",
        )
    if "=" in request and (exact := _newest_cached(request)) is not None:
        return exact
    try:
        chosen = choose(request, find_candidates())
        target = _place(chosen)
        if not target.is_dir():
            _download(chosen, target, extract)
    except InfraError as error:
        cached = _newest_cached(request)
        if cached is None:
            raise
        _log.warning("%s; using the cached %s %s", error.message, cached.package, cached.version)
        return cached
    return _source(chosen.package, chosen.version)


def choose(request: str, offered: list[Candidate]) -> Candidate:
    """The newest of *offered* that satisfies *request*; UsageError naming the nearest series if none does."""
    fitting = [c for c in offered if request in c.names]
    if not fitting:
        raise UsageError(
            f"no Debian suite has the sources of Linux {request}",
            hint=nearest(request, {name for c in offered for name in c.names}),
        )
    newest = max(_series_key(c.series) for c in fitting)
    best, *others = [c for c in fitting if _series_key(c.series) == newest]
    for candidate in others:
        if compare_versions(candidate.version, best.version) > 0:
            best = candidate
    return best


def _series_key(series: str) -> tuple[int, ...]:
    return tuple(int(number) for number in series.split("."))


def compare_versions(left: str, right: str) -> int:
    """Negative, zero or positive, as dpkg orders the two versions."""
    if left == right:
        return 0
    return 1 if process.run(["dpkg", "--compare-versions", left, "gt", right]).ok else -1


def _root() -> Path:
    return paths.cache_dir() / "sources" / "debian"


def _place(candidate: Candidate) -> Path:
    return _root() / f"{candidate.package}_{candidate.version}"


def _source(package: str, version: str) -> DebianSource:
    place = _root() / f"{package}_{version}"
    return DebianSource(path=place, package=package, version=version, digest=f"debian {package} {version}")


def _newest_cached(request: str) -> DebianSource | None:
    found = []
    for place in _root().glob("linux-source-*_*"):
        package, _, version = place.name.partition("_")
        match = _PACKAGE.fullmatch(package)
        if match and place.is_dir() and not place.name.endswith(".partial"):
            found.append(Candidate(package=package, series=match[1], version=version))
    fitting = [c for c in found if request in c.names]
    if not fitting:
        return None
    chosen = choose(request, fitting)
    return _source(chosen.package, chosen.version)


def find_candidates() -> list[Candidate]:
    """Every linux-source package in the suites worth asking; the mirror is asked once a day.

    Raises SourceError when no suite's index could be had.
    """
    if process.find_tool("apt-get") is None:
        raise SourceError(
            "this host has no apt to fetch Debian's kernel sources with", hint="give a kernel tree"
        )
    if not KEYRING.is_file():
        raise SourceError(
            f"{KEYRING} is missing", hint="install debian-archive-keyring, or give a kernel tree"
        )
    memo = _apt_root() / CANDIDATES_FILE
    settings = _apt_settings()
    remembered = _recall(memo, settings)
    if remembered:
        return remembered
    mirror = find_mirror()
    with locked(LISTS_LOCK, "another process is asking Debian's mirror"):
        remembered = _recall(memo, settings)
        if remembered:
            return remembered
        errors = _update_all(mirror)
        offered = [c for suite in suites() for c in _offered(suite)]
        if not offered:
            first = errors[0] if errors else "its suites hold no kernel sources"
            raise SourceError(
                f"cannot fetch Debian's package index: {first}", hint="give a kernel tree instead"
            )
        if not errors:
            facts = {"settings": settings, "offered": [dataclasses.asdict(c) for c in offered]}
            with contextlib.suppress(OSError):
                memo.write_text(json.dumps(facts), encoding="utf-8")
    return offered


def _apt_settings(etc: Path = Path("/etc/apt")) -> str:
    """What decides the mirror: our variable, and apt's own settings by name, size and time.

    Asking apt itself takes half a second.
    """
    facts = [(str(path), path.stat()) for path in sorted(etc.rglob("*")) if path.is_file()]
    stamps = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts]
    return "\n".join([os.environ.get(MIRROR_VARIABLE, ""), *stamps])


def _recall(memo: Path, settings: str) -> list[Candidate]:
    """What the mirror offered when last asked; nothing when that was long ago or apt has other settings."""
    try:
        if time.time() - memo.stat().st_mtime > LISTS_FRESH_SECONDS:
            return []
        facts = json.loads(memo.read_text(encoding="utf-8"))
        return [Candidate(**entry) for entry in facts["offered"]] if facts["settings"] == settings else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def suites(os_release: Path = Path("/etc/os-release")) -> tuple[str, ...]:
    """The suites to ask: this release's own and its backports, every later release's, and sid.

    By codename: mirrors in between were seen to serve `stable-backports` weeks older than `trixie-backports`.
    """
    own = own_codename(os_release)
    later = RELEASES[RELEASES.index(own) + 1 :] if own in RELEASES else RELEASES
    releases = [own, *later] if own and own != "sid" else later
    return (*(suite for name in releases for suite in (name, f"{name}-backports")), "sid")


def own_codename(os_release: Path = Path("/etc/os-release")) -> str:
    """The codename of this host's release, empty when it is not Debian."""
    try:
        facts = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    except OSError:
        return ""
    return facts.get("VERSION_CODENAME", "").strip('"') if facts.get("ID", "").strip('"') == "debian" else ""


def find_mirror() -> str:
    """The URI of the Debian archive that this machine's apt uses.

    Works without downloaded lists.  Raises SourceError when apt knows of none.
    """
    override = os.environ.get(MIRROR_VARIABLE)
    if override:
        return override
    line = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    done = process.run(["apt-get", "indextargets", "--no-release-info", "--format", line])
    for found in choose_mirrors(done.stdout, suites()):
        return found
    raise SourceError(
        "this machine's apt knows no Debian mirror", hint=f"set {MIRROR_VARIABLE}, or give a kernel tree"
    )


def choose_mirrors(targets: str, known: tuple[str, ...]) -> list[str]:
    """The URIs in `apt-get indextargets` output that serve a suite of *known* from the component main."""
    releases = {*known, *(f"{suite}-updates" for suite in known), "stable", "testing", "unstable"}
    rows = (line.split() for line in targets.splitlines())
    return list(
        dict.fromkeys(row[0] for row in rows if len(row) >= 3 and row[1] in releases and row[2] == "main")
    )


def _apt_root() -> Path:
    return paths.cache_dir() / "apt"


def _options(suite: str) -> list[str]:
    """Point apt at a directory of ours for everything it reads and writes about packages."""
    root = _apt_root() / suite
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
    }
    return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]


def _update_all(mirror: str) -> list[str]:
    """Refresh every suite's index; return what went wrong.  What is hopeless is tried once."""
    errors = []
    for suite in suites():
        error = _update(suite, mirror)
        if error:
            errors.append(error)
            if _HOPELESS.search(error):
                break
    return errors


def _update(suite: str, mirror: str) -> str | None:
    """Refresh one suite's index unless it is fresh; return what went wrong.  An older index stays usable."""
    root = _apt_root() / suite
    stamp = root / "updated"
    source = f"deb [signed-by={KEYRING}] {mirror} {suite} main\n"
    try:
        for name in ("lists/partial", "cache/archives/partial"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        same = (root / "sources.list").is_file() and (root / "sources.list").read_text() == source
        if same and stamp.is_file() and time.time() - stamp.stat().st_mtime < LISTS_FRESH_SECONDS:
            return None
        (root / "sources.list").write_text(source)
        done = _bounded(["apt-get", *_options(suite), "update"], _UPDATE_SECONDS, f"asking {mirror}")
        if not done.ok and _ABSENT not in done.stderr:
            return _first_error(done)
        stamp.touch()
    except OSError as error:
        return f"cannot write to the cache: {root}: {error.strerror}"
    except SourceError as error:
        return error.message
    return None


def _bounded(argv: list[str], seconds: float, what: str, cwd: Path | None = None) -> process.Completed:
    """Run apt for at most *seconds*; SourceError when that is not enough."""
    deadline = Deadline.after(seconds)
    try:
        return process.run(argv, cwd=cwd, deadline=deadline)
    except InfraError as error:
        if not deadline.expired:
            raise
        raise SourceError(f"{what} timed out after {seconds:.0f} s") from error


def _first_error(done: process.Completed) -> str:
    errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
    return errors[0] if errors else f"apt-get {done.ending}"


def _offered(suite: str) -> list[Candidate]:
    names = process.run(["apt-cache", *_options(suite), "pkgnames", "linux-source-"]).stdout.split()
    packages = {name: match[1] for name in names if (match := _PACKAGE.fullmatch(name))}
    if not packages:
        return []
    return parse_madison(process.run(["apt-cache", *_options(suite), "madison", *packages]).stdout, suite)


def parse_madison(text: str, suite: str) -> list[Candidate]:
    """The binary packages in `apt-cache madison` output: `name | version | where`."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and (match := _PACKAGE.fullmatch(fields[0])) and "Sources" not in fields[2]:
            found.append(Candidate(package=fields[0], series=match[1], version=fields[1], suite=suite))
    return found


def _download(chosen: Candidate, target: Path, extract: Extract) -> None:
    """Fetch the package, which apt verifies, and unpack the source inside it as *target*.

    The lock bears the name of the directory at work, so that nobody prunes it meanwhile.
    """
    work = target.with_name(f".{target.name}.download")
    with locked(f"{target.name}.download", f"another process is fetching {chosen.package}"):
        if target.is_dir():
            return
        _log.info("fetching %s %s", chosen.package, chosen.version)
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            extract(_fetch_tarball(chosen, work), target)
        except OSError as error:
            raise InfraError(f"cannot write to the cache: {work}: {error.strerror}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _fetch_tarball(chosen: Candidate, work: Path) -> Path:
    """The kernel source tarball inside the package, in *work*."""
    what = f"{chosen.package} {chosen.version}"
    argv = ["apt-get", *_options(chosen.suite), "download", f"{chosen.package}={chosen.version}"]
    with shared(LISTS_LOCK, "another process is asking Debian's mirror"):
        done = _bounded(argv, _DOWNLOAD_SECONDS, f"fetching {what}", cwd=work)
    packages = list(work.glob("*.deb"))
    if not done.ok or len(packages) != 1:
        raise SourceError(f"cannot fetch {what}: {_first_error(done)}")
    process.run(["dpkg-deb", "--extract", packages[0], work / "content"]).check("cannot unpack the package")
    tarballs = list((work / "content" / "usr" / "src").glob("linux-source-*.tar*"))
    if len(tarballs) != 1:
        raise SourceError(f"{packages[0].name} holds no kernel source tarball")
    _log.info("unpacking %s", tarballs[0].name)
    return tarballs[0]
