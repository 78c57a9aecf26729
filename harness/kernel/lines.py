# SPDX-License-Identifier: GPL-2.0-only
"""Find the source lines of code addresses in a kernel, which as a rule has no debug information.

The object that defines the function is compiled again, by the command that kbuild recorded and with `-g1`,
into a private directory: the code is the same, and GNU addr2line finds the lines.  For a kernel that was
handed in, addr2line reads its own files.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import re
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from harness.base import process
from harness.base.deadline import Deadline
from harness.base.errors import HarnessError
from harness.base.files import write_atomic
from harness.base.places import CodeAddress, Line, Place
from harness.base.values import structure, unstructure
from harness.kernel import gittree
from harness.kernel.build import build_tree_of
from harness.kernel.plan import KernelPlan
from harness.kernel.ready import ReadyKernel
from harness.kernel.store import kernel_entry
from harness.kernel.trees import KernelTree

_MEMO = "lines.json"
"""The file in the kernel's directory of the store with the places that were found."""

_PADDING = 64
"""Between two functions are fewer bytes (CONFIG_FUNCTION_ALIGNMENT_64B); a splat counts them to the first."""

_AROUND = 2
"""How many lines of source are kept on either side."""

_RECORD = re.compile(r"(?:saved)?cmd_\S+ := (.*)")
"""The first line of kbuild's `.NAME.o.cmd` (scripts/Kbuild.include make-cmd)."""

_SYMBOL = re.compile(r"([0-9a-f]+) .{7} (\S+)\t([0-9a-f]+) (?:\.hidden |0x[0-9a-f]+ )?(\S+)")
"""A line of `objdump -t`: value, section, size, name."""

_DEFINED = re.compile(r"(?:.*:)?([^:]+\.o):[0-9a-f]+ (?:([0-9a-f]+) )?(\w) (\S+)")
"""A line of `nm -A -S`: object, size, class, name."""

_ANSWER = re.compile(r"(.*):(\d+)(?: \(discriminator \d+\))?")
_CLONE = re.compile(r"\.(?:isra|constprop|part|cold|llvm)\b.*")

_SHARED = ("drivers/vfio/", "drivers/iommu/")
"""The tested code: its objects are compiled first, while there is time."""


class Unknown(Exception):
    """The reason why addresses cannot be decoded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Symbol:
    section: str
    value: int
    size: int  # 0: not known, as of labels in assembly


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The tools that read the files of one kernel, and where its source is."""

    prefix: str
    """Of the GNU programs for this architecture."""
    places: tuple[Path, ...]
    """Directories that paths are made relative to: the first one that they are in counts."""
    cwd: Path | None = None
    deadline: Deadline
    newest: float = float("inf")
    """A source file that was changed later is not the one that was compiled."""

    def run(self, tool: str, *words: str | Path) -> str:
        program = self.prefix + tool
        if process.find_tool(program) is None:
            raise Unknown(f"{program} is not installed")
        return _run([program, *words], self.cwd, self.deadline, f"{program} failed")

    def ask(self, file: Path, addresses: Iterable[int], *where: str) -> list[tuple[Line, ...]]:
        """Return the lines of each of *addresses* in *file*; *where* are options that name a section."""
        words: tuple[str | Path, ...] = (
            "-a",
            "-f",
            "-i",
            "-e",
            file,
            *where,
            *(f"{at:#x}" for at in addresses),
        )
        return list(parse_addr2line(self.run("addr2line", *words), self.line))

    def line(self, function: str, path: str, number: int) -> Line:
        """Return the line *number* of *path* with the source around it."""
        clean = Path(os.path.normpath(path))
        top = next((top for top in self.places if clean.is_relative_to(top)), None)
        code, first = _excerpt(clean, number) if self._is_unchanged(clean) else ((), 0)
        name = os.fspath(clean.relative_to(top) if top else clean)
        return Line(function=function, file=name, line=number, code=code, first=first)

    def _is_unchanged(self, path: Path) -> bool:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime <= self.newest
        return False


def _run(argv: Sequence[str | Path], cwd: Path | None, deadline: Deadline, what: str) -> str:
    """Return what a command prints; raise Unknown, with *what* and its first error, when it fails."""
    try:
        done = process.run(argv, cwd=cwd, deadline=deadline)
    except HarnessError as error:
        raise Unknown("no time was left" if deadline.expired else str(error)) from None
    if not done.ok:
        said = done.stderr.strip().splitlines() or [done.ending]
        raise Unknown(f"{what}: {next((line for line in said if 'error' in line), said[-1])}")
    return done.stdout


