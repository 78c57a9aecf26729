# SPDX-License-Identifier: GPL-2.0-only
"""Results to and from plain JSON values, as the databases and the JSON report have them.

The keys are the names of the fields.  Values that an older harness wrote lack newer fields, which then have
their defaults.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Mapping
from typing import Any

from harness.base.cause import Cause
from harness.base.errors import ExitCode
from harness.base.outcome import Outcome
from harness.results.model import Address, Inputs, JobRecord, Result, RunInfo

Plain = dict[str, Any]

_NAMES: Mapping[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in dataclasses.fields(kind))
    for kind in (Address, Inputs, JobRecord, Result, RunInfo)
}
"""Class -> the names of its fields."""


def time_to_text(moment: datetime.datetime) -> str:
    """*moment* in UTC, ISO 8601, to the millisecond."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def time_from_text(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _to_plain(value: Any) -> Any:
    if type(value) in (str, int, float, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime.datetime):
        return time_to_text(value)
    if isinstance(value, tuple):
        return [_to_plain(one) for one in value]
    if isinstance(value, Mapping):
        return dict(value)
    names = _NAMES.get(type(value))
    return value if names is None else {name: _to_plain(getattr(value, name)) for name in names}


def _fields(kind: type[Any], plain: Plain) -> Plain:
    """Return the fields of *kind* that are in *plain*, which an older harness may have written with other
    fields."""
    known = {name: plain[name] for name in _NAMES[kind] if name in plain}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


def info_to_plain(info: RunInfo) -> Plain:
    plain: Plain = _to_plain(info)
    return plain


def info_from_plain(plain: Plain) -> RunInfo:
    inputs = Inputs(**_fields(Inputs, plain["inputs"]))
    started = time_from_text(plain["started"])
    return RunInfo(**{**_fields(RunInfo, plain), "inputs": inputs, "started": started})


def job_to_plain(job: JobRecord) -> Plain:
    plain: Plain = _to_plain(job)
    return plain


def job_from_plain(plain: Plain) -> JobRecord:
    code = ExitCode(plain["problem_code"])
    known = _fields(JobRecord, plain)
    return JobRecord(**{**known, "problem_code": code, "cause": _cause(plain)})


def result_to_plain(result: Result) -> Plain:
    plain: Plain = _to_plain(result)
    return {**plain, **_to_plain(result.address), "address": str(result.address)}


def result_from_plain(plain: Plain) -> Result:
    """Read a result; databases have the empty text for None and a number for a truth value."""
    stopped_by = plain.get("stopped_by")
    return Result(
        **{
            **_fields(Result, plain),
            "address": Address(suite=plain["suite"], program=plain["program"], case=plain["case"]),
            "outcome": Outcome(plain["outcome"]),
            "cause": _cause(plain),
            "stopped_by": Outcome(stopped_by) if stopped_by else None,
            "confirms": bool(plain.get("confirms")),
        }
    )


def _cause(plain: Plain) -> Cause | None:
    return Cause(plain["cause"]) if plain.get("cause") else None
