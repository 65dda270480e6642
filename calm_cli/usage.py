"""What is typed: commands, options and arguments. A mistake in them is one line that says how it is meant."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperArgument, TyperCommand, TyperGroup

from calm_core.config import Config, setting_names
from calm_core.config.base import in_our_words
from calm_core.errors import CalmError, ConfigError
from calm_core.shown import shortened
from pipelines import profiles

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for whatever it cannot use; it exports this class's heirs only."""

_OTHER_WORDS = {"help": "--help", "version": "--version"}
_PLAIN_TYPES = {int: "N", float: "X", str: "TEXT"}
_LONG_DASHES = "\u2013\u2014"
_MOST_NAMES = 4


class Command(TyperCommand):
    """A command whose options are given once, each with its value, and whose arguments are as many as it takes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            given, left, order = self.make_parser(ctx).parse_args(list(args))
            if not any(param.is_eager for param in order):  # else --help answers
                self._check(ctx, given, order)
                if left:
                    raise ConfigError(_left_over(self, ctx, args, left))
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise ConfigError(_line(error, ctx, args)) from None

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_plain_words(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            Path.cwd()
        except FileNotFoundError:
            raise CalmError("the current folder has been deleted; change to one that exists") from None
        return super().invoke(ctx)

    def _check(self, ctx: Any, given: dict[str, Any], order: Sequence[Any]) -> None:
        """Refuse options that are given twice, and values that are empty or another option's name."""
        names = set(_option_names(self, ctx))
        for param in (param for param in order if not getattr(param, "is_flag", False)):
            name, value = _name(param), given[param.name]
            if param.nargs != 1 and not param.required:  # prompts, which are any text
                continue
            if order.count(param) > 1 and not param.multiple:
                raise ConfigError(f"{name}: is given {order.count(param)} times; give it once")
            for text in value if isinstance(value, list | tuple) else [value]:
                if text == "":
                    raise ConfigError(
                        f"{name}: is empty; give it a value{'' if param.required else ', or leave it out'}"
                    )
                if text is not None and text.partition("=")[0] in names:
                    raise ConfigError(f"{name}: has no value, {text} follows it; write {name} {_kind(param, ctx)}")


class Group(TyperGroup):
    """Commands; without one, the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            typer.echo(ctx.get_help())
            ctx.exit()
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise ConfigError(_line(error, ctx, args)) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError:  # only -- stands where the command would
            raise ConfigError(f"{_path(ctx)}: a command is missing; `{ctx.command_path} --help` lists them") from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands:
            raise ConfigError(_no_such_command(self, ctx, args[0]))
        return super().resolve_command(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        return _in_plain_words(super().get_params(ctx))


class App(typer.Typer):
    """An application of such commands.

    Args:
        options: Of typer.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("cls", Group)
        super().__init__(context_settings={"help_option_names": ["-h", "--help"]}, **options)

    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, cls=Command, **options)


def _in_plain_words(params: list[Any]) -> list[Any]:
    """Parameters whose help has no words of Python for what they take: N, X or TEXT, and nothing for a switch."""
    for param in params:
        if isinstance(param, TyperArgument):
            setattr(param, "display_type_rich", lambda ctx: None)  # noqa: B010  # typer shows it beside the metavar
        elif param.metavar is None and not param.type_descriptor.is_choice:
            param.metavar = "" if param.is_flag else _plain_type(param.type_descriptor.annotation)
    return params


def _plain_type(annotation: Any) -> str:
    return _PLAIN_TYPES.get(annotation, "TEXT")


def _name(param: Any) -> str:
    """A parameter as it is typed."""
    return str(param.metavar or param.name.upper()) if isinstance(param, TyperArgument) else max(param.opts, key=len)


def _kind(param: Any, ctx: Any) -> str:
    return str(param.metavar or param.display_type(ctx))


def _option_names(command: Any, ctx: Any) -> Iterator[str]:
    for param in command.get_params(ctx):
        if not isinstance(param, TyperArgument):
            yield from (*param.opts, *param.secondary_opts)


def _path(ctx: Any) -> str:
    return f"`{ctx.command_path}`"


def _line(error: Any, ctx: Any, args: Sequence[str]) -> str:
    """An error of typer's in our words."""
    option, param = getattr(error, "option_name", None), getattr(error, "param", None)
    if option is not None and hasattr(error, "possibilities"):
        return _no_such_option(ctx, option, args)
    if option is not None:
        given = {_name(param): param for param in ctx.command.get_params(ctx)}.get(option)
        if given is None or given.is_flag:
            return f"{option}: is a switch, it takes no value"
        return f"{option}: has no value; write {option} {_kind(given, ctx)}"
    if param is None:
        return str(error.format_message())
    if isinstance(error.__cause__, ValidationError):
        details = error.__cause__.errors()[0]
        return f"{_name(param)} {shortened(str(details['input']))}: {_expected(param, details)}"
    if hasattr(error, "param_type"):
        kind = "" if isinstance(param, TyperArgument) else f" {_kind(param, ctx)}"
        about = f" ({param.help.rstrip('.')})" if param.help else ""
        return f"{_path(ctx)}: {_name(param)}{kind} is missing{about}; `{ctx.command_path} --help` shows examples"
    return f"{_name(param)}: {error.message}"