def find_places(
    plan: KernelPlan | ReadyKernel, wanted: Iterable[CodeAddress], deadline: Deadline
) -> dict[str, Place]:
    """Return the place of each of *wanted*, by its text; one that cannot be found has its reason.

    What was found is kept with the kernel, so that nothing is compiled twice.  Never raises HarnessError.
    """
    memo = kernel_entry(plan.key) / _MEMO
    known, asked = _read_memo(memo), dict.fromkeys(wanted)
    missing = [one for one in asked if _key(one) not in known]
    found = {}
    if missing:
        try:
            if isinstance(plan, KernelPlan):
                found = _find_in_objects(plan, missing, deadline)
            else:
                found = _find_in_ready(plan, missing, deadline)
        except (Unknown, HarnessError, OSError) as error:
            found = _all_unknown(missing, str(error))
        made = {_key(one): found[one.text] for one in missing if found[one.text].lines}
        with contextlib.suppress(OSError):
            write_atomic(memo, json.dumps(unstructure({**known, **made})))
    changed = frozenset[str]()
    if isinstance(plan, KernelPlan):
        # Another one than when they were found, if the user committed something since.
        with contextlib.suppress(HarnessError, OSError):
            changed = _uncommitted(plan.tree)
    return {one.text: _marked(known.get(_key(one)) or found[one.text], changed) for one in asked}


def _marked(place: Place, changed: Collection[str]) -> Place:
    """Return *place* with Line.changed of the lines in the files *changed*."""
    lines = (dataclasses.replace(line, changed=line.file in changed) for line in place.lines)
    return dataclasses.replace(place, lines=tuple(lines))


def _key(wanted: CodeAddress) -> str:
    return f"{'=' if wanted.exact else ''}{wanted.text}"


def _read_memo(memo: Path) -> dict[str, Place]:
    with contextlib.suppress(OSError, ValueError, HarnessError):
        return structure(json.loads(memo.read_text(encoding="utf-8")), dict[str, Place], memo)
    return {}


def _all_unknown(wanted: Iterable[CodeAddress], reason: str) -> dict[str, Place]:
    return {one.text: Place(reason=reason) for one in wanted}


