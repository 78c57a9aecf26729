# SPDX-License-Identifier: GPL-2.0-only
"""A real kernel history with known bad commits, made from Debian's source by one-line substitutions.

Commits are made by git plumbing commands with fixed dates, so that making the history again gives the same
commits, and kernels built from them stay in the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.base import paths, process
from harness.base.locks import locked
from harness.kernel.store import OURS

NOISE = "noise"
"""The file of a Change that has no effect but a different image."""

CDEV = "drivers/vfio/device_cdev.c"
MAIN = "drivers/vfio/vfio_main.c"
IOAS = "drivers/iommu/iommufd/ioas.c"
TABLE = "drivers/iommu/iommufd/io_pagetable.c"

_NOISY = (CDEV, TABLE, MAIN, IOAS, "drivers/iommu/iommufd/device.c", "drivers/vfio/pci/vfio_pci_intrs.c")

_STAMP = 1_780_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One commit: a substitution in one file."""

    subject: str
    path: str
    pattern: str = ""
    replacement: str = ""
    tag: str = ""

    def apply(self, text: str, number: int) -> str:
        """Return *text* after the change; fail if it is unchanged."""
        if not self.pattern:
            return f"{text}\nstatic const int history_{number} __used = {number};\n"
        changed, count = re.subn(self.pattern, self.replacement, text, count=1, flags=re.DOTALL)
        assert count == 1, f"{self.subject}: nothing in {self.path} matches {self.pattern!r}"
        return changed


def _noise(number: int) -> Change:
    path = _NOISY[number % len(_NOISY)]
    return Change(f"{path.rpartition('/')[2].removesuffix('.c')}: Count to {number}", path)


def _noises(*numbers: int) -> list[Change]:
    return [_noise(number) for number in numbers]


CHANGES: tuple[Change, ...] = (
    *_noises(1, 2, 3),
    Change(
        "iommufd: Be clearer about an empty range",
        IOAS,
        r"(int iommufd_ioas_noiommu_get_pa\(.*?if \(!cmd->length\)\s+return )-EINVAL",
        r"\1-ERANGE",
        tag="wrong-errno",
    ),
    *_noises(5, 6, 7),
    Change(
        "vfio: Reword a comment",
        CDEV,
        r"Paired with the put in vfio_device_fops_release",
        r"Pairs up with the put in vfio_device_fops_release",
        tag="comment-only",
    ),
    *_noises(9, 10),
    Change(
        "iommufd: Tidy up the ioas", IOAS, r"\Z", "\nint tidy(void) { return untidy; }\n", tag="no-compile"
    ),
    *_noises(12, 14),
    Change(
        "iommufd: Fix the build", IOAS, r"\nint tidy\(void\) { return untidy; }\n", "", tag="compiles-again"
    ),
    *_noises(15, 16),
    Change(
        "vfio: Simplify the check for no-IOMMU devices",
        CDEV,
        r"(vfio_device_fops_cdev_open\(.*?vfio_device_is_noiommu\(device\)) && !capable\(CAP_SYS_RAWIO\)",
        r"\1 && false",
        tag="lost-capability",
    ),
    *_noises(18, 19),
    Change(
        "vfio: Initialise the group early",
        MAIN,
        r"(int __init vfio_init\(void\)\n{.*?\n)(\tida_init)",
        r"\1\tBUG();\n\2",
        tag="boot-panic",
    ),
    *_noises(21, 22),
    Change("vfio: Boot again", MAIN, r"\tBUG\(\);\n(\tida_init)", r"\1", tag="boots-again"),
    *_noises(
        24,
    ),
    Change(
        "iommufd: Answer by the clock",
        TABLE,
        r"(int iopt_get_phys\(.*?rc = )-ENOENT",
        r"\1jiffies % 5 ? -ENOENT : -EIO",
        tag="flaky",
    ),
    *_noises(26, 27),
    Change(
        "iommufd: Answer by the book",
        TABLE,
        r"(int iopt_get_phys\(.*?rc = )jiffies % 5 \? -ENOENT : -EIO",
        r"\1-ENOENT",
        tag="steady-again",
    ),
    *_noises(
        29,
    ),
    Change(
        "vfio: Name all devices alike",
        MAIN,
        r'(int vfio_device_set_noiommu_and_name\(.*?device->noiommu \? )"noiommu-"',
        r'\1""',
        tag="lost-name",
    ),
    *_noises(31, 32),
    Change(
        "vfio: Tell devices apart again",
        MAIN,
        r'(int vfio_device_set_noiommu_and_name\(.*?device->noiommu \? )""',
        r'\1"noiommu-"',
        tag="named-again",
    ),
    *_noises(34, 35),
    Change(
        "iommufd: Be loud about addresses of nothing",
        TABLE,
        r"(int iopt_get_phys\(.*?if \()!area \|\| !area->pages\)",
        r"\1WARN_ON(!area || !area->pages))",
        tag="warning",
    ),
    *_noises(37, 38, 39),
)
"""About fifty commits on top of 7.3.4; `tag` names those that tests bisect for."""