def _expected(param: Any, details: Any) -> str:
    """What a parameter takes in place of a value that is refused."""
    if choices := param.type_descriptor.choices:
        return f"expected {', '.join(choices[:-1])} or {choices[-1]}"
    if details["type"].endswith("_than_equal") and None not in (param.min, param.max):
        least, most = (bound if isinstance(bound, int) else f"{bound:g}" for bound in (param.min, param.max))
        return f"expected {least} to {most} ({param.help.rstrip('.')})"
    return in_our_words(details)


def _no_such_option(ctx: Any, name: str, args: Sequence[str]) -> str:
    typed = next((arg.partition("=")[0] for arg in args if arg.startswith(name)), name)
    names = [option for option in _option_names(ctx.command, ctx) if option.startswith("--")]
    line = f"{typed}: no such option of {_path(ctx)}; "
    if isinstance(ctx.command, Group):
        having = [command for command, its in ctx.command.commands.items() if typed in _option_names(its, ctx)]
        if having:
            return line + f"options stand behind their command: `{ctx.command_path} {having[0]} {typed} ...`"
    word = "--" + typed.lstrip("-").lower().replace("_", "-")
    if close := [option for option in names if option.startswith(word)] or get_close_matches(word, names, 1, 0.7):
        return line + f"did you mean {' or '.join(close)}?"
    if "--set" in names and (settings := _settings_called(typed.lstrip("-"))):
        return line + f"did you mean {' or '.join(f'--set {setting}=...' for setting in settings)}?"
    if any(isinstance(param, TyperArgument) for param in ctx.command.params) and not typed.startswith("--"):
        return line + "write -- before an argument that begins with a hyphen"
    return line + f"`{ctx.command_path} --help` lists its options"


def _settings_called(word: str) -> list[str]:
    """Settings that have a name, whole or in their section."""
    word = word.lower().replace("-", "_")
    return [name for name in setting_names(Config) if word in (name, name.rpartition(".")[2])][:_MOST_NAMES]


def _no_such_command(group: Group, ctx: Any, name: str) -> str:
    ways = {command: command for command in group.commands} | _OTHER_WORDS
    for command, inner in group.commands.items():
        if isinstance(inner, Group):
            ways |= {within: f"{command} {within}" for within in inner.commands if within not in group.commands}
    line = f"{shortened(name)}: no such command of {_path(ctx)}; "
    first = name.split(" ")[0]
    if first != name and first in group.commands:
        return line + "leave out the quotes around command and options"
    if close := get_close_matches(name.lower(), ways, n=1):
        return line + f"did you mean `{ctx.command_path} {ways[close[0]]}`?"
    return line + f"there are {', '.join(group.commands)}"


def _left_over(command: Command, ctx: Any, args: Sequence[str], left: Sequence[str]) -> str:
    """How arguments are meant that belong to nothing."""
    first, before = left[0], args[: args.index(left[0])]
    if first[0] in _LONG_DASHES:
        return f"{first}: begins with a long dash; options begin with two hyphens: --{first.lstrip(_LONG_DASHES + '-')}"
    params = {name: param for param in command.get_params(ctx) for name in param.opts}
    name, _, value = before[-1].partition("=") if before else ("", "", "")
    if len(before) > 1 and before[-2] in params:
        name, value = before[-2], before[-1]
    if name in params and value and not params[name].is_flag:
        return f"{name}: takes one value, and {first} follows it; {_one_value(name, params[name], [value, *left])}"
    line = f"{first}: {_path(ctx)} does not take this; "
    if "--set" in params and "=" in first:
        return line + f"did you mean --set {first}?"
    if "--profile" in params and (first in profiles.names() or first.endswith((".yaml", ".yml"))):
        return line + f"did you mean --profile {first}?"
    if "--source" in params:
        return line + f"did you mean --source {first}?"
    takes = " and ".join(_name(param) for param in command.params if isinstance(param, TyperArgument))
    return line + f"beside its options it takes {f'one {takes}' if takes else 'nothing'}"


def _one_value(name: str, option: Any, values: list[str]) -> str:
    """How several values of an option are written that takes one."""
    if name == "--source":
        return f"quote a pattern, so that the shell leaves it as it is: {name} '{_pattern(values)}'"
    if name == "--set" and "".join(values).count("=") == 1 and "=" not in values[0].rstrip("="):
        return f"write it without spaces: {name} {''.join(values)}"
    if option.multiple:
        return f"repeat the option: {' '.join(f'{name} {value}' for value in values[:2])}"
    return f"quote a value that holds spaces: {name} '{' '.join(values)}'"


def _pattern(paths: Sequence[str]) -> str:
    """The pattern that a shell has made these paths from, as far as they tell."""
    folders = {path.rpartition("/")[0] for path in paths}
    endings = {"".join(PurePath(path).suffixes[-2:]) for path in paths}
    if len(endings) > 1:
        endings = {PurePath(path).suffix for path in paths}
    if len(folders) > 1 or len(endings) > 1:
        return "texts/*.jsonl"
    folder = folders.pop()
    return f"{folder}{'/' if folder else ''}*{endings.pop()}"
