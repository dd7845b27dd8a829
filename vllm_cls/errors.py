"""The one family of errors: what was wrong, with which value, and what to do next."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class VclsError(Exception):
    """Base of every error that vllm-cls raises on purpose; its message is written for the user.

    Args:
        message: what was wrong, with which value, and what to do next.
        param: the argument that was wrong, if it was one.
    """

    def __init__(self, message: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelError(VclsError):
    """This model cannot be loaded or converted."""


class PromptError(VclsError, ValueError):
    """This prompt cannot be classified; other prompts are not affected."""


class PromptTooLongError(PromptError):
    """This prompt has more tokens than the model takes."""


class RunError(PromptError):
    """The model failed at this prompt, for the reason that is its `__cause__`; other prompts are not affected."""


class ConfigError(VclsError, ValueError):
    """This option, or this combination of options, is wrong."""


class JobError(VclsError):
    """A job over files cannot start or go on."""


class PluginError(VclsError):
    """A plugin is broken, missing or in conflict with another; the message names it."""


class QueueFullError(VclsError):
    """Too much is waiting: this request was not taken; the same later may be.

    Args:
        retry_after: seconds until there should be room.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(VclsError, TimeoutError):
    """The time that this request was given is over; what had not begun was not computed."""


class EngineDeadError(VclsError):
    """The engine takes no requests any more: it failed, or is shutting down."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ "Did you mean" for an unknown `name`: a clause with the nearest `known` one, or "" if none is near."""
    others = [each for each in known if each != name]  # a name that is known is missed for another reason
    matches = [each for each in others if each.casefold() == name.casefold()]
    matches = matches or difflib.get_close_matches(name, others, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def shown(value: Any) -> str:
    """A value as a message shows it."""
    return reprlib.repr(value)
