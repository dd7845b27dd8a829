"""The columns that inputs declare, compared with those that a job needs before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import JobError
from .formats.files import COLUMNAR, InputFile
from .formats.readers import columns_of, read_rows
from .formats.tables import FIRST_ROWS
from .options import JobOptions
from .results.result_columns import KeptFields
from .rows import PromptFields, missing


@dataclass(frozen=True)
class KnownColumns:
    """Inputs, with the columns of those that declare them."""

    sources: Sequence[InputFile]
    declared: Sequence[tuple[InputFile, Sequence[str]]]

    @classmethod
    def of(cls, sources: Sequence[InputFile]) -> KnownColumns:
        found = [(source, columns_of(source)) for source in sources]
        return cls(sources, [(source, columns) for source, columns in found if columns is not None])

    @property
    def num_rows(self) -> int | None:
        """The rows of all inputs; None where one of them does not tell."""
        if any(source.format not in COLUMNAR for source in self.sources):
            return None
        from .formats.columnar_reader import num_rows

        told = [num_rows(source) for source in self.sources]
        return None if None in told else sum(filter(None, told))

    def check(self, options: JobOptions) -> None:
        """Raise `JobError` if a field is missing that the options name, as far as that is known."""
        self._check(options.fields)
        if not self.declared:
            _check_first_rows(self.sources, options.label_field)

    def check_text(self, prompts: PromptFields) -> None:
        """Raise `JobError` if the field of the text is missing."""
        if prompts.text is None or prompts.messages is not None or prompts.media:
            return
        try:
            self._check([prompts.text])
        except JobError as error:
            raise JobError(f"{error} Name the field of the text with --text-field (text_field=…).") from None

    def names_in(self, kept: KeptFields) -> dict[str, str] | None:
        """The kept columns, each with its name in the output; None where not all inputs declare theirs."""
        if len(self.declared) < len(self.sources):
            return None
        return kept.mapping(list(dict.fromkeys(name for _, columns in self.declared for name in columns)))

    def _check(self, names: Iterable[str]) -> None:
        for name in names:
            for source, columns in self.declared:
                if name not in columns:
                    raise JobError(f"{source.name} has {missing(name, columns)}")


def _check_first_rows(sources: Sequence[InputFile], name: str | None) -> None:
    """Refuse a field that no row has, as far as the first rows tell; of what can be read once only, they do not."""
    if name is None or any(source.size is None for source in sources):
        return
    fields: dict[str, Any] = {}
    for source in sources:
        for row in itertools.islice(read_rows([source]), FIRST_ROWS):
            if name in row.fields:
                return
            fields |= dict.fromkeys(row.fields)
    if fields:
        files = ", ".join(source.name for source in sources[:3]) + (" …" if len(sources) > 3 else "")
        have = "has" if len(sources) == 1 else "have"
        raise JobError(f"{files} {have} {missing(name, fields)}")