def _find_in_objects(plan: KernelPlan, wanted: Sequence[CodeAddress], deadline: Deadline) -> dict[str, Place]:
    """Compile the objects of *wanted* again, from the very source and configuration of *plan*."""

    def waiting() -> None:
        if deadline.expired:
            raise Unknown("another process kept building from the same source")

    tree = build_tree_of(plan.tree.path, plan.config)
    # Nobody changes an unpacked source.
    still = plan.tree.held(waiting) if plan.tree.checkout else plan.tree.configurable()
    with tempfile.TemporaryDirectory(prefix="vfio-harness-") as scratch, still:
        objects = tree.path
        if not tree.facts.finished or tree.is_under_way:
            raise Unknown(f"the objects of this kernel are gone: {objects} holds no finished build")
        source = _Source(
            prefix=_prefix(plan),
            places=(objects, plan.tree.path),
            cwd=objects,
            deadline=deadline,
        )
        found, by_object = _assign(source, objects, wanted)
        order = sorted(by_object, key=lambda name: not name.startswith(_SHARED))

        def decode(name: str) -> dict[str, Place]:
            target = Path(scratch, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _compile(objects, name, target, deadline)
                return _look_up(source, target, by_object[name])
            except (Unknown, HarnessError, OSError) as error:
                return _all_unknown(by_object[name], str(error))

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for places in pool.map(decode, order):
                found |= places
    return found


def _uncommitted(tree: KernelTree) -> frozenset[str]:
    """Return the files of *tree* that differ from the commit that the user has checked out."""
    if tree.repository is None or tree.commit in (None, tree.checkout):
        return frozenset()
    before = gittree.list_files(tree.repository, tree.commit)
    after = gittree.list_files(gittree.provide_mirror(tree.repository), tree.checkout)
    return frozenset(name for name, _ in after.items() - before.items())


def _prefix(plan: KernelPlan | ReadyKernel) -> str:
    """Return the prefix of the GNU programs that read the objects of *plan*, whatever compiled them."""
    own = plan.toolchain.prefix if isinstance(plan, KernelPlan) else ""
    prefixes = (own, plan.arch.cross_compile)
    return next(
        (one for one in prefixes if one and process.find_tool(f"{one}addr2line")), plan.arch.cross_compile
    )


def _assign(
    source: _Source, objects: Path, wanted: Iterable[CodeAddress]
) -> tuple[dict[str, Place], dict[str, list[CodeAddress]]]:
    """Return the addresses by the object that has their code, and the places of those without one."""
    unknown: dict[str, Place] = {}
    assigned: dict[str, list[CodeAddress]] = defaultdict(list)
    by_module: dict[str, list[CodeAddress]] = defaultdict(list)
    for one in wanted:
        by_module[one.module].append(one)
    for module, ones in by_module.items():
        files = _module_objects(objects, module) if module else _built_in(objects)
        if not files:
            what = f"no objects of the module {module}" if module else "no vmlinux.a"
            unknown |= _all_unknown(ones, f"the build has {what}")
            continue
        defined = parse_nm(
            source.run("nm", "-A", "-S", "--defined-only", *files), {one.symbol for one in ones}
        )
        for one in ones:
            try:
                path = choose_object(one, defined.get(one.symbol, ()))
            except Unknown as reason:
                unknown[one.text] = Place(reason=str(reason))
            else:
                assigned[path].append(one)
    return unknown, assigned


def _built_in(objects: Path) -> list[str]:
    """Return the archives from which vmlinux is linked (scripts/link-vmlinux.sh)."""
    found = [objects / "vmlinux.a", objects / "lib/lib.a", *objects.glob("arch/*/lib/lib.a")]
    return [os.fspath(path.relative_to(objects)) for path in found if path.is_file()]


def _module_objects(objects: Path, module: str) -> list[str]:
    """Return the objects of *module*, which kbuild lists in its `.mod`."""
    with contextlib.suppress(OSError):
        for name in (objects / "modules.order").read_text(encoding="utf-8").split():
            path = objects / name
            if path.stem.replace("-", "_") == module:
                return path.with_suffix(".mod").read_text(encoding="utf-8").split()
    return []


@dataclasses.dataclass(frozen=True, slots=True)
class Definition:
    """An object that defines a symbol."""

    path: str
    size: int
    weak: bool


def parse_nm(printed: str, names: set[str]) -> dict[str, list[Definition]]:
    """Return which objects define each of *names*, from the output of `nm -A -S`."""
    found: dict[str, list[Definition]] = defaultdict(list)
    for line in printed.splitlines():
        if line.rpartition(" ")[2] in names and (match := _DEFINED.fullmatch(line)):
            size = int(match[2] or "0", 16)
            found[match[4]].append(Definition(match[1], size, match[3] in "WwVv"))
    return found


def choose_object(wanted: CodeAddress, defined: Sequence[Definition]) -> str:
    """Return the object of *defined* that has the code of *wanted*: static functions may share a name.

    Raises Unknown, with the reason, when there is not exactly one.
    """
    strong = [one for one in defined if not one.weak] or list(defined)
    # If it has another size, the objects may be of another commit: what is compiled anew will tell.
    fitting = [one for one in strong if _fits(one.size, wanted)] or (strong if len(strong) == 1 else [])
    largest = max((one.size for one in fitting), default=0)
    found = sorted({one.path for one in fitting if one.size == largest})
    if len(found) == 1:
        return found[0]
    if found:
        raise Unknown(f"several functions have this name and size: {', '.join(found)}")
    if defined:
        raise Unknown(f"no function of this name has {wanted.size:#x} bytes in the build")
    raise Unknown("no object of the build defines it")


def _fits(size: int, wanted: CodeAddress) -> bool:
    return not size or 0 <= wanted.size - size < _PADDING


def recorded_line(record: str) -> str:
    """Return what kbuild runs to make an object, from the text of its `.NAME.o.cmd`; empty for other text."""
    match = _RECORD.match(record)
    return match[1].replace("$(pound)", "#").replace("$$", "$") if match else ""


def recorded_command(record: str) -> list[str]:
    """Return the command of a compiler in the text of a `.NAME.o.cmd`, without what kbuild runs after it.

    Raises Unknown for anything else.
    """
    words = shlex.split(recorded_line(record))
    words = words[: words.index(";")] if ";" in words else words
    if "-o" not in words or "-c" not in words:
        raise Unknown("it is not compiled from C or assembly")
    return [word for word in words if not word.startswith(("-Wp,-MMD", "-Wp,-MD"))]


def _compile(objects: Path, name: str, target: Path, deadline: Deadline) -> None:
    """Compile the object *name* of the build *objects* again, into *target*, with line numbers."""
    path = objects / name
    command = recorded_command(path.with_name(f".{path.name}.cmd").read_text(encoding="utf-8"))
    command[command.index("-o") + 1] = os.fspath(target)
    # -g1 is enough for lines and inlined functions, and changes no code.
    _run([*command, "-g1"], objects, deadline, f"{name} cannot be compiled again")


def _look_up(
    source: _Source, file: Path, wanted: Sequence[CodeAddress], *, linked: bool = False
) -> dict[str, Place]:
    """Return the places of *wanted*, all in *file*, which has debug information.

    Unless it is *linked*, all of its sections are at address 0.
    """
    found: dict[str, Place] = {}
    questions: dict[str, list[tuple[CodeAddress, int]]] = defaultdict(list)
    symbols = _read_symbols(source.run("objdump", "-t", file), {one.symbol for one in wanted})
    for one in wanted:
        fitting = [symbol for symbol in symbols.get(one.symbol, ()) if _fits(symbol.size, one)]
        if len({(symbol.section, symbol.value) for symbol in fitting}) == 1:
            questions["" if linked else fitting[0].section].append((one, fitting[0].value + one.asked))
        else:
            why = f"its code differs: {file.name} has no function of this name with {one.size:#x} bytes now"
            found[one.text] = Place(reason=why)
    for section, asked in questions.items():
        where = ("-j", section) if section else ()
        answers = source.ask(file, [at for _, at in asked], *where)
        for (one, _), lines in zip(asked, answers, strict=True):
            found[one.text] = _place(one, lines)
    return found


def _read_symbols(printed: str, names: set[str]) -> dict[str, list[_Symbol]]:
    found: dict[str, list[_Symbol]] = defaultdict(list)
    for line in printed.splitlines():
        if line.rpartition(" ")[2] in names and (match := _SYMBOL.fullmatch(line)):
            symbol = _Symbol(section=match[2], value=int(match[1], 16), size=int(match[3], 16))
            found[match[4]].append(symbol)
    return found


def parse_addr2line(printed: str, line: Callable[[str, str, int], Line]) -> Iterator[tuple[Line, ...]]:
    """Yield the lines of each address in the output of `addr2line -a -f -i`; none for an unknown one."""
    for block in re.split(r"^0x[0-9a-f]+\n", printed, flags=re.MULTILINE)[1:]:
        rows = block.splitlines()
        pairs = zip(rows[::2], map(_ANSWER.fullmatch, rows[1::2]), strict=False)
        yield tuple(line(name, at[1], int(at[2])) for name, at in pairs if at and at[1] != "??")


def _place(wanted: CodeAddress, lines: tuple[Line, ...]) -> Place:
    if not lines:
        return Place(reason="there is no line number for it in the debug information")
    own = _CLONE.sub("", wanted.symbol)
    if lines[-1].function != own and not lines[-1].file.endswith(".S"):
        return Place(reason=f"addr2line finds another function there: {lines[-1].function}")
    return Place(lines=lines)


def _find_in_ready(plan: ReadyKernel, wanted: Sequence[CodeAddress], deadline: Deadline) -> dict[str, Place]:
    """Find the lines in the kernel and modules that were handed in, by their own debug information."""
    vmlinux = plan.built.vmlinux
    source = _Source(prefix=_prefix(plan), places=(), deadline=deadline, newest=vmlinux.stat().st_mtime)
    start = _read_symbols(source.run("objdump", "-t", vmlinux), {"start_kernel"})["start_kernel"]
    told = source.ask(vmlinux, [one.value for one in start])
    if not any(told):
        raise Unknown("this kernel was handed in without debug information (CONFIG_DEBUG_INFO)")
    # start_kernel() is in init/main.c.
    source = dataclasses.replace(source, places=(Path(told[0][-1].file).parent.parent,))
    by_module: dict[str, list[CodeAddress]] = defaultdict(list)
    for one in wanted:
        by_module[one.module].append(one)
    found: dict[str, Place] = {}
    for module, ones in by_module.items():
        file = _module_file(plan.built.modules_dir, module) if module else vmlinux
        if file is None:
            found |= _all_unknown(ones, f"the module {module} has no uncompressed file in the store")
        else:
            found |= _look_up(source, file, ones, linked=not module)
    return found


def _module_file(modules: Path | None, module: str) -> Path | None:
    files = modules.rglob("*.ko") if modules is not None else ()
    return next((path for path in files if path.stem.replace("-", "_") == module), None)


@functools.lru_cache(maxsize=64)
def _source_lines(path: Path, _changed: float) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())


def _excerpt(path: Path, number: int) -> tuple[tuple[str, ...], int]:
    """Return the lines around line *number* of *path*, and the number of the first."""
    with contextlib.suppress(OSError):
        lines = _source_lines(path, path.stat().st_mtime)
        if 0 < number <= len(lines):
            first = max(1, number - _AROUND)
            return lines[first - 1 : number + _AROUND], first
    return (), 0
