"""What a head source can call during a conversion: token ids of a prompt, and the frozen model's states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig
from ..inputs.tokenization import PromptProcessor
from ..model.loading.source import ModelSource
from ..model.prompt_processor import max_model_len, prompt_processor

if TYPE_CHECKING:
    from ..runtime.bars import UseTqdm


class HeadJob:
    """The model of one conversion, run only if a head source asks for its states.

    Args:
        source: the model.
        pooling: of the states.
        budget: tokens in one forward, or None.
        num_labels: of the head to come, where it is known.
        use_tqdm: as for `LLM.classify`.
    """

    def __init__(
        self,
        source: ModelSource,
        options: ModelConfig,
        pooling: str,
        budget: int | None,
        num_labels: int | None = None,
        use_tqdm: UseTqdm = False,
    ) -> None:
        self.source, self.options, self.pooling, self.budget = source, options, pooling, budget
        self.use_tqdm = use_tqdm
        self.processor: PromptProcessor = prompt_processor(
            options, source, max_model_len(options, source), num_labels=num_labels
        )
        self.warnings: list[str] = []

    def sample(self, text: str) -> dict[str, Any]:
        """A prompt in which every place of the template holds `text`; a pair, where the model's template is for pairs."""
        template = self.processor.template
        if self.processor.pairs.template is not None:
            return {"prompt": text, "text_pair": text}
        fields = dict.fromkeys(template.fields, text) if template else {}
        return {"prompt": text, "fields": fields}

    def token_ids(self, prompt: Any, suffix: str = "") -> list[int]:
        return self.processor.token_ids(self.sample(prompt) if isinstance(prompt, str) else prompt, suffix)

    def states(self, prompts: Sequence[Any]) -> Any:
        """`(pooled states, features)` of the prompts; see `HeadRequest.states`."""
        from .feature_extraction import pooled_states  # the runtime, which other heads do without

        result = pooled_states(
            self.source, self.options, self.processor, prompts, self.pooling, self.budget, self.use_tqdm
        )
        if result.truncated:
            self.warnings.append(f"{result.truncated} of {len(prompts)} training rows were cut to the model's length")
        return result.pooled, result.features
