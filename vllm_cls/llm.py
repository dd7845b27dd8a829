"""`LLM`: a classifier from Python, with vLLM's names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import calls, scoring
from .calls import Kind
from .config import ModelConfig, PoolerConfig, RuntimeConfig
from .errors import ConfigError
from .llm_arguments import check_engine_args
from .outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
    TokenClassificationRequestOutput,
)
from .params import LoRARequest, PoolingParams
from .prompt_stream import answered
from .prompts import is_single
from .scoring import RankedDocument, ScoreOptions
from .tokenization import PromptProcessor, Tokenized, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .runtime.counters import Counters
    from .serving import Served


class LLM:
    """A classifier, loaded and ready.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        runner: "auto" or "pooling", for vLLM's sake.
        convert: "auto" takes the checkpoint as what it is and refuses one without a head; "classify" makes a
            classifier of it (`hf_overrides={"classifier_from_token": …}`); "none" gives embeddings only.
        max_num_batched_tokens: tokens in one forward; None takes the device's default.
        num_threads: of a CPU; None takes as many as torch uses, at most the physical cores.
        enable_prefix_caching: prompts that begin with the same tokens share these tokens' keys and values, where the
            model is causal; also across calls.
        prefix_cache_bytes: memory for them; None takes the device's default.
        cuda_graphs: on a GPU, record the forwards of small batches and replay them; vLLM's `enforce_eager` overrules it.
        score_template: how a reranker's pairs are written: Jinja with `query` and `document`, or a name that `vcls
            inspect` shows; "concat" and "pair" do without a template.
        use_template: False ignores the prompt template that the checkpoint stores.
        lora: a PEFT LoRA adapter's folder: merged into the weights, and its head is the model's.
        enable_lora: take `lora_request`s; the model itself then needs no head.
        max_loras: adapters held in memory at once; the least recently used is let go, and read again when needed.
        max_lora_rank: adapters of a larger rank are refused; None takes any.
        seed: taken for vLLM's sake, as `use_tqdm` of the methods is: nothing here is random, and no bar is shown.
        engine_args: vLLM's engine arguments; those without meaning here are accepted with a warning.

    Raises:
        ModelError: the model cannot be loaded, or has no head.
        ConfigError: an argument is wrong or unknown.
    """

    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        convert: str = "auto",
        tokenizer: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_num_seqs: int = 256,
        num_threads: int | None = None,
        enable_prefix_caching: bool = True,
        prefix_cache_bytes: int | None = None,
        cuda_graphs: bool = False,
        pooler_config: PoolerConfig | Mapping[str, Any] | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        score_template: str | None = None,
        use_template: bool = True,
        plugin: str | None = None,
        seed: int = 0,
        lora: str | None = None,
        enable_lora: bool = False,
        max_loras: int = 8,
        max_lora_rank: int | None = None,
        **engine_args: Any,
    ) -> None:
        from .serving import serve

        if runner not in ("auto", "pooling"):
            raise ConfigError(f"runner={runner!r} is unknown; this package classifies, use 'auto' or 'pooling'.")
        check_engine_args(engine_args, set(LLM.__init__.__annotations__) - {"return", "engine_args"})
        options = ModelConfig.of(
            model,
            tokenizer=tokenizer,
            convert=convert,
            dtype=dtype,
            device=device,
            quantization=quantization,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            max_model_len=max_model_len,
            plugin=plugin,
            hf_overrides=hf_overrides,
            pooler_config=pooler_config,
            chat_template=chat_template,
            score_template=score_template,
            use_template=use_template,
            lora=lora,
        )
        runtime = RuntimeConfig(
            max_num_batched_tokens,
            max_num_seqs,
            num_threads,
            enable_prefix_caching,
            prefix_cache_bytes,
            cuda_graphs and not engine_args.get("enforce_eager"),
            max(max_loras, 1) if enable_lora else 0,
            max_lora_rank,
        )
        self._served: Served | None = serve(options, runtime)
        self._numbers = itertools.count()

    # -- what it is ---------------------------------------------------------------------------------

    @property
    def _open(self) -> Served:
        if self._served is None:
            raise ConfigError("this LLM is closed; make a new one.")
        return self._served

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
    def num_labels(self) -> int:
        return int(self._open.classifier.config.num_labels)

    @property
    def id2label(self) -> dict[int, str]:
        return {int(index): str(label) for index, label in self._open.classifier.config.id2label.items()}

    @property
    def problem_type(self) -> str | None:
        problem_type: str | None = self._open.classifier.config.problem_type
        return problem_type

    @property
    def use_activation(self) -> bool:
        """Whether requests that do not say get probabilities."""
        return self._open.pooler.activates(None)

    @property
    def max_model_len(self) -> int:
        return self._open.processor.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return int(self._open.processor.config.get_text_config().vocab_size)

    def labels_of(self, lora_request: LoRARequest | None) -> dict[int, str]:
        """The labels of an adapter, which is read now if it was not before; of the model for None."""
        return {int(index): str(label) for index, label in self.config_of(lora_request).id2label.items()}

    def config_of(self, lora_request: LoRARequest | None) -> Any:
        """transformers' config of an adapter, as `labels_of` its labels."""
        (adapter,) = self._open.adapters_for(lora_request, 1)
        return self._open.config_of(adapter)

    def model_card(self) -> str | None:
        """The README.md that lies beside the weights, or None."""
        file = self._open.classifier.source.checkpoint.folder / "README.md"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None

    def get_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """transformers' tokenizer of the model (vLLM's name); None where it has none."""
        return self._open.processor.tokenizer

    def token_ids(self, prompt: Any, *, add_special_tokens: bool | None = None) -> list[int]:
        """The tokens that the model would see of one prompt, however many.

        Raises:
            PromptError: the prompt is bad.
        """
        return self._open.processor.token_ids(prompt, add_special_tokens=add_special_tokens)

    def describe(self) -> dict[str, Any]:
        """What `vcls inspect` prints: architecture, plugin, pooling, labels, how it runs and why."""
        return self._open.describe()

    @property
    def counters(self) -> Counters:
        """What was computed so far: prompts, forwards, tokens, seconds by stage; a copy, to subtract from a later one."""
        return self._open.engine.counters.snapshot()

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of earlier prompts (vLLM's name)."""
        self._open.engine.prefix_cache.clear()

    def close(self) -> None:
        """Give the model's memory back."""
        if self._served is not None:
            from .runtime.workers import give_back_memory

            self._served.engine.close()
            self._served = None
            give_back_memory()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- what it does -------------------------------------------------------------------------------

    def classify(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities for each prompt, in the order given.

        Args:
            prompts: one prompt or a sequence of them; see `vllm_cls.prompts`.
            pooling_params: for all, or one a prompt.
            lora_request: the adapter for all, or one or None a prompt; needs `enable_lora`.
            tokenization_kwargs: `truncate_prompt_tokens` (-1: the model's length), `truncation_side`,
                `add_special_tokens`. Without them a prompt that is too long is an error.

        Raises:
            PromptError: a prompt is bad; it is named by its index.
        """
        call = calls.classify(
            self._open,
            prompts,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.answered(self._next_id)

    def classify_iter(
        self,
        prompts: Iterable[Any],
        *,
        use_activation: bool | None = None,
        truncate: bool = False,
        truncation_side: str | None = None,
    ) -> Iterator[ClassificationRequestOutput]:
        """Classify a stream, in order, with memory for one window of it.

        Args:
            truncate: cut prompts that are too long, and say so in `truncated`, instead of refusing them.

        Yields:
            One output a prompt; a bad prompt has its reason in `error` and affects no other.
        """
        params = PoolingParams(use_activation=use_activation)
        truncation = Truncation(-1 if truncate else None, truncation_side)
        return self._stream(prompts, calls.CLASSIFY, params, truncation, ClassificationRequestOutput)

    def token_classify(
        self,
        prompts: Any,
        *,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TokenClassificationRequestOutput]:
        """The labelled spans of each text, as transformers' token-classification pipeline finds them.

        Args:
            aggregation_strategy: "none", "simple", "first", "average" or "max"; see `vllm_cls.spans.SpanFinder`.
            ignore_labels: labels whose spans are left out.
            tokenization_kwargs: as for `classify`.

        Raises:
            ConfigError: the model does not classify tokens.
            PromptError: a prompt is bad, or no plain text.
        """
        call = calls.token_classify(
            self._open,
            prompts,
            aggregation_strategy=aggregation_strategy,
            ignore_labels=ignore_labels,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.answered(self._next_id)

    def token_classify_iter(
        self,
        prompts: Iterable[Any],
        *,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
        truncate: bool = False,
        truncation_side: str | None = None,
    ) -> Iterator[TokenClassificationRequestOutput]:
        """The spans of a stream of texts; as `classify_iter`."""
        kind = calls.spans(self._open, aggregation_strategy, ignore_labels)
        truncation = Truncation(-1 if truncate else None, truncation_side)
        return self._stream(prompts, kind, PoolingParams(), truncation, TokenClassificationRequestOutput)

    def encode(
        self,
        prompts: Any,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """Tensors for each prompt, in the order given.

        Args:
            pooling_task: "classify" `(num_labels,)`, "token_classify" `(num_tokens, num_labels)`, or "embed"
                `(hidden,)`: what a Sentence Transformers folder makes of a text, else the pooled state; of unit length
                unless the folder or `use_activation=False` says otherwise. A token classifier and an embedder do what
                they are for where nothing else is said.
        """
        call = calls.encode(
            self._open,
            prompts,
            pooling_params,
            pooling_task=pooling_task,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.answered(self._next_id)

    def embed(
        self, prompts: Any, *, use_tqdm: bool | Callable[..., Any] = True, **options: Any
    ) -> list[EmbeddingRequestOutput]:
        """`encode(pooling_task="embed")` as lists of numbers, in `outputs.embedding`; options as for `classify`."""
        return calls.embed(self._open, prompts, **options).answered(self._next_id)

    def score(
        self,
        text_1: str | Sequence[str],
        text_2: str | Sequence[str],
        /,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        instruction: str | None = None,
        max_tokens_per_query: int | None = None,
        max_tokens_per_doc: int | None = None,
    ) -> list[ScoringRequestOutput]:
        """One score a pair: 1 text to N, or N to N; only where `num_labels` is 1.

        Args:
            pooling_params: also vLLM's way to give the last three, in `extra_kwargs`.
            chat_template: Jinja for the pair, in place of the model's own score template.
            instruction: what the score is for, where the template has a place for it.
            max_tokens_per_query: the first texts' tokens that are kept; None and 0 keep all.
            max_tokens_per_doc: the second texts'.

        Raises:
            ConfigError: the model has several labels, the lengths do not fit, or the model's pairs need a template
                that is not known.
        """
        options = ScoreOptions(chat_template, instruction, max_tokens_per_query, max_tokens_per_doc)
        call = calls.score(
            self._open,
            text_1,
            text_2,
            options,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.answered(self._next_id)

    def score_processor(self, options: ScoreOptions, num_labels: Iterable[int] = ()) -> PromptProcessor:
        """What makes token ids of pairs that are written so.

        Args:
            num_labels: of the adapters that run; the model's own where there is none.

        Raises:
            ConfigError: there are several labels, or the model's pairs cannot be written so.
        """
        return calls.score_processor(self._open, options, num_labels)

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, **options: Any
    ) -> list[RankedDocument]:
        """Documents by falling score for a query; the first `top_n`, or all; other options as for `score`."""
        documents = [documents] if isinstance(documents, str) else list(documents)
        return scoring.rank(documents, self.score(query, documents, **options), top_n)

    def reward(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """Rewards: of a text `(1,)`, the logit itself; of a process reward model's steps `(num_steps, num_labels)`.

        Args:
            pooling_params: `use_activation=True` gives what the model's activation makes of a text's logit; steps are
                probabilities unless it is False. `step_tag_id` and `returned_token_ids` as for STEP pooling.

        Raises:
            ConfigError: the model has several labels, and does not judge steps.
        """
        call = calls.reward(
            self._open,
            prompts,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.answered(self._next_id)

    def step_iter(
        self,
        prompts: Iterable[Any],
        *,
        use_activation: bool | None = None,
        truncate: bool = False,
        truncation_side: str | None = None,
    ) -> Iterator[PoolingRequestOutput]:
        """The rewards of the steps of a stream of texts, `(num_steps, num_labels)` each; as `classify_iter`."""
        params = PoolingParams(use_activation=use_activation)
        truncation = Truncation(-1 if truncate else None, truncation_side)
        return self._stream(prompts, calls.STEPS, params, truncation, PoolingRequestOutput)

    def chat(self, messages: Any, **options: Any) -> list[ClassificationRequestOutput]:
        """Classify conversations: one list of messages, or a list of them; options as for `classify`."""
        return self.classify(messages if is_single(messages) else list(messages), **options)

    # -- how ----------------------------------------------------------------------------------------

    def _stream(
        self, prompts: Iterable[Any], kind: Kind[Any], params: PoolingParams, truncation: Truncation, output: type[Any]
    ) -> Iterator[Any]:
        """Outputs for a stream of prompts, those without an answer included."""

        def answer(tokenized: Sequence[Tokenized]) -> Sequence[Any]:
            return kind.answered(self._open, tokenized, [params] * len(tokenized), self._next_id)

        def failed(reason: str) -> Any:
            return output(self._next_id(), None, [], error=reason)

        return answered(self._open, prompts, truncation, answer, failed)

    def _next_id(self) -> str:
        return str(next(self._numbers))
