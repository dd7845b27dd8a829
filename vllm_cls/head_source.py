"""`HeadSource`, by which a plugin adds a way to make heads, with the options of `convert` that it takes; and `Guard`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .architecture import CLASSIFIERS, HeadRequest, HeadResult
from .errors import ConfigError, PluginError, nearest

EXISTING = "existing"
"""The source that keeps a checkpoint's own head, and is the default where there is one."""
SHARED_OPTIONS = {
    "label_tokens": "--label-tokens, such as 'negative= bad,positive= good'",
    "train": "--train FILE with labelled rows",
    "bias": "--bias or --no-bias",
    "head_weights": "--head-weights FILE.safetensors",
}
"""Options of `convert` that belong to those heads which say that they take them; every head is given the others."""
_TYPES: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class HeadOption:
    """An option that a head source adds to `convert`: `--my-option` on the command line, `my_option=` in Python.

    Args:
        name: in Python, `my_option`.
        help: a line for `vcls convert --help`.
        type: `str`, `int`, `float` or `bool`, which is `--my-option/--no-my-option`.
        default: where it is not given.
    """

    name: str
    help: str
    type: type = str
    default: Any = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.type not in _TYPES:
            known = ", ".join(each.__name__ for each in _TYPES)
            raise PluginError(f"HeadOption({self.name!r}, type={self.type!r}): a name of Python, and one of {known}.")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    def checked(self, value: Any) -> Any:
        """A value that was given, or the default for None.

        Raises:
            ConfigError: it is of another type.
        """
        if value is None:
            return self.default
        fits = isinstance(value, (int, float) if self.type is float else self.type)
        if not fits or (isinstance(value, bool) and self.type is not bool):
            raise ConfigError(f"{self.flag} {value!r} is not {_TYPES[self.type]}.")
        return value


@dataclass(frozen=True)
class HeadSource:
    """A way to make heads; a plugin registers it under a name for `--head`.

    Args:
        make: the head that a `HeadRequest` asks for. Its `options` hold, beside those that every head is given
            (`num_labels`, `seed`, `validation_split`, `adapter`), what this source takes and its own options.
        summary: a line for `vcls convert --help`.
        takes: which of `SHARED_OPTIONS`. `label_tokens` is a mapping then, label → its texts; with `train`, the rows of that
            file are in `options` too: `prompts`, `targets`, and `train_name` for the model card.
        needs: which of these, and of its own options, have to be given; what it needs, it takes.
        options: its own.
        tasks: what its heads are for: "classify", "token_classify" or both.
        one_label: its heads have one label.
        reads_lm_head: its heads are made of the language model's output layer: they are about what follows the prompt,
            so a bare prompt is warned of, and an adapter that changes that layer is refused.
        example: a command for `vcls convert --help`.
        card: a sentence for the model card: what the head's scores are.
    """

    make: Callable[[HeadRequest], HeadResult]
    summary: str
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    options: tuple[HeadOption, ...] = ()
    tasks: tuple[str, ...] = ("classify",)
    one_label: bool = False
    reads_lm_head: bool = False
    example: str = ""
    card: str = ""

    def __post_init__(self) -> None:
        own = [each.name for each in self.options]
        given: dict[str, tuple[Any, list[str]]] = {
            "takes": (self.takes, [*SHARED_OPTIONS]),
            "needs": (self.needs, [*SHARED_OPTIONS, *own]),
            "tasks": (self.tasks, [*CLASSIFIERS]),
        }
        for field, (names, known) in given.items():
            for name in names:
                if isinstance(names, str) or name not in known:
                    raise PluginError(
                        f"HeadSource.{field}={names!r}: give a tuple of {', '.join(known)}.{nearest(name, known)}"
                    )
        if len(set(own) - set(SHARED_OPTIONS)) != len(own):
            raise PluginError(f"HeadSource.options: the names {', '.join(own)} have to differ, also from takes.")

    def may_have(self, name: str) -> bool:
        """Whether an option of this name may be given with it."""
        return name in (*self.takes, *self.needs, *(each.name for each in self.options))

    def own_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its own options by name, with their defaults where they are not given.

        Raises:
            ConfigError: one has a wrong value.
        """
        return {each.name: each.checked(given.get(each.name)) for each in self.options}


@dataclass(frozen=True)
class Guard:
    """How a causal language model judges texts, in the prompt that its chat template writes.

    It asks of each category by itself (`asked`), or names categories behind its verdict (`named`).

    Args:
        name: what `vcls inspect` shows.
        verdicts: a label → the text by which the model gives it, told by its first token; the harmless one first.
        answer: what the model writes before its verdict.
        options: of the chat template.
        asked: a category → options of the chat template that ask for it.
        named: a category → the text by which the model names it, told by its first token.
        names_after: a verdict → what the model writes behind `answer` before the first category that it names.
    """

    name: str
    verdicts: Mapping[str, str]
    answer: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    asked: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    names_after: Mapping[str, str] = dataclasses.field(default_factory=dict)
