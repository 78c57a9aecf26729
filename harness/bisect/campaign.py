# SPDX-License-Identifier: GPL-2.0-only
"""One bisect of a repository from its first check to its report, or from where it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import paths
from harness.bisect import gitbisect
from harness.bisect.finding import describe_finding, first_new, last_old
from harness.bisect.gitbisect import GitBisect, Position
from harness.bisect.hunt import LOG_NAME, Hunt, Say
from harness.bisect.judge import BuildShown, RealJudge, Trial
from harness.bisect.model import Aim, Sight
from harness.bisect.report import Finding, mail, summary
from harness.bisect.state import HuntState, Quarry, load_state
from harness.errors import ExitCode, InfraError, UsageError
from harness.kernel.trees import worktree_lock
from harness.locks import try_locked
from harness.results import new_run_id

REPORT_NAME = "report.txt"
MAIL_NAME = "regression.mail"
CONFIG_NAME = "kernel.config"
RUNS_NAME = "runs"


def check_quarry(quarry: Quarry, aim: Aim) -> int:
    """Refuse a history that cannot be bisected; return how many commits there are to choose from."""
    directory = Path(quarry.repository)
    gitbisect.check_terms(directory, aim)
    gitbisect.check_history(directory, quarry.old, quarry.new, aim)
    gitbisect.check_paths(directory, quarry.old, quarry.new, quarry.paths)
    gitbisect.check_skips(directory, quarry.skips)
    count = gitbisect.count_commits(directory, quarry)
    if count == 0:
        raise UsageError(
            f"no commit between {quarry.old.label} and {quarry.new.label} touches {' '.join(quarry.paths)}",
            hint="leave the paths out",
        )
    return count


def _pointer(root: Path) -> Path:
    """The file that says where the bisect of a repository is kept."""
    return paths.cache_dir() / "bisects" / gitbisect.worktree_of(root).parent.name


def find_unfinished(root: Path) -> tuple[HuntState, Path] | None:
    """The bisect of the repository *root* that is under way, with its directory; None when there is none."""
    try:
        directory = Path(_pointer(root).read_text(encoding="utf-8").strip())
    except OSError:
        return None
    if not directory.is_dir():
        return None
    state = load_state(directory)
    return None if state.finished else (state, directory)


def begin(quarry: Quarry, aim: Aim) -> tuple[HuntState, Path]:
    """A new hunt; UsageError when one is under way in the same repository, or begun at the same time."""
    root = Path(quarry.root)
    with _alone(root):
        under_way = find_unfinished(root)
        if under_way is not None:
            state, directory = under_way
            raise UsageError(
                f"a bisect of {quarry.repository} is under way, "
                f"with {len(state.tested)} verdicts in {directory}",
                hint="go on with it: bisect --continue, or drop it: bisect --reset",
            )
        return _write_new(quarry, aim)


def _write_new(quarry: Quarry, aim: Aim) -> tuple[HuntState, Path]:
    """A hunt of which nothing is known yet, on disk and pointed to; the repository's lock is held."""
    now = datetime.datetime.now(datetime.UTC)
    name = f"bisect-{new_run_id(now)}"
    directory = paths.runs_dir() / name
    state = HuntState(id=name, quarry=quarry, aim=aim)
    try:
        directory.mkdir(parents=True)
        pointer = _pointer(Path(quarry.root))
        pointer.parent.mkdir(parents=True, exist_ok=True)
        state.save(directory)
        pointer.write_text(f"{directory}\n", encoding="utf-8")
    except OSError as error:
        raise InfraError(f"cannot write {error.filename}: {error.strerror}") from error
    return state, directory


def resume(root: Path, repository: str) -> tuple[HuntState, Path]:
    """The hunt that is under way; UsageError when there is none."""
    found = find_unfinished(root)
    if found is None:
        raise UsageError(f"no bisect of {repository} is under way", hint="begin one: --good REV --bad REV")
    return found


def reset(root: Path) -> Path | None:
    """Drop what is under way; its directory, which stays, or None when there was nothing."""
    with _alone(root):
        try:
            directory = Path(_pointer(root).read_text(encoding="utf-8").strip())
        except OSError:
            return None
        GitBisect(root).end()
        _pointer(root).unlink(missing_ok=True)
        return directory


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    with try_locked(worktree_lock(gitbisect.worktree_of(root))) as ours:
        if not ours:
            raise UsageError(
                f"another process is bisecting {root}", hint="wait for it, or bisect in another clone"
            )
        yield


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A hunt, and what it is conducted with."""

    state: HuntState
    directory: Path
    trial: Trial
    say: Say
    shown: BuildShown

    def conduct(self) -> tuple[Finding, ExitCode]:
        """Hunt to the end and write the report; interrupted, say how to go on."""
        quarry = self.state.quarry
        root, repository = Path(quarry.root), Path(quarry.repository)
        with _alone(root):
            chooser = GitBisect(root)
            judge = RealJudge(
                lambda commit: f"{repository}@{commit}", self.trial, self.directory / RUNS_NAME, self.shown
            )
            hunt = Hunt(
                self.state,
                self.directory,
                chooser,
                judge,
                self.say,
                _remembering(lambda commit: gitbisect.subject_of(repository, commit)),
            )
            try:
                position = hunt.run()
                finding = self._conclude(hunt, position)
            except KeyboardInterrupt:
                self.say(f"to go on: vfio-harness bisect --continue --tree {repository}")
                raise
            hunt.finish()
            chooser.end()
        return finding, _exit_code(finding)

    def _conclude(self, hunt: Hunt, position: Position) -> Finding:
        if position.found or position.suspects:
            passing = (
                first_new(hunt.state, position) if hunt.state.aim.find_fix else last_old(hunt.state, position)
            )
            if passing is not None:
                hunt.confirm_pass(passing)
        log = (self.directory / LOG_NAME).read_text(encoding="utf-8")
        finding = describe_finding(hunt.state, position, self.trial)
        finding = dataclasses.replace(finding, bisect_log=log)
        (self.directory / REPORT_NAME).write_text(summary(finding) + "\n", encoding="utf-8")
        if mail(finding):
            (self.directory / MAIL_NAME).write_text(mail(finding), encoding="utf-8")
        if finding.config:
            shutil.copy2(finding.config, self.directory / CONFIG_NAME)
        return finding


def _remembering(subject_of: Callable[[str], str]) -> Callable[[str], str]:
    known: dict[str, str] = {}

    def remembered(commit: str) -> str:
        if commit not in known:
            known[commit] = subject_of(commit)
        return known[commit]

    return remembered


def _exit_code(finding: Finding) -> ExitCode:
    """0 for a culprit; otherwise whose fault it is that there is none."""
    if finding.found is not None:
        return ExitCode.GOOD
    if not finding.suspects:
        return ExitCode.USAGE
    suspects = {suspect.commit for suspect in finding.suspects}
    lost = [s for s in finding.state.steps if s.commit in suspects and s.sight is Sight.NO_CHANCE]
    return ExitCode.INFRA if lost else ExitCode.KERNEL
