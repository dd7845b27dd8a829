"""The texts of a run: rows of a file, or a workload made for the model's tokenizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..config import ModelConfig
from ..errors import ConfigError, PromptError
from ..inputs.prompts import parse
from ..inputs.tokenization import PromptProcessor
from ..jobs.formats.files import find_sources
from ..jobs.formats.readers import read_rows
from ..jobs.rows import PromptFields
from ..model.loading.source import ModelSource
from ..model.prompt_processor import max_model_len, prompt_processor
from .workloads import Text, Workload, measured, single_token_words, workload


class Texts:
    """Makes workloads for one model; its prompt template, if it has one, is already in the texts it gives.

    Args:
        options: the model's.
        source: the model's files.
    """

    def __init__(self, options: ModelConfig, source: ModelSource) -> None:
        self.longest = max_model_len(options, source)
        self._processor: PromptProcessor = prompt_processor(options, source, self.longest)
        if source.tokenizer is None:
            raise ConfigError(f"{options.model} has no tokenizer, and a benchmark starts from text; see --tokenizer.")
        self._tokenizer: Any = source.tokenizer

    def workload(self, name: str, **options: Any) -> Workload:
        """One of `workloads.NAMES`; options as for `workloads.workload`."""
        vocabulary = self._tokenizer.get_vocab()
        words = single_token_words(sorted(vocabulary, key=vocabulary.__getitem__), self.encode)
        return workload(name, words, self.encode, longest=self.longest, **options)

    def read(self, path: str | os.PathLike[str], fields: PromptFields, count: int) -> Workload:
        """The first rows of a file that can be classified.

        Raises:
            ConfigError: there is none.
        """
        texts: list[Text] = []
        skipped, reason = 0, "it has no rows"
        for row in read_rows(find_sources(path)):
            try:
                if row.error is not None:
                    raise PromptError(row.error)
                texts.append(self._rendered(fields.prompt(row.fields)))
            except PromptError as error:
                skipped, reason = skipped + 1, str(error)
            if len(texts) == count:
                break
        if not texts:
            raise ConfigError(f"{path} has no row that can be classified ({reason}); see --text-field.")
        described = f"the first {len(texts):,} rows" + (f" ({skipped:,} bad ones skipped)" if skipped else "")
        return measured(str(path), described, texts, self.encode, self.longest)

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids, not cut."""
        first = [each if isinstance(each, str) else each[0] for each in texts]
        second = [None if isinstance(each, str) else each[1] for each in texts]
        ids: list[list[int]] = [[] for _ in texts]
        for paired in (False, True):
            members = [index for index, each in enumerate(second) if (each is not None) is paired]
            if members:
                pairs = [second[i] for i in members] if paired else None
                found = self._tokenizer([first[i] for i in members], pairs, verbose=False)["input_ids"]
                for index, row in zip(members, found, strict=True):
                    ids[index] = row
        return ids

    def _rendered(self, prompt: dict[str, Any]) -> Text:
        rendered = self._processor.render(parse(prompt), None)
        if not rendered.add_special_tokens:
            raise ConfigError(
                "this model's prompts are chats, which not every contender reads; benchmark it without INPUT."
            )
        return rendered.text if rendered.text_pair is None else (rendered.text, rendered.text_pair)
