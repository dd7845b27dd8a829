"""Options of several commands, and the output of commands on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vllm_cls.config import CONVERT_MODES, DTYPES, SEQUENCE_POOLING, sequence_poolings
from vllm_cls.parsing.option_lists import split, unescape

if TYPE_CHECKING:
    ParamType = click.ParamType[Any, Any]  # generic in newer versions of click alone
    Choice = click.Choice[str]
else:
    ParamType, Choice = click.ParamType, click.Choice

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class State:
    """The verbosity of a run."""

    verbose: bool = False
    quiet: bool = False
    debug: bool = False


pass_state = click.make_pass_decorator(State, ensure=True)


class JsonObject(ParamType):
    """A JSON object, or @FILE that holds one."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Mapping):
            return value
        text = value
        try:
            if value.startswith("@"):
                with open(value[1:], encoding="utf-8") as file:
                    text = file.read()
            found = json.loads(text)
        except OSError as error:
            self.fail(f"{value[1:]!r} cannot be read: {error.strerror}.", param, ctx)
        except ValueError as error:
            self.fail(f"{text!r} is not JSON ({error}); write it as '{{\"key\": value}}'.", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{text!r} is not a JSON object; write it as '{{\"key\": value}}'.", param, ctx)
        return found


class Template(ParamType):
    """A text in which a shell's plain quotes can hold `\\n`, `\\t` and `\\\\`."""

    name = "TEMPLATE"
    marks = {"n": "\n", "t": "\t", "\\": "\\"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return re.sub(r"\\([nt\\])", lambda match: self.marks[match[1]], str(value))


class LabelTokens(Template):
    """The texts of labels; `\\n` and `\\t` are unescaped here, other backslashes when the list is split."""

    name = "LABEL=TEXT|TEXT,…"
    marks = {**Template.marks, "\\": "\\\\"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        is_json = not isinstance(value, str) or value.lstrip().startswith("{")  # which has its own escapes
        return value if is_json else super().convert(value, param, ctx)


class NameListParam(ParamType):
    """Names separated by commas (a comma within a name is escaped by a backslash), or a JSON list."""

    name = "A,B,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return [unescape(name.strip()) for name in split(value, ",")]
        try:
            return [str(name) for name in json.loads(value)]
        except ValueError as error:
            self.fail(f"{value!r} is not a JSON list ({error}).", param, ctx)


class PoolingChoice(Choice):
    """A pooling method of texts. Plugins are loaded where the name is none of ours."""

    def __init__(self) -> None:
        super().__init__([name.lower() for name in SEQUENCE_POOLING], case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value.lower() in self.choices:
            return super().convert(value, param, ctx)
        names = [name.lower() if name in SEQUENCE_POOLING else name for name in sequence_poolings()]
        return click.Choice(names, case_sensitive=False).convert(value, param, ctx)


def _joined(ctx: click.Context, param: click.Parameter, value: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(name for several in value for name in several)


def _existing_folder(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if value and not os.path.isdir(value):
        raise click.BadParameter(f"there is no folder {value!r}.", ctx, param)
    return value


_COMMON = [
    click.option("--tokenizer", metavar="PATH", help="Where the tokenizer is, if not beside the model."),
    click.option("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N.", show_default=True),
    click.option("--max-model-len", type=int, metavar="N", help="Longest text in tokens; else the model's own."),
    click.option("--max-num-batched-tokens", type=int, metavar="N", help="Tokens in one batch; else the device's own."),
    click.option("--hf-overrides", type=JsonObject(), help="Values that replace those of config.json; or @FILE."),
    click.option("--revision", metavar="NAME", help="Branch, tag or commit on the hub."),
    click.option("--plugin", metavar="NAME", help="The plugin that decides, where several take the model."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model. Read it first."),
    click.option("--allow-pickle", is_flag=True, help="Read weights in .bin files too (with weights_only)."),
]
_RUNNING = [
    click.option("--num-threads", type=int, metavar="N", help="Of the CPU; else what torch takes, at most its cores."),
    click.option(
        "--enable-prefix-caching/--no-enable-prefix-caching", default=True, show_default=True,
        help="Compute what texts have in common at their beginning once (causal models).",
    ),
    click.option("--prefix-cache-bytes", type=int, metavar="N", help="Memory for that; else the device's own."),
    click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Of the weights."),
    click.option(
        "--tensor-parallel-size", type=int, default=1, metavar="N", show_default=True,
        help="GPUs, or processes on a CPU, that hold a part of each weight and compute together.",
    ),
    click.option(
        "--pipeline-parallel-size", type=int, default=1, metavar="N", show_default=True,
        help="GPUs, or processes on a CPU, that hold some of the layers each; batches follow each other.",
    ),
    click.option(
        "--data-parallel-size", type=int, default=1, metavar="N", show_default=True,
        help="GPUs, or processes on a CPU, that hold the whole model each; texts are shared out.",
    ),
    click.option(
        "--quantization", type=click.Choice(["none", "int8", "fp8"]), default="none", show_default=True,
        help="int8 on a CPU, fp8 on a GPU of compute capability 8.9 or more.",
    ),
    click.option("--pooler-config", type=JsonObject(), help='Such as \'{"pooling_type": "MEAN"}\'; or @FILE.'),
    click.option("--convert", type=click.Choice(CONVERT_MODES), default="auto", show_default=True),
    click.option("--lora", metavar="FOLDER", help="A PEFT LoRA adapter: merged into the weights, and its head is taken."),
]  # fmt: skip


def _stored(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def store(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(State), name, True)

    return store


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_stored("debug"), help="Show the traceback of an error."
)
"""Of a command, and of `vcls` itself."""
_SPEAKING = [
    click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_stored("quiet"), help="Say errors only."),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_stored("verbose"),
        help="Show what the libraries say, and tracebacks.",
    ),
    debug_option,
]  # fmt: skip


def model_options(function: F) -> F:
    """Options of a command that reads a model and writes another."""
    return with_options(function, [*_COMMON, *_SPEAKING])


def running_options(function: F) -> F:
    """Options of a command that runs a model."""
    return with_options(function, [*_RUNNING, *_COMMON, *_SPEAKING])


def running_names() -> set[str]:
    """The names of these options, as a command gets them."""
    command = click.command()(running_options(lambda: None))
    return {parameter.name for parameter in command.params if parameter.name and parameter.expose_value}


def verbosity_options(function: F) -> F:
    """The options -q, -v and --debug."""
    return with_options(function, _SPEAKING)


_MEDIA = [
    click.option(
        "--allowed-media-domains", type=NameListParam(), multiple=True, metavar="A,B,…", callback=_joined,
        help="Fetch images and videos from these hosts, exactly; HOST:PORT is another port. Else none is fetched.",
    ),
    click.option(
        "--allowed-local-media-path", default="", metavar="FOLDER", callback=_existing_folder,
        help="Read local images and videos under this folder alone, links resolved.",
    ),
    click.option(
        "--limit-mm-per-prompt", type=JsonObject(), default=dict, metavar="JSON",
        help='The most images and videos of a prompt, such as \'{"image": 4, "video": 1}\'.',
    ),
]  # fmt: skip


MEDIA = ("allowed_media_domains", "allowed_local_media_path", "limit_mm_per_prompt")
"""The names of the options of `media_options`."""


def media_options(function: F) -> F:
    """Where images and videos may come from, and how many a prompt may have; the names are vLLM's."""
    return with_options(function, _MEDIA)


def with_options(function: F, options: Sequence[Callable[[F], F]]) -> F:
    """A command with these options, shown in this order."""
    for option in reversed(options):
        function = option(function)
    return function


def say(text: str, *, style: str | None = None) -> None:
    """One line on stderr, in colour where it is a terminal."""
    console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def console(*, stderr: bool = False) -> Any:
    """A rich console; where it is no terminal, plain and wide, and nothing moves on it, FORCE_COLOR or not."""
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, width=160, highlight=False, force_interactive=False)


def configure_output(state: State) -> None:
    """Show our own warnings, a line each, and messages of other libraries only with -v; call it before they are imported."""
    import logging
    import warnings

    if state.verbose:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("vllm_cls").setLevel(logging.INFO)
        return
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    loaded = sys.modules.get("transformers")
    if loaded is not None:  # its variables are read only when it loads
        loaded.logging.set_verbosity_error()
        loaded.logging.disable_progress_bar()
    ours = tuple(_our_folders())

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if not state.quiet and filename.startswith(ours):
            say(f"warning: {message}", style="yellow")

    warnings.showwarning = show


def _our_folders() -> list[str]:
    import vllm_cls
    from vllm_cls import cli

    return [os.path.realpath(path) + os.sep for package in (vllm_cls, cli) for path in package.__path__]
