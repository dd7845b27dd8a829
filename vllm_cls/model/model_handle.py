"""`OpenModel`, the base class of `LLM`: properties of the loaded model, and how it is closed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.files import Checkpoint
from ..config import labels_of
from ..errors import ConfigError
from ..params import LoRARequest, PoolingParams
from .description import describe
from .task_checks import check_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

    from ..inputs.media_reader import MediaReader
    from ..runtime.counters import Counters
    from .heads.output_heads import RunningHead
    from .loaded_model import LoadedModel


class OpenModel:
    """A loaded model.

    Args:
        loaded: the model with all that it runs with; None once it is closed.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded: LoadedModel | None = loaded

    @functools.cached_property
    def _open(self) -> LoadedModel:
        if self._loaded is None:
            raise ConfigError("this LLM is closed; make a new one.")
        return self._loaded

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model that runs."""
        return self._open.classifier.model

    @property
    def task(self) -> str:
        """What the model was made for: "classify", "token_classify", or "embed" where it has no head."""
        return "token_classify" if self.judges_steps else self._open.task

    @property
    def judges_steps(self) -> bool:
        """Whether it is a process reward model, which gives an answer for each step of a text."""
        return self._open.judges_steps

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """The pooling tasks of `encode` (vLLM's name); first what the model was made for."""
        return self._open.supported_tasks

    @property
    def decides(self) -> bool:
        """Whether it was opened to answer typed questions."""
        return self._open.decisions is not None

    def check(self, task: str) -> None:
        """Raise `ConfigError` unless the model does a task as it is: "classify", "token_classify" or "embed"."""
        check_task(self._open, task, [None])

    @property
    def num_labels(self) -> int:
        return int(self._open.classifier.config.num_labels)

    @property
    def id2label(self) -> dict[int, str]:
        return self.labels_of(None)

    @property
    def problem_type(self) -> str | None:
        problem_type: str | None = self._open.classifier.config.problem_type
        return problem_type

    @property
    def media(self) -> MediaReader | None:
        """Reads the images and videos of prompts; None where the model reads texts alone."""
        return self._open.processor.media

    @property
    def heads(self) -> dict[str, RunningHead]:
        """The heads by name, the default one first; empty where there is a single head without a name."""
        return {each.name: each for each in self._open.heads if each.name is not None}

    def head(self, name: str | None = None, lora_request: LoRARequest | None = None) -> RunningHead:
        """A head, with its `id2label` and `problem_type`; the default one where there is no name; of an adapter, its own.

        Raises:
            ConfigError: there is no head of that name.
        """
        (adapter,) = self._open.adapters_for(lora_request, 1)
        return self._open.head_of(PoolingParams(head_name=name), adapter)

    @property
    def gives_probabilities(self) -> bool:
        """Whether the activation of the default head does; not that of a regression, nor an identity in the config."""
        return self.head().gives_probabilities

    @property
    def use_activation(self) -> bool:
        """Whether requests that do not say get what the activation gives, not logits."""
        return self._open.pooler.activates(None)

    @property
    def max_model_len(self) -> int:
        return self._open.processor.max_model_len

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        processor = self._open.processor
        return processor.architecture.vocab_size(processor.config)

    def labels_of(self, lora_request: LoRARequest | None) -> dict[int, str]:
        """The labels of an adapter, which is read now if it was not before; of the model for None."""
        return labels_of(self.config_of(lora_request))

    def config_of(self, lora_request: LoRARequest | None) -> Any:
        """transformers' config of an adapter, as `labels_of` its labels."""
        (adapter,) = self._open.adapters_for(lora_request, 1)
        return self._open.config_of(adapter)

    @property
    def checkpoint_files(self) -> list[Path]:
        """The files that the model was read from, and those of an adapter that is merged into it."""
        source = self._open.classifier.source
        merged = [] if source.adapter is None else Checkpoint(Path(source.adapter.name).expanduser()).files
        return source.checkpoint.files + merged

    def model_card(self) -> str | None:
        """The model card (README.md of the checkpoint), or None."""
        file = self._open.classifier.source.checkpoint.folder / "README.md"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None

    def get_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """transformers' tokenizer of the model (vLLM's name); None where it has none."""
        return self._open.processor.tokenizer

    def token_ids(self, prompt: Any, *, add_special_tokens: bool | None = None) -> list[int]:
        """The token ids of one prompt, not truncated.

        Raises:
            PromptError: the prompt is bad.
        """
        return self._open.processor.token_ids(prompt, add_special_tokens=add_special_tokens)

    def describe(self) -> dict[str, Any]:
        """What `vcls inspect` prints: architecture, plugin, pooling, labels, how it runs and why."""
        return describe(self._open)

    @property
    def counters(self) -> Counters:
        """What was computed so far: prompts, forwards, tokens, seconds by stage; a copy, to subtract from a later one."""
        return self._open.engine.counters.snapshot()

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of earlier prompts (vLLM's name)."""
        self._open.engine.forget_prefixes()

    def reset_mm_cache(self) -> None:
        """Forget what was made of earlier images and videos (vLLM's name)."""
        loaded = self._open
        if loaded.engine.runner.media_form:
            loaded.engine.runner.towers.clear()
        if loaded.processor.media is not None:
            loaded.processor.media.clear()

    def close(self) -> None:
        """Free the model's memory."""
        if self._loaded is not None:
            from ..runtime.machine.workers import give_back_memory

            self._loaded.engine.close()
            self._loaded = None
            vars(self).pop("_open", None)
            give_back_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
