"""Prompt templates: literal text with `{field}` places, `{{` and `}}` for braces."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError, PromptError, nearest


@dataclass(frozen=True)
class PromptTemplate:
    """A parsed template: `(literal, field or None)` parts, in order."""

    source: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, source: str) -> PromptTemplate:
        """Read a template such as `"Review: {text}\\nSentiment:"`.

        Raises:
            ConfigError: braces do not match, a place is not a plain name, or there is none.
        """
        try:
            parsed = list(string.Formatter().parse(source))
        except ValueError as error:
            raise ConfigError(f"prompt template {source!r}: {error}; write {{{{ and }}}} for braces.") from error
        for _, field, specification, conversion in parsed:
            if field is not None and (not field.isidentifier() or specification or conversion):
                raise ConfigError(
                    f"prompt template {source!r}: {{{field}}} is not a plain field name such as {{text}}."
                )
        parts = tuple((literal, field) for literal, field, _, _ in parsed)
        if not any(field for _, field in parts):
            raise ConfigError(f"prompt template {source!r} has no field; write {{text}} where the text goes.")
        return cls(source, parts)

    @property
    def fields(self) -> list[str]:
        return [field for _, field in self.parts if field is not None]

    def render(self, values: Mapping[str, object]) -> str:
        """The prompt for these field values.

        Raises:
            PromptError: a field is missing or null.
        """
        pieces = []
        for literal, field in self.parts:
            pieces.append(literal)
            if field is None:
                continue
            if values.get(field) is None:
                known = [name for name, value in values.items() if value is not None]
                raise PromptError(
                    f"the prompt template needs {{{field}}}, which this prompt lacks.{nearest(field, known)}"
                )
            pieces.append(str(values[field]))
        return "".join(pieces)
