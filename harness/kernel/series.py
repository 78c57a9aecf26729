# SPDX-License-Identifier: GPL-2.0-only
"""Read a series: which mails of an mbox, a directory or a thread are its patches, in which order, and for
which commit it was made.
"""

from __future__ import annotations

import dataclasses
import email
import email.header
import logging
import re
from collections.abc import Iterator, Sequence
from email.message import Message
from pathlib import Path

from harness.base import process
from harness.base.errors import HostError, SourceError, UsageError
from harness.kernel import gittree

_SUFFIXES = (".patch", ".mbox", ".mbx", ".eml", ".cover")
"""Of git format-patch, mail programs and `b4 am`."""

_MESSAGE_ID = re.compile(r"https?://\S+|<?[^\s<>/]+@[^\s<>/]+>?")
_REPLY = re.compile(r"(?i)(re|fwd?|aw|sv)\s*:")
_TAGS = re.compile(r"\s*(?:\[[^\]]*\]\s*)*")
"""What subjects have before the title: `[PATCH net v2 1/3] [RFC]`."""
_VERSION = re.compile(r"(?i)(?:\b|patch)v(\d{1,9})\b")
_NUMBER = re.compile(r"\b(\d{1,9})/(\d{1,9})\b")
_BASE = re.compile(rb"^base-commit: ([0-9a-f]{7,64})\s*$", re.MULTILINE)
"""What `git format-patch --base` writes."""

_log = logging.getLogger("harness.kernel.series")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Mail:
    path: Path
    title: str
    version: int
    number: int
    """0 for a cover letter."""
    total: int
    is_reply: bool
    base: str
    """The commit that it names as its base; empty if it names none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Patches to apply."""

    mails: tuple[Path, ...]
    """One patch each, in order."""
    base: str
    """The commit it was made for, maybe abbreviated; empty if it names none."""


def is_message_id(word: str) -> bool:
    """Return whether *word* is the id or the address of a mail, and no file."""
    return not Path(word).exists() and _MESSAGE_ID.fullmatch(word) is not None


def fetch_thread(message_id: str, directory: Path) -> Path:
    """Fetch the series of which *message_id* is a mail into *directory*, with b4; return where it is.

    Raises HostError without b4, SourceError when b4 finds nothing.
    """
    if process.find_tool("b4") is None:
        raise HostError(
            f"--series: there is no file {message_id}, and fetching it as a message-id takes b4",
            hint="install b4, or give the mbox",
        )
    # Messages show this name.
    target = directory / re.sub(r"[^\w.@-]+", "-", f"thread of {message_id}").strip("-")
    done = process.run(["b4", "am", "-o", target, "-n", "series", "--", message_id])
    if not done.ok or not any(target.glob("*.mbx")):
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = said[-1].removeprefix("CRITICAL: ") if said else done.ending
        raise SourceError(f"--series: b4 found no series for {message_id}: {reason}")
    return target


def read_series(patches: Path, directory: Path) -> Series:
    """Split *patches*, an mbox or a directory, into mails below *directory*, and return those to apply.

    Left out are cover letters, replies, and older versions of a series that is there in a newer one.  Raises
    UsageError when there is nothing to apply, or the newest version is not whole.
    """
    done = gittree.git(directory, ["mailsplit", "-b", f"-o{directory}", "--", *_files(patches)])
    if not done.ok:
        said = done.stderr.strip().splitlines() or [done.ending]
        raise UsageError(f"--series: {patches} cannot be read: {said[-1].removeprefix('error: ')}")
    mails = [_read(path) for path in sorted(directory.iterdir())]
    # A patch that was forwarded is a reply, too.
    groups = _grouped([mail for mail in mails if not mail.is_reply] or mails)
    kept = [group for group in groups if not _is_outdated(group, groups, patches)]
    for group in kept:
        absent = _absent(group)
        if absent:
            _log.warning("%s lacks %s of %r", patches.name, absent, group[0].title)
    chosen = tuple(mail.path for group in kept for mail in group if mail.number)
    if not chosen:
        raise UsageError(f"--series: {patches} has a cover letter and no patches")
    return Series(
        mails=chosen,
        base=next((mail.base for group in kept for mail in group if mail.base), ""),
    )


