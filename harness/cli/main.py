# SPDX-License-Identifier: GPL-2.0-only
"""The command line: verbs, exit codes, and the one place where an error becomes a message.

Each verb lives in a module of its own that is imported only when it is used, so that `--help` and shell
completion stay quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

import harness
from harness.base.cause import Cause
from harness.base.errors import ExitCode, HarnessError, Interrupted, UsageError, for_git_bisect, nearest
from harness.base.itself import leave_optimized_mode
from harness.base.output import (
    complain,
    discard_stdout,
    emit,
    open_standard_streams,
    tell,
    wants_colour,
)

VERBS = {
    "run": "Build, boot and test one tree: for a developer with a patch.",
    "matrix": "Build, boot and test a matrix of jobs: for a nightly.",
    "bisect": "Find the commit that broke, or fixed, a case: unattended, in a worktree of its own.",
    "bisect-step": "Test the tree as it is, for `git bisect run`.",
    "build": "Build the kernel of a variant into the store.",
    "shell": "Open a shell in the VM that run would use.",
    "debug": "Open drgn or gdb on a guest that died in a run, or on the VM of a case.",
    "list": "List variants, topologies, matrices, suites, cases, kernels or runs.",
    "report": "Show the report of an earlier run, in any format.",
    "compare": "Show what changed from one run to another.",
    "coverage": "Show which lines of the kernel a run reached, and by which cases.",
    "history": "Show the outcomes of a case in all runs.",
    "doctor": "Check what this host lacks; --fix installs it.",
    "worker": "Run VMs of this host for a fleet.",
    "fleet": "Make the certificates of a fleet of hosts.",
    "mutate": "Plant faults in a kernel, and see which the cases notice.",
    "gc": "Remove old kernels, objects, sources, images, snapshots and runs.",
}

EPILOG = """\b
Examples:
  vfio-harness run                                 newest Debian kernel, group-cdev, edu and igb
  vfio-harness run --tree ~/linux --variant cdev -k get_pa
  vfio-harness run --tree ~/linux@topic --topology iommu-intel --case 'probes/viommu/*'
  vfio-harness shell --variant group-cdev --topology edu-igb

Exit codes: 0 good, 1 a case failed or is missing, 2 wrong use, 3 infrastructure, 4 nothing was tested,
130 interrupted.
"""


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Verbs(click.Group):
    """The verbs, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"harness.cli.{cmd_name.replace('-', '_')}_verb").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no verb {args[0]!r}: {nearest(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(
    cls=Verbs,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(harness.__version__, prog_name="vfio-harness")
def app() -> None:
    """Regression harness for Linux VFIO no-IOMMU mode: build kernels, boot them under QEMU, test them."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # One request to end may come as several signals, to us and to our group; another one must not interrupt
    # the report.  A handler, because children would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Handle a signal that comes when everything is ending already."""


def _leave_at_once(code: int) -> NoReturn:
    """Exit without what libraries do at exit: execnet waits for workers, and once did so for ever."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _log_to_stderr() -> None:
    """Print the harness's log messages on stderr unchanged."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("harness")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main(command: click.Command = app) -> NoReturn:
    """Run *command* and exit with its code; SIGTERM is handled like Ctrl-C: finished results are kept."""
    open_standard_streams()
    leave_optimized_mode()
    signal.signal(signal.SIGTERM, _terminate)
    _log_to_stderr()
    try:
        code = _run(command)
    except KeyboardInterrupt:
        # A second one, while the first was being reported.
        code = ExitCode.INTERRUPTED
    signal.signal(signal.SIGINT, _ignore)
    if code == ExitCode.INTERRUPTED:
        _leave_at_once(code)
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    sys.exit(for_git_bisect(code) if verb == "bisect-step" else code)


def _run(command: click.Command) -> int:
    """Run *command*; return its exit code, or the exit code of the error that it raised."""
    try:
        _check_directory()
        return int(command(standalone_mode=False, color=wants_colour()) or 0)
    except HarnessError as error:
        return _fail(error.exit_code, error.message, error.hint, error.cause)
    except click.exceptions.NoArgsIsHelpError as error:
        tell(error.format_message())
        return ExitCode.USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f"see: {context.command_path} --help" if context else None
        # click lists choices one a line.
        return _fail(ExitCode.USAGE, " ".join(error.format_message().split()), hint)
    except (KeyboardInterrupt, click.Abort) as error:
        # click makes an Abort of a KeyboardInterrupt.
        told = next((e.hint for e in (error, error.__cause__) if isinstance(e, Interrupted)), None)
        return _fail(ExitCode.INTERRUPTED, "interrupted", told)
    except SystemExit as error:
        # click makes a SystemExit(1) of a BrokenPipeError, and 1 would mean that a case failed.
        if isinstance(error.__context__, BrokenPipeError):
            return _fail(ExitCode.INFRA, "the reader of the standard output is gone", None, Cause.HOST)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            place = error.filename or "the standard output"
            discard_stdout()
            return _fail(ExitCode.INFRA, f"cannot write {place}: {error.strerror}", "make room", Cause.HOST)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(ExitCode.USAGE, f"{error.filename}: {error.strerror}")
        # A bug of the harness is never the kernel's fault, so never exit code 1.
        traceback.print_exc()
        hint = "please report this with the lines above"
        return _fail(ExitCode.INFRA, "the harness itself failed", hint, Cause.HARNESS)


def _check_directory() -> None:
    """Raise UsageError when the current directory was removed: relative paths mean nothing."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current directory cannot be used: {error.strerror}", hint="change to another one"
        ) from error


def _fail(code: ExitCode, message: str, hint: str | None = None, cause: Cause | None = None) -> int:
    """Print an error, with --json as a JSON document on stdout too; return its exit *code*."""
    complain(message, hint)
    if "--json" in sys.argv[1:]:
        error = {"message": message, "hint": hint, "cause": cause, "exit_code": int(code)}
        try:
            emit(json.dumps({"error": error}, indent=2))
        except OSError:
            # The exit code still says it.
            discard_stdout()
    return code


if __name__ == "__main__":
    main()
