# SPDX-License-Identifier: GPL-2.0-only
"""Runs cases inside the guest: one long-lived process, one fork per case, KTAP out.

    python3 -m guest.agent --features noiommu,edu --list
    python3 -m guest.agent --features noiommu,edu get_pa/page_map_agrees 'ioas/*'
    python3 -m guest.agent --features noiommu,edu          # serve: one JSON request a line on stdin

A request is {"case": ADDRESS, "timeout": SECONDS, "seed": NUMBER}; its answer is one KTAP document that ends
with `# END ADDRESS`.  A case can crash, hang or leave things behind without hurting the next one: that is the
whole point.  The verdict is said first; then everything is put right again, for ground.END_TIMEOUT seconds at
most.  What that took is lines `# cleaned: ...` between the result and the end.  What cannot be put right is a
line `# dirty: ...`, and the VM should not be used further.

With `--alongside` it is one of several agents in its VM, runs only cases that declare that they may, and
leaves the machine as it is.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import posix
import signal
import sys
from collections.abc import Sequence
from typing import Optional, TextIO

from guest import kmsg, ktap, libc, taint
from guest.case import Case, discover
from guest.ground import Cleaning, Ground
from guest.needs import UnknownFeature, nearest, parse_features
from guest.runner import Verdict, run_forked

VERSION = "1"

READY = "# agent ready"
"""What it says, with its version, before the first request."""

DIRTY = "dirty: "
"""Begins the diagnostic that says what could not be put right."""

DEFAULT_SEED = 1

MODULES = ("iommufd", "vfio", "vfio_iommu_type1", "vfio-pci")
"""What to load where VFIO is modular; a module that this configuration does not have is no error."""


class BadRequest(ValueError):
    """A line on stdin that is no request."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent; return 0 when every case that ran was kept, 1 when one was not, 2 for wrong use."""
    arguments = _parser().parse_args(argv)
    try:
        features = parse_features(arguments.features)
    except UnknownFeature as error:
        print(f"agent: --features: {error}", file=sys.stderr)
        return 2
    cases = discover(arguments.probes)
    if arguments.list:
        for one in cases:
            print(f"{one.address}\t{','.join(one.needs)}\t{one.promise}")
        return 0
    agent = Agent(cases, features, sys.stdout, untouched=arguments.fresh, alongside=arguments.alongside)
    agent.prepare()
    if not arguments.addresses:
        return agent.serve(sys.stdin)
    try:
        chosen = select(cases, arguments.addresses)
    except LookupError as error:
        print(f"agent: {error.args[0]}", file=sys.stderr)
        return 2
    return agent.run_all(chosen, seed=arguments.seed, scale=arguments.scale)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="guest.agent", description="Runs VFIO no-IOMMU cases in this machine."
    )
    parser.add_argument("--features", default="", help="comma-separated features of kernel, devices, machine")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="this VM has run nothing yet: a taint found now is the boot's",
    )
    parser.add_argument(
        "--alongside",
        action="store_true",
        help="other agents run in this VM: take only cases that may run alongside others",
    )
    parser.add_argument("--list", action="store_true", help="print every case with its needs and its promise")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="what random choices start from")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every case's time limit")
    parser.add_argument("--probes", default="guest.probes", help=argparse.SUPPRESS)
    parser.add_argument(
        "addresses", nargs="*", metavar="ADDRESS", help="cases to run (shell patterns allowed)"
    )
    return parser


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the matching cases, fresh ones first and destructive ones last; raise LookupError for none."""
    chosen: dict[str, Case] = {}
    for pattern in patterns:
        found = [one for one in cases if fnmatch.fnmatchcase(one.address, pattern)]
        if not found:
            hint = nearest(pattern, [one.address for one in cases])
            raise LookupError(f"no case is called {pattern!r}{hint}")
        chosen.update((one.address, one) for one in found)
    return sorted(chosen.values(), key=lambda one: one.turn)


class Agent:
    """The cases of one machine, run one at a time."""

    def __init__(
        self,
        cases: Sequence[Case],
        features: frozenset[str],
        out: TextIO,
        *,
        untouched: bool = False,
        alongside: bool = False,
    ) -> None:
        self._cases = {one.address: one for one in cases}
        self._features = features
        self._out = out
        self._ground = Ground(())
        self._untouched = untouched  # no case has run in this VM, neither ours nor anybody's before us
        self._alongside = alongside  # other agents are at work: the ground is theirs too
        self._dirty = ""  # the first case that left something which could not be put right

    def prepare(self) -> None:
        """Make this process fit to run cases, and take the devices away from their drivers."""
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        if "modular" in self._features:
            for name in MODULES:
                _modprobe(name)
        if self._alongside:
            return
        self._ground = Ground.survey(self._features)
        for problem in self._ground.restore(first=True).dirty:
            self._say(f"# {DIRTY}{problem}")

    def serve(self, requests: TextIO) -> int:
        """Answer requests until there are no more."""
        self._say(f"{READY} {VERSION}")
        while True:
            line = requests.readline()
            if not line:
                return 0
            if line.strip():
                self._answer(line)

    def run_all(self, cases: Sequence[Case], *, seed: int, scale: float) -> int:
        """Run *cases* as one KTAP document."""
        writer = ktap.Writer(self._out, plan=len(cases))
        kept = True
        for one in cases:
            if self._dirty:
                writer.ok(one.address, skip=f"the machine is dirty since {self._dirty}")
                kept = False
            else:
                kept = self._run(writer, one, one.timeout * scale, seed) and kept
        return 0 if kept else 1

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    def _answer(self, line: str) -> None:
        name = "?"
        try:
            name, timeout, seed = parse_request(line)
            one = self._cases.get(name)
            if one is None:
                raise BadRequest(f"no case is called {name!r}{nearest(name, self._cases)}")
            if self._alongside and not one.alongside:
                raise BadRequest(f"{name} does not say that it may run alongside others")
        except BadRequest as error:
            writer = ktap.Writer(self._out, plan=1)
            writer.diagnostic(f"why: bad request: {error}")
            writer.not_ok(name)
            writer.end(name)
            return
        self._run(ktap.Writer(self._out, plan=1), one, timeout or one.timeout, seed)

    def _run(self, writer: ktap.Writer, one: Case, timeout: float, seed: int) -> bool:
        unmet = one.unmet(self._features)
        if not self._alongside:  # where several run, what the kernel says belongs to none of them
            kmsg.say(f"{kmsg.BEGIN} {one.address}")
        if unmet:
            writer.ok(one.address, skip=f"needs {', '.join(unmet)}")
            kept = True
        elif one.fresh and (mask := taint.mask()):
            kept = self._refuse_tainted(writer, one, mask)
        else:
            kept = self._run_and_restore(writer, one, timeout, seed)
        kmsg.say(f"{kmsg.END} {one.address}")
        writer.end(one.address)
        return kept

    def _refuse_tainted(self, writer: ktap.Writer, one: Case, mask: int) -> bool:
        """Answer for a case that cannot be tried; fail it when nobody but the boot can have done that."""
        if self._untouched:
            writer.diagnostic(f"why: the kernel was tainted at boot: {taint.describe(mask)}")
            writer.not_ok(one.address)
            return False
        reason = f"needs a just booted VM; this one is tainted already: {taint.describe(mask)}"
        writer.ok(one.address, skip=reason)
        return True

    def _run_and_restore(self, writer: ktap.Writer, one: Case, timeout: float, seed: int) -> bool:
        self._untouched = False
        verdict = run_forked(one, self._features, timeout, seed, writer.diagnostic)
        # Before anything that may take long: a verdict that has been reached is never lost.
        self._conclude(writer, one, verdict)
        if one.destructive:
            self._dirty = self._dirty or one.address
            return verdict.kept
        cleaning = Cleaning() if self._alongside else self._ground.restore()
        for what in cleaning.done:
            writer.diagnostic(f"cleaned: {what}")
        for what in (*verdict.dirty, *cleaning.dirty):
            writer.diagnostic(f"{DIRTY}{what}")
            self._dirty = self._dirty or one.address
        return verdict.kept

    def _conclude(self, writer: ktap.Writer, one: Case, verdict: Verdict) -> None:
        if verdict.skip:
            writer.ok(one.address, skip=verdict.skip)
        elif verdict.kept:
            writer.ok(one.address)
        else:
            writer.not_ok(one.address, directive=verdict.directive)


def parse_request(line: str) -> tuple[str, Optional[float], int]:
    """Read one request; return (address, timeout or None for the case's own, seed).  Raise BadRequest."""
    try:
        request = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"not JSON: {error}") from error
    if not isinstance(request, dict) or not isinstance(request.get("case"), str):
        raise BadRequest('want an object with "case": ADDRESS')
    unknown = sorted(set(request) - {"case", "timeout", "seed"})
    if unknown:
        raise BadRequest(f"unknown key {unknown[0]!r}")
    timeout, seed = request.get("timeout"), request.get("seed", DEFAULT_SEED)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
        raise BadRequest('"timeout" must be a number of seconds')
    if timeout is not None and timeout <= 0:
        raise BadRequest('"timeout" must be positive')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise BadRequest('"seed" must be an integer')
    return request["case"], timeout, seed


def _modprobe(name: str) -> None:
    with open(os.devnull, "r+b") as null:
        actions = [(posix.POSIX_SPAWN_DUP2, null.fileno(), fd) for fd in (0, 1, 2)]
        pid = os.posix_spawnp("modprobe", ["modprobe", name], os.environ, file_actions=actions)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    # A reader that goes away must end the agent, not make it complain.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
