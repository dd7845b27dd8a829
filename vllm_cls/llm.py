"""`LLM`: a classifier from Python, with vLLM's names."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .calls import candidates, decisions, moderations, scoring, tasks, zero_shot
from .calls.arguments import check_engine_args
from .calls.scoring import RankedDocument, ScoreOptions, Side
from .calls.streaming import stream_outputs
from .config import ModelConfig, PoolerConfig, RuntimeConfig
from .errors import ConfigError, PromptError
from .inputs.prompts import is_single
from .inputs.tokenization import PromptProcessor
from .model.model_handle import OpenModel
from .outputs import (
    ClassificationRequestOutput,
    Decision,
    EmbeddingRequestOutput,
    Moderation,
    PoolingRequestOutput,
    ScoringRequestOutput,
    TokenClassificationRequestOutput,
)
from .params import PoolingParams


class LLM(OpenModel):
    """A classifier, loaded and ready.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        runner: "auto" or "pooling", for vLLM's sake.
        convert: "auto" takes the checkpoint as what it is and refuses one without a head; "classify" makes a
            classifier of it (`hf_overrides={"classifier_from_token": …}`), and opens a guard model whose chat template a plugin
            knows as a classifier of its verdicts; "decide" lets a language model answer
            typed questions (`decide`); "none" gives embeddings only.
        tensor_parallel_size: GPUs, or processes on a CPU, that hold a part of each weight and compute together.
        pipeline_parallel_size: GPUs, or processes on a CPU, that hold some of the layers each; batches follow each other.
        data_parallel_size: GPUs, or processes on a CPU, that hold the whole model each; prompts are shared out.
        device_map: where parts of the model live, by accelerate: "auto" fills the GPUs, then the CPU, then the disk; or the
            devices by the parts' names.
        max_memory: for "auto", how much of each device, such as `{0: "20GiB", "cpu": "60GiB"}`.
        offload_folder: for what goes to the disk and is not in safetensors files.
        max_num_batched_tokens: tokens in one forward; None takes the device's default.
        num_threads: of a CPU; None takes as many as torch uses, at most the physical cores and the container's share.
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
        allowed_media_domains: hosts from which images and videos of prompts are fetched; none fetches nothing.
        allowed_local_media_path: a folder that local images and videos must be under; None allows all.
        limit_mm_per_prompt: the most images and videos of a prompt, such as `{"image": 4, "video": 1}`.
        mm_processor_kwargs: what the model's processor of images and videos is told, where a prompt does not say it.
        seed: taken for vLLM's sake: nothing here is random.
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
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        data_parallel_size: int = 1,
        device_map: str | Mapping[str, Any] | None = None,
        max_memory: Mapping[Any, Any] | None = None,
        offload_folder: str | None = None,
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
        allowed_media_domains: Sequence[str] | None = None,
        allowed_local_media_path: str | None = None,
        limit_mm_per_prompt: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        **engine_args: Any,
    ) -> None:
        from .model.parallel.opening import open_model

        if runner not in ("auto", "pooling"):
            raise ConfigError(f"runner={runner!r} is unknown; this package classifies, use 'auto' or 'pooling'.")
        check_engine_args(engine_args, set(LLM.__init__.__annotations__) - {"return", "engine_args"})
        options = ModelConfig.from_options(
            model,
            tokenizer=tokenizer,
            convert=convert,
            dtype=dtype,
            device=device,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=pipeline_parallel_size,
            data_parallel_size=data_parallel_size,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=offload_folder,
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
            allowed_media_domains=allowed_media_domains,
            allowed_local_media_path=allowed_local_media_path,
            limit_mm_per_prompt=limit_mm_per_prompt,
            mm_processor_kwargs=mm_processor_kwargs,
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
        super().__init__(open_model(options, runtime))
        self._next_id = map(str, itertools.count()).__next__

    # -- what it does -------------------------------------------------------------------------------

    def classify(
        self,
        prompts: Any,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = candidates.HYPOTHESIS,
        multi_label: bool = False,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities for each prompt, in the order given.

        Args:
            prompts: one prompt or a sequence of them; see `vllm_cls.inputs.prompts`.
            pooling_params: for all, or one a prompt.
            use_tqdm: a bar on stderr, where it is a terminal and there are several prompts; False shows none, and a
                function is called in place of `tqdm`, wherever stderr goes and however few prompts there are.
            lora_request: the adapter for all, or one or None a prompt; needs `enable_lora`.
            tokenization_kwargs: `truncate_prompt_tokens` (-1: the model's length), `truncation_side`,
                `add_special_tokens`. Without them a prompt that is too long is an error.
            candidate_labels: of texts, in place of the model's own labels; the model is one of natural language inference,
                and the numbers are those of transformers' zero-shot-classification pipeline.
            hypothesis_template: what is said of a text, with `{}` for a label.
            multi_label: each candidate label is true or not, whatever the others are.

        Raises:
            PromptError: a prompt is bad; it is named by its index.
            ConfigError: candidate labels and a model without a label "entailment".
        """
        if candidate_labels is not None:
            asked = zero_shot.classify(
                self._open,
                prompts,
                candidates.Candidates(candidate_labels, hypothesis_template, multi_label),
                pooling_params=pooling_params,
                lora_request=lora_request,
                tokenization_kwargs=tokenization_kwargs,
            )
            return asked.run(self._next_id, use_tqdm)
        call = tasks.classify(
            self._open,
            prompts,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.run(self._next_id, use_tqdm)

    def classify_iter(
        self,
        prompts: Iterable[Any],
        *,
        use_activation: bool | None = None,
        head_name: str | None = None,
        truncate: bool = False,
        truncation_side: str | None = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str = candidates.HYPOTHESIS,
        multi_label: bool = False,
    ) -> Iterator[ClassificationRequestOutput]:
        """Classify a stream, in order, with memory for one window of it.

        Args:
            head_name: as in `PoolingParams`.
            truncate: cut prompts that are too long, and say so in `truncated`, instead of refusing them.
            candidate_labels: this and the rest as for `classify`.

        Yields:
            One output a prompt; a bad prompt has its reason in `error` and affects no other.
        """
        if candidate_labels is not None:
            again = functools.partial(
                zero_shot.classify,
                self._open,
                candidates=candidates.Candidates(candidate_labels, hypothesis_template, multi_label),
                tokenization_kwargs=tasks.cut(truncate, truncation_side),
                use_activation=use_activation,
                head_name=head_name,
            )
            return stream_outputs(again([""]), prompts, self._next_id, ClassificationRequestOutput, again)
        params = PoolingParams(use_activation=use_activation, head_name=head_name)
        call = tasks.repeated(self._open, tasks.CLASSIFY, params, truncate=truncate, truncation_side=truncation_side)
        return stream_outputs(call, prompts, self._next_id, ClassificationRequestOutput)

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
            aggregation_strategy: "none", "simple", "first", "average" or "max"; see `vllm_cls.calls.spans.SpanFinder`.
            ignore_labels: labels whose spans are left out.
            tokenization_kwargs: as for `classify`.

        Raises:
            ConfigError: the model does not classify tokens.
            PromptError: a prompt is bad, or no plain text.
        """
        call = tasks.token_classify(
            self._open,
            prompts,
            aggregation_strategy=aggregation_strategy,
            ignore_labels=ignore_labels,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.run(self._next_id, use_tqdm)

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
        kind = tasks.spans(self._open, aggregation_strategy, ignore_labels)
        call = tasks.repeated(self._open, kind, PoolingParams(), truncate=truncate, truncation_side=truncation_side)
        return stream_outputs(call, prompts, self._next_id, TokenClassificationRequestOutput)

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
        call = tasks.encode(
            self._open,
            prompts,
            pooling_params,
            pooling_task=pooling_task,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.run(self._next_id, use_tqdm)

    def embed(
        self, prompts: Any, *, use_tqdm: bool | Callable[..., Any] = True, **options: Any
    ) -> list[EmbeddingRequestOutput]:
        """`encode(pooling_task="embed")` as lists of numbers, in `outputs.embedding`; options as for `classify`."""
        return tasks.embed(self._open, prompts, **options).run(self._next_id, use_tqdm)

    def score(
        self,
        text_1: Side | Sequence[Side],
        text_2: Side | Sequence[Side],
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
            text_1: a text, or `{"content": parts}` of texts, images and videos as in chat messages; or several of these.
            text_2: as `text_1`.
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
        call = tasks.score(
            self._open,
            text_1,
            text_2,
            options,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.run(self._next_id, use_tqdm)

    def score_processor(self, options: ScoreOptions, num_labels: Iterable[int] = ()) -> PromptProcessor:
        """What makes token ids of pairs that are written so.

        Args:
            num_labels: of the adapters that run; the model's own where there is none.

        Raises:
            ConfigError: there are several labels, or the model's pairs cannot be written so.
        """
        return tasks.score_processor(self._open, options, num_labels)

    def rerank(
        self, query: Side, documents: Side | Sequence[Side], *, top_n: int | None = None, **options: Any
    ) -> list[RankedDocument]:
        """Documents by falling score for a query; the first `top_n`, or all; other options as for `score`."""
        documents = [documents] if isinstance(documents, str | Mapping) else list(documents)
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
        call = tasks.reward(
            self._open,
            prompts,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return call.run(self._next_id, use_tqdm)

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
        call = tasks.repeated(self._open, tasks.STEPS, params, truncate=truncate, truncation_side=truncation_side)
        return stream_outputs(call, prompts, self._next_id, PoolingRequestOutput)

    def decide(self, requests: Any) -> list[Decision]:
        """Answers to typed questions about states, in the order given, from the logits of label tokens: no text is generated.

        Args:
            requests: one or a sequence of `{"state": …, "questions": {name: {"type": "choice" | "score" | "noul",
                "instructions": …, "criteria": …}}}`, or its JSON, as transformers' decision pipeline takes it.

        Raises:
            ConfigError: the model was not opened for decisions.
            PromptError: a request is bad; it is named by its index.
        """
        return decisions.decide(self._open, requests).run(self._next_id)

    def decide_iter(self, requests: Iterable[Any]) -> Iterator[Decision]:
        """Answer a stream of requests, in order, with memory for one window of it; a bad one has its reason in `error`."""
        for each in decisions.decide_each(self._open, requests, self._next_id):
            yield Decision({}, error=str(each)) if isinstance(each, PromptError) else each

    def moderate(
        self,
        prompts: Any,
        *,
        threshold: float = moderations.THRESHOLD,
        categories: Sequence[str] | None = None,
        safe_label: str | None = None,
        pooling_params: PoolingParams | None = None,
        lora_request: Any = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Moderation]:
        """Whether texts are harmful, and of which categories: by a guard model's verdicts, or by a classifier's labels.

        Args:
            prompts: a text, a conversation, or a list of them.
            threshold: from which probability a text is flagged.
            categories: of a guard model that asks for each by itself; None asks for all.
            safe_label: of a classifier, the label of harmless texts; None knows "safe", "benign", "neutral", "ok" and such.
            pooling_params, lora_request, tokenization_kwargs: as for `classify`.

        Raises:
            PromptError: a prompt is bad; it is named by its index.
            ConfigError: an argument is wrong, or no label is known to be that of harmless texts.
        """
        asked = moderations.moderate(
            self._open,
            prompts,
            threshold=threshold,
            categories=categories,
            safe_label=safe_label,
            pooling_params=pooling_params,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
        )
        return asked.run(self._next_id)

    def check_moderates(self, safe_label: str | None = None, lora_request: Any = None) -> None:
        """Raise `ConfigError` unless texts can be judged; arguments as for `moderate`."""
        moderations.judge_of(self._open, safe_label=safe_label, lora_request=lora_request)

    @property
    def moderation_categories(self) -> tuple[str, ...]:
        """What `categories` of `moderate` may name; empty where it names nothing."""
        guard = self._open.classifier.guard
        return () if guard is None else tuple(guard.guard.asked)

    def chat(self, messages: Any, **options: Any) -> list[ClassificationRequestOutput]:
        """Classify conversations: one list of messages, or a list of them; options as for `classify`."""
        return self.classify(messages if is_single(messages) else list(messages), **options)