BASE, OLDER = "v7.3.4", "v7.2"

_GROWTH = (
    ("Documentation, tools and samples of 7.3", r"(Documentation|tools|samples)/.*"),
    ("Everything else of 7.3", r"(?!Makefile$)(?!.*(iommu|vfio)).*"),
    ("iommu: What is new in 7.3", r"(?!Makefile$)(?!.*(iommufd|vfio)).*"),
    ("iommufd: What is new in 7.3", r"(?!Makefile$)(?!.*vfio).*"),
    ("vfio: What is new in 7.3", r"(?!Makefile$).*"),
    ("Linux 7.3", r".*"),
)
"""From 7.2 to 7.3 in a few commits: each takes 7.3's version of the files that its pattern matches."""

GROWN = "growth-5"
"""The tag of the commit that adds the last part of the no-IOMMU cdev."""


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """The repository, and its commits by tag."""

    path: Path

    def git(self, *arguments: str) -> str:
        return _git(self.path, *arguments)

    def commit(self, name: str) -> str:
        """Return the hash of a tag or any other revision."""
        return self.git("rev-parse", f"{name}^{{commit}}").strip()


def _git(directory: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    done = process.run(["git", "-C", os.fspath(directory), *arguments], env=env)
    assert done.ok, f"{done.command}: {done.stderr}"
    return done.stdout


def make_history(source: Path, name: str = "history-7.3") -> History:
    """Return the repository of 7.3.4 and CHANGES on it, made once from the unpacked *source* and kept in the
    cache."""
    path = paths.cache_dir() / "tests" / name
    with locked(name, "another process is making the history"):
        if not _has(path, BASE):
            _import(path, source)
        # A commit packs objects in the background, and the more are packed the longer git abbreviates hashes:
        # users_state() would differ.
        _git(path, "config", "gc.auto", "0")
        _commit_changes(path, CHANGES)
        _be_a_user(path)
    return History(path)


def _has(path: Path, tag: str) -> bool:
    """Return whether the repository has *tag*, which git may have packed."""
    argv = ["git", "-C", os.fspath(path), "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}"]
    return (path / ".git").is_dir() and process.run(argv).ok


def _be_a_user(path: Path) -> None:
    """Leave a checkout with a commit, a staged change and an unstaged one, like a user at work."""
    notes = path / "notes"
    if not notes.exists():
        notes.write_text("one\n", encoding="utf-8")
        _git(path, "add", "notes")
        identity = ("-c", "user.name=A. User", "-c", "user.email=user@example.org")
        _git(path, *identity, "commit", "--quiet", "--message=Notes")
        notes.write_text("two\n", encoding="utf-8")
        _git(path, "add", "notes")
        notes.write_text("three\n", encoding="utf-8")


def users_state(history: History) -> tuple[str, ...]:
    """Return everything in the repository that belongs to its user: HEAD, refs, index, changes, their own
    bisect.

    This excludes git's internal files: the repository is in the cache, and others may use it at the same
    time.
    """
    refs = "refs/bisect refs/heads/mine refs/heads/topic refs/stash refs/tags"
    own = (f"for-each-ref {refs}", "status --porcelain", "diff", "diff --cached", "bisect log", "reflog")
    files = ("HEAD", "ORIG_HEAD", "FETCH_HEAD", "index", "config", *sorted(_bisect_files(history.path)))
    return (
        *(history.git(*command.split()) for command in own),
        *(f"{name} {_bytes_of(history.path / '.git' / name)!r}" for name in files),
    )


def _bisect_files(path: Path) -> list[str]:
    return [file.name for file in (path / ".git").glob("BISECT_*")]


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def grow_history(history: History, older: Path) -> None:
    """Commit the source *older*, which is 7.2, and the commits from there to BASE, as the branch `growth`."""
    path = history.path
    with locked(path.name, "another process is making the history"):
        if not _has(path, OLDER):
            _import(path, older, OLDER)
        parent = history.commit(OLDER)
        with _scratch_index(path) as env:
            for number, (subject, pattern) in enumerate(_GROWTH, 1):
                _git(path, "read-tree", parent, env=env)
                _take(path, env, parent, re.compile(pattern))
                tree = _git(path, "write-tree", env=env).strip()
                parent = _commit(path, tree, subject, parent, number)
                _git(path, "tag", "--force", f"growth-{number}", parent)
        _git(path, "branch", "--force", "growth", parent)


def _take(path: Path, env: dict[str, str], before: str, names: re.Pattern[str]) -> None:
    """Put BASE's version of the files whose names match *names* into the index, and remove those that BASE
    lacks."""
    lines = []
    for line in _git(path, "diff-tree", "-r", "--no-renames", before, BASE).splitlines():
        facts, _, name = line.partition("\t")
        if names.fullmatch(name):
            lines.append(f"{facts.split()[1]} {facts.split()[3]}\t{name}\n")
    feed = path / ".git" / "history-feed"
    feed.write_text("".join(lines), encoding="utf-8")
    command = f"git -C {path} update-index --index-info < {feed}"
    done = process.run(["sh", "-c", command], env=env)
    assert done.ok, done.stderr


def _import(path: Path, source: Path, tag: str = BASE) -> None:
    """Commit *source* without what was built in it; its files are added without copying them."""
    path.mkdir(parents=True, exist_ok=True)
    _git(path, "init", "--quiet", "--initial-branch=mine")
    with _scratch_index(path) as env:
        where = {**env, "GIT_WORK_TREE": os.fspath(source)}
        _git(path, "add", "--all", "--force", ".", f":!{OURS}*", env=where)
        tree = _git(path, "write-tree", env=env).strip()
    _git(path, "tag", tag, _commit(path, tree, f"Linux {tag[1:]}", None, 0))


@contextlib.contextmanager
def _scratch_index(path: Path) -> Iterator[dict[str, str]]:
    index = path / ".git" / "history-index"
    try:
        yield {"GIT_INDEX_FILE": os.fspath(index), "GIT_DIR": os.fspath(path / ".git")}
    finally:
        index.unlink(missing_ok=True)


def _commit(path: Path, tree: str, subject: str, parent: str | None, number: int) -> str:
    when = f"{_STAMP + 3600 * number} +0000"
    who = {"NAME": "A. Developer", "EMAIL": "dev@example.org", "DATE": when}
    env = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    parents = ["-p", parent] if parent else []
    return _git(path, "commit-tree", tree, *parents, "-m", subject, env=env).strip()


def _commit_changes(path: Path, changes: Sequence[Change]) -> None:
    """Commit *changes* on top of BASE as the branch `topic`, and tag them."""
    parent = _git(path, "rev-parse", BASE).strip()
    with _scratch_index(path) as env:
        _git(path, "read-tree", BASE, env=env)
        texts: dict[str, str] = {}
        for number, change in enumerate(changes, 1):
            before = texts.get(change.path) or _git(path, "show", f"{BASE}:{change.path}")
            texts[change.path] = change.apply(before, number)
            blob = _hash(path, texts[change.path])
            _git(path, "update-index", "--cacheinfo", f"100644,{blob},{change.path}", env=env)
            tree = _git(path, "write-tree", env=env).strip()
            parent = _commit(path, tree, change.subject, parent, number)
            if change.tag:
                _git(path, "tag", "--force", change.tag, parent)
    _git(path, "branch", "--force", "topic", parent)


def _hash(path: Path, text: str) -> str:
    scratch = path / ".git" / "history-blob"
    scratch.write_text(text, encoding="utf-8")
    return _git(path, "hash-object", "-w", os.fspath(scratch)).strip()
