# SPDX-License-Identifier: GPL-2.0-only
"""A series becomes the same commits every time, in the cache; a patch that does not apply is named."""

from __future__ import annotations

import base64
import os
import quopri
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner
from kernel_fake_tree import git, make_fake_tree

from harness.base import itself, process
from harness.base.deadline import Deadline
from harness.base.errors import ExitCode, KernelError, UsageError
from harness.cli import patch_runs
from harness.cli.main import app
from harness.kernel.patches import Patch, apply_patches

LINES = "".join(f"/* line {number} */\n" for number in range(20))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What looks like Linux, at v1; nobody in particular is its user."""
    monkeypatch.setenv("VFIO_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VFIO_HARNESS_RUNS", str(tmp_path / "runs"))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    tree = make_fake_tree(tmp_path / "linux")
    (tree / "init" / "main.c").write_text(f"void start(void) {{}}\n{LINES}")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=one")
    git(tree, "tag", "v1")
    return tree


@pytest.fixture
def patches(repository: Path, tmp_path: Path) -> Path:
    """Two patches with a cover letter, as format-patch writes them; the repository is back at v1."""
    for number in (3, 15):
        file = repository / "init" / "main.c"
        file.write_text(file.read_text().replace(f"line {number} ", f"line {number} changed "))
        git(repository, "commit", "--quiet", "--all", f"--message=init: change line {number}")
    directory = tmp_path / "patches"
    git(repository, "format-patch", "--quiet", "--cover-letter", "-o", str(directory), "v1")
    git(repository, "reset", "--quiet", "--hard", "v1")
    return directory


def mbox_of(patches: Path) -> Path:
    mbox = patches.parent / "series.mbox"
    mbox.write_text("".join(path.read_text() for path in sorted(patches.iterdir())))
    return mbox


def test_series_becomes_commits(repository: Path, patches: Path) -> None:
    """From a directory or an mbox, less its cover letter: the same commits each time, with no user needed."""
    before = git(repository, "for-each-ref"), git(repository, "status", "--porcelain")
    applied = apply_patches(repository, "v1", patches)
    assert [patch.subject for patch in applied] == ["init: change line 3", "init: change line 15"]
    assert apply_patches(repository, "HEAD", mbox_of(patches)) == applied
    assert "line 15 changed" in git(repository, "show", f"{applied[1].commit}:init/main.c")
    assert (git(repository, "for-each-ref"), git(repository, "status", "--porcelain")) == before


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
def test_mails_with_the_line_ends_of_a_mail_server(repository: Path, patches: Path, encoding: str) -> None:
    """CRLF in the mailbox, or within an encoded body, changes no commit."""
    expected = apply_patches(repository, "v1", patches)
    mails = []
    for path in sorted(patches.iterdir()):
        head, _, body = path.read_bytes().replace(b"\n", b"\r\n").partition(b"\r\n\r\n")
        if encoding == "base64":
            body = base64.encodebytes(body).replace(b"\n", b"\r\n")
        elif encoding == "quoted-printable":
            # As it is when a mail server takes the line ends for text.
            body = quopri.encodestring(body).replace(b"\r\n", b"=0D\n").replace(b"\n", b"\r\n")
        mails.append(head + f"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + body + b"\r\n")
    mbox = patches.parent / "crlf.mbox"
    mbox.write_bytes(b"".join(mails))
    assert apply_patches(repository, "v1", mbox) == expected


def test_a_thread_with_replies_and_two_versions(
    repository: Path, patches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a mail program saves it: the newest version is applied, and no change that a reply proposes."""
    cover, first, second = (path.read_text() for path in sorted(patches.iterdir()))
    reply = first.replace("Subject: [PATCH", "Subject: Re: [PATCH").replace("3 changed", "3 proposed")
    older = [text.replace("changed", "once") for text in (first, second)]
    newer = [text.replace("[PATCH ", "[PATCH v2 ") for text in (cover, second, reply, first)]
    mbox = patches.parent / "thread.mbox"
    mbox.write_text("".join([cover, *older, reply, *newer]))
    assert apply_patches(repository, "v1", mbox) == apply_patches(repository, "v1", patches)
    assert "thread.mbox has v1 and v2 of '*** SUBJECT HERE ***': v2 is applied" in caplog.text


