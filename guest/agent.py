# SPDX-License-Identifier: GPL-2.0-only
"""Run cases inside the guest: one long-lived process, one fork per case, KTAP on stdout.

    python3 -m guest.agent --features noiommu,edu --list
    python3 -m guest.agent --features noiommu,edu get_pa/page_map_agrees 'ioas/*'
    python3 -m guest.agent --features noiommu,edu          # serve: one JSON request a line on stdin

A request is {"case": ADDRESS, "timeout": SECONDS, "seed": NUMBER}; its answer is one KTAP document that ends
with `# END ADDRESS`.  A case that crashes, hangs or leaves things behind does not disturb the next one: the
agent prints the result and then cleans up, for ground.END_TIMEOUT seconds at most.  Lines `# cleaned: ...`
between the result and the end say what it cleaned up, lines `# dirty: ...` what it could not; then the VM
should not be used further.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import posix
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Callable, Optional, TextIO

from guest import gcov, kmsg, ktap, libc, taint
from guest.case import Case, discover, discover_own
from guest.ground import Ground
from guest.needs import UnknownFeature, nearest, parse_features
from guest.runner import Verdict, run_forked

VERSION = "1"

READY = "# agent ready"
"""The first line, followed by the version: the agent reads requests from now on."""

DIRTY = "dirty: "
"""Prefix of a diagnostic that names what could not be cleaned up."""

REFUSED = "refused"
"""Key of the diagnostic that says why a request is not carried out."""

DEFAULT_SEED = 1

MODULES = ("iommufd", "vfio", "vfio_iommu_type1", "vfio-pci")
"""Modules to load where VFIO is modular; one that the configuration does not have is no error."""


class BadRequest(ValueError):
    """A line on stdin that is not a request."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent; return 0 when every case that ran passed, 1 when one did not, 2 for a usage error."""
    arguments = _parser().parse_args(argv)
    try:
        features = parse_features(arguments.features)
    except UnknownFeature as error:
        print(f"agent: --features: {error}", file=sys.stderr)
        return 2
    cases = discover(arguments.probes)
    if arguments.own:
        cases += discover_own(arguments.own)
    if arguments.list:
        for one in cases:
            print(f"{one.address}\t{','.join(one.needs)}\t{one.promise}")
        return 0
    agent = Agent(cases, features, sys.stdout, untouched=arguments.fresh)
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
        prog="guest.agent", description="Run VFIO no-IOMMU cases in this machine."
    )
    parser.add_argument("--features", default="", help="comma-separated features of kernel, devices, machine")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="no case has run in this VM yet: a taint is from the boot",
    )
    parser.add_argument("--list", action="store_true", help="print every case with its needs and promise")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of random choices")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the timeout of every case")
    parser.add_argument("--probes", default="guest.probes", help=argparse.SUPPRESS)
    parser.add_argument("--own", default="", metavar="DIR", help="a directory with more probe modules")
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
    ) -> None:
        self._cases = {one.address: one for one in cases}
        self._features = features
        self._out = out
        self._ground = Ground(())
        self._untouched = untouched  # no case has run in this VM, of this agent or an earlier one
        self._dirty = ""  # the first case after which something could not be cleaned up
        self._counters = gcov.Counters() if "gcov" in features else None

    def prepare(self) -> None:
        """Prepare this process to run cases, and unbind the devices from their drivers."""
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        load_modules(self._features)
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
                writer.ok(one.address, skip=f"the VM is dirty since {self._dirty}")
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
        except BadRequest as error:
            writer = ktap.Writer(self._out, plan=1)
            writer.diagnostic(f"{REFUSED}: {error}")
            writer.not_ok(name)
            writer.end(name)
            return
        self._run(ktap.Writer(self._out, plan=1), one, timeout or one.timeout, seed)

    def _run(self, writer: ktap.Writer, one: Case, timeout: float, seed: int) -> bool:
        unmet = one.unmet(self._features)
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
        """Answer for a case that needs an untainted kernel; fail it if only the boot can have tainted it."""
        if self._untouched:
            writer.diagnostic(f"why: the kernel was tainted at boot: {taint.describe(mask)}")
            writer.not_ok(one.address)
            return False
        reason = f"needs a just booted VM; this one is already tainted: {taint.describe(mask)}"
        writer.ok(one.address, skip=reason)
        return True

    def _run_and_restore(self, writer: ktap.Writer, one: Case, timeout: float, seed: int) -> bool:
        self._untouched = False
        counters = self._counters
        counted = counters is not None and _is_done(counters.reset)
        verdict = run_forked(one, self._features, timeout, seed, writer.diagnostic)
        # Before the cleanup, which may take long or hang: a verdict that was reached is never lost.
        self._conclude(writer, one, verdict)
        if counters is not None and counted:
            _is_done(lambda: writer.diagnostic(gcov.PREFIX + counters.collect()))
        if one.destructive:
            self._dirty = self._dirty or one.address
            return verdict.kept
        cleaning = self._ground.restore()
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


def _is_done(action: Callable[[], object]) -> bool:
    """Call *action*; return whether the kernel allowed it: a verdict does not depend on counters."""
    try:
        action()
    except OSError:
        return False
    return True


def load_modules(features: Collection[str]) -> None:
    """Load the modules of VFIO where *features* say that it is modular."""
    for name in MODULES if "modular" in features else ():
        _modprobe(name)


def _modprobe(name: str) -> None:
    with open(os.devnull, "r+b") as null:
        actions = [(posix.POSIX_SPAWN_DUP2, null.fileno(), fd) for fd in (0, 1, 2)]
        pid = os.posix_spawnp("modprobe", ["modprobe", name], os.environ, file_actions=actions)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    # End without a traceback when the reader of stdout goes away.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