def _files(patches: Path) -> tuple[Path, ...]:
    """Return the files of *patches* in order; UsageError when there are none."""
    if patches.is_file():
        return (patches.resolve(),)
    if not patches.is_dir():
        raise UsageError(f"--series: there is no {patches}", hint="give an mbox, or a directory of patches")
    found = (path for path in patches.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    files = tuple(sorted(path.resolve() for path in found))
    if not files:
        hint = f"they are called *{' or *'.join(_SUFFIXES)}"
        raise UsageError(f"--series: {patches} has no patches", hint=hint)
    return files


def _read(path: Path) -> _Mail:
    message = email.message_from_bytes(path.read_bytes())
    subject = " ".join(_decoded(message).split())
    tags = _TAGS.match(subject)
    assert tags is not None
    version, number = _VERSION.search(tags[0]), _NUMBER.search(tags[0])
    base = next((match[1] for text in _texts(message) for match in _BASE.finditer(text)), b"")
    return _Mail(
        path=path,
        title=subject[tags.end() :],
        version=int(version[1]) if version else 1,
        number=int(number[1]) if number else 1,
        total=int(number[2]) if number else 1,
        is_reply=_REPLY.match(subject) is not None,
        base=base.decode(),
    )


def _decoded(message: Message) -> str:
    """Return the subject; as it stands if its encoding is wrong or unknown."""
    subject = str(message.get("Subject", ""))
    try:
        return str(email.header.make_header(email.header.decode_header(subject)))
    except (email.header.HeaderParseError, LookupError, UnicodeError):  # type: ignore[attr-defined]
        return subject


def _texts(message: Message) -> Iterator[bytes]:
    for part in message.walk():
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            yield payload


def _grouped(mails: Sequence[_Mail]) -> list[list[_Mail]]:
    """Return the versions of each series in the order of their first mails, each sorted by number.

    Of a patch that comes twice the later mail counts.
    """
    groups: list[dict[int, _Mail]] = []
    for mail in mails:
        for group in groups:
            first, same = next(iter(group.values())), group.get(mail.number)
            if (first.version, first.total) != (mail.version, mail.total):
                continue
            # Another title under the same number: two series of the same length.
            if same is None or same.title == mail.title:
                group[mail.number] = mail
                break
        else:
            groups.append({mail.number: mail})
    return [[group[number] for number in sorted(group)] for group in groups]


def _is_outdated(group: Sequence[_Mail], groups: Sequence[Sequence[_Mail]], patches: Path) -> bool:
    """Whether *groups* have a newer version of *group*, which shares a title with it.

    Raises UsageError when that newer version is not whole: only some patches may have been sent again.
    """
    titles = {mail.title for mail in group}
    newer = [g for g in groups if g[0].version > group[0].version and titles & {mail.title for mail in g}]
    if not newer:
        return False
    newest = max(newer, key=lambda g: g[0].version)
    old, new, title = group[0].version, newest[0].version, newest[0].title
    absent = _absent(newest)
    if absent:
        raise UsageError(
            f"--series: {patches} has v{old} of {title!r}, and v{new} that lacks {absent}",
            hint=f"remove the mails of v{old} or of v{new}, or add what is missing",
        )
    _log.warning("%s has v%d and v%d of %r: v%d is applied", patches.name, old, new, title, new)
    return True


def _absent(group: Sequence[_Mail]) -> str:
    """Return which patches of *group* are missing, such as `patches 2/3, 3/3`; empty if none is."""
    total = group[0].total
    absent = sorted(set(range(1, total + 1)) - {mail.number for mail in group})
    listed = ", ".join(f"{number}/{total}" for number in absent)
    return f"patch{'es' if len(absent) > 1 else ''} {listed}" if absent else ""
