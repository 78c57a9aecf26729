# SPDX-License-Identifier: GPL-2.0-only
"""The command line: verbs, exit codes, and the one place where an error becomes a message.

Each verb lives in a module of its own that is imported only when it is used, so that `--help` and shell
completion stay quick.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

import harness
from harness.errors import ExitCode, HarnessError, for_git_bisect, nearest
from harness.output import complain, tell, wants_colour

VERBS = {
    "run": "Build, boot and test: the one-shot for a developer with a patch.",
    "matrix": "Build, boot and test a whole matrix of jobs: the nightly.",
    "bisect": "Find the commit that broke, or fixed, a case: unattended, in a worktree of its own.",
    "bisect-step": "Judge the tree as it is, for `git bisect run`.",
    "build": "Build the kernel of a variant into the store.",
    "shell": "Open a shell in a VM, on the same machine that run uses.",
    "list": "List variants, topologies, matrices, suites, cases, kernels or runs.",
    "report": "Show or convert the report of an earlier run.",
    "compare": "Say what changed from one run to another.",
    "history": "Show what a case came to over all runs.",
    "doctor": "Say what this host lacks and what that costs; --fix installs it.",
    "bench": "Measure what the harness costs, as ratios to what one would use otherwise.",
    "gc": "Prune kernels, objects, sources, images and snapshots in the cache, and old runs.",
}

EPILOG = """\b
Examples:
  vfio-harness run                                 newest Debian source, group-cdev, edu and igb
  vfio-harness run --tree ~/linux --variant cdev -k get_pa
  vfio-harness run --tree ~/linux@topic --topology iommu-intel --case 'probes/viommu/*'
  vfio-harness shell --variant group-cdev --topology edu-igb

Exit codes: 0 good, 1 a case failed, 2 wrong use, 3 infrastructure, 4 no kernel to test, 130 interrupted.
"""


class Verbs(click.Group):
    """The verbs, imported on use; a wrong one is answered with the nearest."""

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
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(harness.__version__, prog_name="vfio-harness")
def app() -> None:
    """Regression harness for Linux VFIO no-IOMMU: builds kernels, boots them under QEMU, proves them."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # One order to end comes as several signals, to us and to our group; another must not end the orderly end,
    # which writes the report.  By a handler: children inherit SIG_IGN.
    signal.signal(signal.SIGTERM, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """A handler for what has been heard already."""


def _log_to_stderr() -> None:
    """What the library has to say on the way goes to stderr as it is."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("harness")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> NoReturn:
    """Run a verb and exit with its code; SIGTERM is handled like Ctrl-C: what is finished is kept."""
    signal.signal(signal.SIGTERM, _terminate)
    _log_to_stderr()
    code = _run()
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    sys.exit(for_git_bisect(code) if verb == "bisect-step" else code)


def _run() -> int:
    """Run a verb; its exit code, or that of the error that it ended with."""
    try:
        return int(app(standalone_mode=False, color=wants_colour()) or 0)
    except HarnessError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        tell(error.format_message())
        return ExitCode.USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        complain(error.format_message(), f"see: {context.command_path} --help" if context else None)
        return ExitCode.USAGE
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return ExitCode.INTERRUPTED
    except Exception:
        # Ours, whatever it is: never the kernel's fault, and never exit code 1.
        traceback.print_exc()
        complain("the harness itself failed", "please report this with the lines above")
        return ExitCode.INFRA


if __name__ == "__main__":
    main()
