# SPDX-License-Identifier: GPL-2.0-only
"""What was given on the command line of a verb: refuse some of it, repeat the rest."""

from __future__ import annotations

from collections.abc import Collection

import click

from harness.base.errors import UsageError


def given() -> dict[str, click.Parameter]:
    """Return the parameters given on the command line, by their names in the function of the verb."""
    context = click.get_current_context()
    return {
        str(parameter.name): parameter
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is click.core.ParameterSource.COMMANDLINE
        # click reports a repeatable argument as given even if it is empty.
        and context.params.get(str(parameter.name)) != ()
    }


def refuse_beside(sentence: str, kept: Collection[str] = (), *, only: Collection[str] | None = None) -> None:
    """Refuse every parameter given on the command line that is not one of *kept*; *sentence* says why.

    With *only*, no others are refused.
    """
    for name, parameter in given().items():
        if name not in kept and (only is None or name in only):
            is_option = isinstance(parameter, click.Option)
            word = parameter.opts[0] if is_option else parameter.human_readable_name.strip("[]")
            raise UsageError(f"{sentence}: leave {word} out")


def repeated(*, without: Collection[str] = ()) -> list[str]:
    """Return the command line of the verb again, as words, without the parameters named in *without*."""
    context = click.get_current_context()
    words, arguments = [str(context.info_name)], []
    for name, parameter in given().items():
        value = context.params[name]
        values = value if isinstance(value, tuple) else (value,)
        if name in without:
            continue
        if not isinstance(parameter, click.Option):
            arguments += list(map(str, values))
        elif parameter.is_flag:
            words.append(parameter.opts[-1] if value else parameter.secondary_opts[-1])
        else:
            words += [word for one in values for word in (parameter.opts[-1], str(one))]
    return [*words, "--", *arguments] if arguments else words
