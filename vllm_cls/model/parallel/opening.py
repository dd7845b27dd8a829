"""Opens a model, on as many processes as its options say."""

from __future__ import annotations

import dataclasses

from ...config import PARALLEL_SIZES, ModelConfig, RuntimeConfig
from ...errors import ConfigError
from ...runtime.machine.device import choose_device
from ...runtime.machine.workers import default_num_threads
from ...runtime.parallel.leader import Leader
from ...runtime.parallel.replica_leader import ReplicaLeader
from ..loaded_model import LoadedModel
from ..loading.source import ModelSource, open_source
from ..opening import load_model

_RANK = "vllm_cls.model.parallel.rank"


def open_model(options: ModelConfig, runtime: RuntimeConfig) -> LoadedModel:
    """Load a model; where it is for several processes, start the others.

    Raises:
        ModelError: the model cannot be loaded, or has no head.
        ConfigError: an option does not fit it.
    """
    size = options.num_processes
    if size == 1:
        return load_model(options, runtime)
    backend = _backend(options, runtime, size)
    if options.tensor_parallel_size > 1:
        check_tensor_parallel(open_source(options), size)
    elif options.pipeline_parallel_size > 1:
        check_pipeline_parallel(open_source(options), size)
    if backend == "gloo":  # which share the cores
        threads = max(1, (runtime.num_threads or default_num_threads()) // size)
        runtime = dataclasses.replace(runtime, num_threads=threads)
    task = {"options": options, "runtime": runtime}
    several = options.data_parallel_size > 1
    leader = ReplicaLeader(size, _RANK, task) if several else Leader(size, _RANK, task, backend)
    try:
        loaded = load_model(options, runtime, leader)
        leader.hear("ready")
        return loaded
    except BaseException as failure:
        explained = leader.explain(failure) if isinstance(failure, Exception) else failure
        leader.end("the model was not loaded")
        leader.close()
        if explained is failure:
            raise
        raise explained from failure


def _backend(options: ModelConfig, runtime: RuntimeConfig, size: int) -> str:
    """What the processes exchange by.

    Raises:
        ConfigError: an option does not go together with several processes, or there are too few devices.
    """
    import torch

    given = next(f"{name}={size}" for name in PARALLEL_SIZES if getattr(options, name) > 1)
    excluded = {
        f"quantization={options.quantization!r}": options.quantization not in (None, "none"),
        f"lora={options.lora!r}": options.lora is not None,
        "enable_lora=True": runtime.max_loras > 0,
        "cuda_graphs=True": runtime.cuda_graphs,
    }
    for other, is_given in excluded.items():
        if is_given:
            merged = " (`vcls convert --lora` merges an adapter)" if "lora" in other else ""
            raise ConfigError(f"{given} does not go together with {other} yet; leave one of them out{merged}.")
    device = choose_device(options.device)
    if device.type == "cpu":
        if torch.cuda.is_available():
            raise ConfigError(
                f"{given} takes this machine's GPUs; to use its CPU, hide them (CUDA_VISIBLE_DEVICES='')."
            )
        return "gloo"
    if options.device.startswith("cuda:"):
        raise ConfigError(f"{given} takes the first {size} GPUs, not device={options.device!r}; use device='cuda'.")
    if torch.cuda.device_count() < size:
        raise ConfigError(f"{given}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return "nccl"


def check_tensor_parallel(source: ModelSource, size: int) -> None:
    """Refuse a model of which transformers does not know how to split its weights, or which cannot be split so often.

    Raises:
        ConfigError: the message says what can be done.
    """
    config = source.backbone_config.get_text_config()
    if not getattr(config, "base_model_tp_plan", None):
        raise ConfigError(
            f"tensor_parallel_size={size}: transformers has no plan of how to split {config.model_type!r}; leave it out, and "
            f"use data_parallel_size={size}, a copy of the model in each process."
        )
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % size:
            fitting = [str(each) for each in range(1, heads + 1) if heads % each == 0]
            raise ConfigError(
                f"tensor_parallel_size={size} does not divide the model's {name}, {heads}; use {' or '.join(fitting)}."
            )


def check_pipeline_parallel(source: ModelSource, size: int) -> None:
    """Refuse a model of which transformers does not say that states alone go from layer to layer.

    Raises:
        ConfigError: the message says what can be done.
    """
    config = source.backbone_config.get_text_config()
    plan = getattr(config, "base_model_pp_plan", None) or {}
    if "layers" not in plan or source.config.is_encoder_decoder:
        raise ConfigError(
            f"pipeline_parallel_size={size}: transformers has no plan of how to cut {config.model_type!r} between its layers; "
            f"leave it out, and use data_parallel_size={size}, a copy of the model in each process."
        )
    if size > config.num_hidden_layers:
        raise ConfigError(f"pipeline_parallel_size={size} is more than the model's {config.num_hidden_layers} layers.")