def test_the_commit_that_a_series_is_for(
    repository: Path, patches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told when the tree has another one, and how to get there."""
    base = git(repository, "rev-parse", "v1")
    cover = patches / "0000-cover-letter.patch"
    cover.write_text(f"{cover.read_text()}\nbase-commit: {base}\n")
    apply_patches(repository, "v1", patches)
    assert not caplog.text
    git(repository, "commit", "--quiet", "--allow-empty", "--message=on top")
    head = git(repository, "rev-parse", "HEAD")
    apply_patches(repository, "HEAD", patches)
    made_for = f"the series was made for commit {base[:12]}, and is applied to {head[:12]}"
    assert f"{made_for} (--tree {repository}@{base[:12]})" in caplog.text
    cover.write_text(f"Subject: [PATCH 0/2] x\n\nbase-commit: {'5' * 40}\n")
    apply_patches(repository, "HEAD", patches)
    assert "commit 555555555555, and" in caplog.text
    assert "(the repository lacks that commit)" in caplog.text


def test_conflict_is_named(repository: Path, patches: Path) -> None:
    """Which patch, where, and what stands there instead; the next series applies again."""
    file = repository / "init" / "main.c"
    file.write_text(file.read_text().replace("line 15 ", "line 15 is another "))
    git(repository, "commit", "--quiet", "--all", "--message=in the way")
    with pytest.raises(KernelError) as error:
        apply_patches(repository, "HEAD", mbox_of(patches))
    said = str(error.value)
    assert "'init: change line 15' of series.mbox does not apply to HEAD" in said
    assert "init/main.c" in said
    assert "is another" in said
    assert len(apply_patches(repository, "v1", patches)) == 2


def test_what_is_no_series(repository: Path, tmp_path: Path) -> None:
    """Each wrong file is told apart."""
    empty, rubbish = tmp_path / "empty", tmp_path / "rubbish.mbox"
    empty.mkdir()
    rubbish.write_text("hello\n")
    for path, said in {
        tmp_path / "nowhere": "there is no",
        empty: "has no patches",
        rubbish: "has no patch that git am understands",
    }.items():
        with pytest.raises(UsageError, match=said):
            apply_patches(repository, "v1", path)


def run(repository: Path, *words: str) -> process.Completed:
    argv = [sys.executable, "-m", "harness", "run", "--accel", "tcg", "--tree", str(repository), *words]
    return process.run(argv, cwd=repository.parent)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--each",), "add --series FILE|DIR"),
        (("--series", "patches", "--each", "--json"), "leave --json and --junit-xml out"),
        (("--series", "patches", "--each", "--collect-only"), "leave --each out"),
        (("--series", "nowhere"), "--series: there is no nowhere"),
        (("--series", "patches", "--tree", "debian:7.3"), "debian:7.3 is a package without a history"),
        (("--series", "patches", "--tree", "/"), "/ is not a git repository"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(repository: Path, patches: Path, words: tuple[str, ...], said: str) -> None:
    """What does not go together is said before anything is applied."""
    done = run(repository, *words)
    assert said in done.stderr
    assert done.status == ExitCode.USAGE
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="a run wants QEMU before it builds")
def test_each_patch_is_judged(repository: Path, patches: Path) -> None:
    """A patch that breaks the build is told from one that comes before it and one that mends it."""
    git(repository, "am", "--quiet", *(str(path) for path in sorted(patches.glob("000[12]*"))))
    for text in ("int broken = ;\n", ""):
        file = repository / "init" / "main.c"
        file.write_text(file.read_text().removesuffix("int broken = ;\n") + text)
        git(repository, "commit", "--quiet", "--all", f"--message=init: {'break' if text else 'mend'} it")
    series = patches.parent / "broken"
    git(repository, "format-patch", "--quiet", "-o", str(series), "HEAD~2")
    git(repository, "reset", "--quiet", "--hard", "HEAD~2")
    done = run(repository, "--series", str(series), "--each", "--case", "probes/nodes/*", "--suite", "probes",
               "--cpus", "1")  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("1/2 ")
    assert lines[-2].split()[2] == "untestable"
    assert "init: break it" in lines[-2]
    assert "init: mend it" in lines[-1]


def test_words_for_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of one patch gets everything but what is about the series and the tree."""
    found: list[list[str]] = []
    monkeypatch.setattr(patch_runs, "apply", lambda *_: (Path("/linux"), ()))
    monkeypatch.setattr(patch_runs, "run_each", lambda _repository, _patches, words: found.append(words))
    argv = ["--tree", "x", "-ka b", "--series=s", "--each", "--series", "t", "-n", "0", "--no-compare"]
    CliRunner().invoke(app, ["run", *argv, "--with", "debug", "--with", "gcov", "--", "--tree"])
    options = ["-n", "0", "--no-compare", "--with", "debug", "--with", "gcov"]
    (words,) = found
    assert sorted(words[1:-2]) == sorted(["-k", "a b", *options])
    assert (words[0], words[-2:]) == ("run", ["--", "--tree"])


def test_spec() -> None:
    """A patch is a tree like any other."""
    patch = Patch(commit="a" * 40, subject="x")
    assert patch_runs.spec_of(Path("/linux"), patch) == f"/linux@{'a' * 40}"


ORDERLY = """\
import signal, sys, time
from pathlib import Path
from harness.cli import main
signal.signal(signal.SIGTERM, main._terminate)
try:
    Path(sys.argv[1]).touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    Path(sys.argv[2]).touch()
"""


def test_a_run_of_a_series_ends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its VMs to stop and a report to write, which takes longer than other children have."""
    started, ended = tmp_path / "started", tmp_path / "ended"

    def interrupted(child: process.Process, deadline: Deadline) -> NoReturn:
        monkeypatch.undo()
        monkeypatch.setattr(process, "STOP_SECONDS", 0.1)
        limit = Deadline.after(30)
        while not started.exists() and not limit.expired:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(itself, "argv", lambda words: [sys.executable, "-c", ORDERLY, started, ended])
    monkeypatch.setattr(process.Process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch_runs._run(["run"])
    assert ended.exists()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ((0, 0), ExitCode.GOOD),
        ((0, 4), ExitCode.KERNEL),
        ((3, 1), ExitCode.CASE_FAILED),
        ((0, 127), ExitCode.INFRA),
        ((120, 0), ExitCode.INFRA),
        ((0, -9), ExitCode.INFRA),
        ((None, 0), ExitCode.INFRA),
    ],
)
def test_the_worst_of_a_series(
    statuses: tuple[int | None, ...],
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exit status that the harness never has is trouble on the host, not success."""
    left = iter(statuses)
    monkeypatch.setattr(patch_runs, "_run", lambda words: next(left))
    patches = [Patch(commit=letter * 40, subject=letter) for letter in "ab"]
    assert patch_runs.run_each(Path("/linux"), patches, ["run"]) is code
    assert ("infrastructure" in capsys.readouterr().out) is bool({*statuses} - {0, 1, 4})
