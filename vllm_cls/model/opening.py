"""Opens a model: loads it, chooses how it runs, and builds its engine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch

from ..config import ModelConfig, PoolerConfig, RuntimeConfig
from ..decisions.heads import logits_of_tokens
from ..decisions.reading import DecisionReader
from ..decisions.settings import label_ids
from ..errors import ConfigError
from ..inputs.control_tokens import ControlTokens
from ..inputs.media_reader import MediaReader
from ..pooler.activations import activation_for
from ..registry import registry
from ..runtime.cuda.fp8 import check_fp8
from ..runtime.engine import Engine
from ..runtime.layers.lora import let_adapt
from ..runtime.loadtime import optimize
from ..runtime.loadtime.cuda_graphs import Graphs
from ..runtime.loadtime.memory_profile import plan_memory
from ..runtime.machine.device import choose_device, choose_dtype, default_batched_tokens, default_prefix_cache_bytes
from ..runtime.machine.workers import bound_kernel_caches
from ..runtime.native import attention as native_attention
from ..runtime.parallel.rank_engine import RankEngine
from ..runtime.parallel.ranks import Ranks
from ..runtime.parallel.replica_leader import ReplicaLeader
from ..runtime.parallel.replicas import ReplicaEngine
from ..runtime.parallel.stage import PipelineStage, StageEngine
from ..runtime.runner import Runner
from .float32_fallback import Float32Fallback
from .heads.lora_adapters import Adapters, backbone_layers
from .heads.output_heads import RunningHead, running_heads
from .heads.pooler import Pooler
from .loaded_model import LoadedModel
from .loading.classifier import Classifier, load
from .loading.form_choice import dummy_items, make_runner
from .loading.weights import Placement
from .prompt_processor import max_model_len, prompt_processor
from .task_checks import own_tasks

MakeEngine = Callable[..., Engine]
_WATCHED_PROMPTS, _WATCHED_TOKENS = 8, 64  # random ones, which quantization watches
# Those that run in int8 and in float32: so many of each length.
_COMPARED_PROMPTS, _COMPARED_TOKENS = 12, (8, 16, 32)


def load_model(options: ModelConfig, runtime: RuntimeConfig, ranks: Ranks | None = None) -> LoadedModel:
    """Load a model and put its parts together.

    Args:
        ranks: of several processes, this one and the others, which do the same.

    Raises:
        ModelError: the model cannot be loaded, or has no head.
        ConfigError: an option does not fit it.
    """
    device = choose_device(options.device)
    if ranks is not None and device.type == "cuda":
        device = torch.device("cuda", ranks.rank)
    if device.type == "cpu":
        bound_kernel_caches()
        native_attention.prepare()
        if runtime.cuda_graphs:
            raise ConfigError("cuda_graphs=True needs a GPU, and this model is to run on a CPU; leave it out.")
    # int8 starts from float32, whatever else this processor is good at.
    exact = options.quantization == "int8" and options.dtype == "auto" and device.type == "cpu"
    dtype = torch.float32 if exact else choose_dtype(options.dtype, device)
    if options.quantization == "fp8":
        check_fp8(device, dtype)
    if options.quantization == "int8":
        optimize.check_int8(device, dtype)
    place = (ranks.rank, ranks.size) if ranks is not None and options.pipeline_parallel_size > 1 else None
    placement = Placement(
        dtype, device, options.allow_pickle, options.tensor_parallel_size, place, options.parts_on_devices()
    )
    if placement.parts and runtime.max_loras:
        raise ConfigError("device_map does not go together with enable_lora=True yet; leave one of them out.")
    classifier = load(options, placement, adapters_have_heads=runtime.max_loras > 0)
    make: MakeEngine = Engine
    if ranks is not None:
        make = functools.partial(RankEngine, ranks=ranks)
        if options.pipeline_parallel_size > 1:
            backbone = classifier.architecture.backbone(classifier.model)
            stage = PipelineStage(ranks, backbone, classifier.architecture.layers(backbone))
            make = functools.partial(StageEngine, ranks=ranks, stage=stage)
        elif options.data_parallel_size > 1:
            make = functools.partial(ReplicaEngine, ranks=ranks) if isinstance(ranks, ReplicaLeader) else Engine
    if runtime.max_loras:  # before anything is made faster, which has to see that it is there
        let_adapt(backbone_layers(classifier.model))
    config = classifier.config
    stored = PoolerConfig.parse(classifier.source.settings.get("pooler_config"))
    pooler_config = options.pooler_config.over(stored)
    embedder = classifier.embedder
    if embedder is not None:
        pooler_config = pooler_config.over(PoolerConfig(use_activation=embedder.normalizes))
    pooling = pooler_config.seq_pooling_type or classifier.pooling
    if embedder is not None and embedder.stages and pooling.count("+") != embedder.pooling.count("+"):
        raise ConfigError(
            f"pooling_type={pooling!r}: the folder's Dense module reads {embedder.pooling}; leave it out."
        )
    if pooler_config.tok_pooling_type != "STEP" and (
        pooler_config.step_tag_id is not None or pooler_config.returned_token_ids is not None
    ):
        raise ConfigError("pooler_config: step_tag_id and returned_token_ids need tok_pooling_type='STEP'.")
    if pooling != classifier.pooling == "ALL":
        raise ConfigError(f"pooling_type={pooling!r}: a token classifier reads every token's state; leave it out.")
    pooler = Pooler(pooling, activation_for(config, registry().collect("vcls_activations")), pooler_config)
    longest = max_model_len(options, classifier.source)
    runner = make_runner(classifier, pooling, longest, options.quantization)
    layers = classifier.architecture.layers(runner.backbone)
    optimize.quantize(
        runner, options.quantization, layers, dummy_items(runner, [min(_WATCHED_TOKENS, longest)] * _WATCHED_PROMPTS)
    )
    engine = make_engine(runner, runtime, longest, make)
    adapters = None
    heads = running_heads(classifier.model, pooler)
    guard = classifier.guard
    if guard is not None:
        heads = [dataclasses.replace(heads[0], columns=slice(len(guard.verdicts)), config=config)]
    if runtime.max_loras and (runner.scorer is not None or heads[0].name is not None):
        raise ConfigError(
            "enable_lora: heads with names and of label texts take no adapters at run time; merge the adapter first."
        )
    if runtime.max_loras:
        adapters = Adapters(
            classifier,
            runner,
            pooler,
            max_loras=runtime.max_loras,
            max_lora_rank=runtime.max_lora_rank,
            allow_pickle=options.allow_pickle,
        )
    prompts = longest_prompt(runner, longest)
    processor = prompt_processor(
        options, classifier.source, prompts, num_labels=int(config.num_labels), skipped_pad=runner.skipped_pad
    )
    if embedder is not None and options.use_template:
        processor = dataclasses.replace(processor, prefix=embedder.prompt)
    if guard is not None:
        controls = ControlTokens.of(classifier.source.tokenizer)
        processor = dataclasses.replace(
            processor, chat_template_prompt=True, chat_options=guard.chat_options, controls=controls
        )
    fallback = None
    if options.quantization == "int8" and classifier.task == "classify":
        fallback = _float32_fallback(engine, heads, pooler, prompts, classifier.has_head)
    decisions = decision_reader(classifier, runner, processor.media)
    loaded = LoadedModel(options, classifier, processor, engine, pooler, heads, adapters, fallback, decisions)
    return dataclasses.replace(loaded, own_tasks=own_tasks(loaded))


def decision_reader(classifier: Classifier, runner: Runner, images: MediaReader | None) -> DecisionReader | None:
    """What reads requests of a model that was opened for decisions; None of any other.

    Args:
        images: reads those of requests.

    Raises:
        ConfigError: it has no tokenizer.
    """
    source = classifier.source
    if source.decisions is None or not classifier.has_head:
        return None
    name, settings = source.checkpoint.name, source.decisions
    if source.tokenizer is None:
        raise ConfigError(f"{name}: decisions need the model's tokenizer, which is not in its folder; give one.")
    if source.is_decision_model:
        head = source.architecture.decision_head(classifier.model)
    else:
        head = logits_of_tokens(source.tokenizer, label_ids(settings, source.tokenizer, name))
    return DecisionReader.of(settings, source.tokenizer, head, causal=runner.shares, images=images)


def _float32_fallback(
    engine: Engine, heads: Sequence[RunningHead], pooler: Pooler, longest: int, measure: bool
) -> Float32Fallback:
    """Finds what int8 leaves open, by what it changes of random prompts.

    Args:
        longest: prompt, in tokens.
        measure: now; where only adapters have heads, each does later.
    """
    lengths = [min(length, longest) for length in _COMPARED_TOKENS] * _COMPARED_PROMPTS
    prompts = [item.sequence for item in dummy_items(engine.runner, lengths)]
    made = Float32Fallback(engine, heads, pooler, prompts)
    if measure:
        made.boundaries()
        engine.forget_prefixes()
        engine.counters.clear()
    return made


def longest_prompt(runner: Runner, longest: int) -> int:
    """The longest prompt in tokens that leaves room for the labels' texts.

    Raises:
        ConfigError: there is no room for a prompt.
    """
    reserved = len(runner.scorer.beginnings[-1]) if runner.scorer is not None else 0
    if reserved >= longest:
        raise ConfigError(f"the labels' texts take {reserved + 1} tokens, and the model no more than {longest}.")
    return longest - reserved


def make_engine(runner: Runner, runtime: RuntimeConfig, longest: int, make: MakeEngine = Engine) -> Engine:
    """The engine of a runner, with the device's defaults where `runtime` names none, as far as memory allows.

    Args:
        longest: the model's longest sequence, in tokens.
        make: of `Runner` and the arguments of `Engine`; ranks have to plan alike, so none measures its own memory.
    """
    cache = runtime.prefix_cache_bytes
    if cache is None:
        cache = default_prefix_cache_bytes(runner.device)
    cache = cache if runtime.enable_prefix_caching else 0
    num_tokens = runtime.max_num_batched_tokens or default_batched_tokens(runner.backbone, runner.device)
    if runner.device.type == "cuda" and make is Engine:
        planned = plan_memory(
            runner,
            functools.partial(dummy_items, runner),
            num_tokens=num_tokens,
            num_sequences=runtime.max_num_seqs,
            longest=longest,
            prefix_cache_bytes=cache if runner.shares else 0,
        )
        num_tokens, cache = planned.max_num_batched_tokens, planned.prefix_cache_bytes
        runner.graphs = Graphs.on_cuda(runner) if runtime.cuda_graphs else None
        runner.counters.clear()
    return make(
        runner,
        max_num_batched_tokens=num_tokens,
        max_num_seqs=runtime.max_num_seqs,
        num_threads=runtime.num_threads,
        prefix_cache_bytes=cache,
    )
