"""vllm-cls: any Hugging Face model as a classifier, run as fast as the hardware allows.

Importing this loads neither torch nor transformers; names are resolved at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .compat import lazy_imports as _startup
from .model import auto_classes as _autoclass

if TYPE_CHECKING:
    from .architecture import Architecture, Head, HeadRequest, HeadResult, LinearHead
    from .async_llm import AsyncLLM
    from .classifier import load_classifier
    from .client import AsyncClient, Client
    from .config import PoolerConfig
    from .conversion.converter import ConversionReport, convert
    from .errors import (
        ConfigError,
        DeadlineError,
        EngineDeadError,
        JobError,
        ModelError,
        PluginError,
        PromptError,
        QueueFullError,
        VclsError,
    )
    from .head_source import HeadOption, HeadSource
    from .hookspecs import hookimpl
    from .jobs.classify import classify_file
    from .jobs.decide import decide_file
    from .jobs.report.job_report import JobReport
    from .jobs.score import score_file
    from .llm import LLM
    from .outputs import (
        ClassificationRequestOutput,
        Decision,
        EmbeddingRequestOutput,
        Moderation,
        PoolingRequestOutput,
        ScoringRequestOutput,
        TokenClassificationRequestOutput,
    )
    from .params import LoRARequest, PoolingParams

_HOMES = {
    "Architecture": "architecture",
    "AsyncClient": "client",
    "AsyncLLM": "async_llm",
    "ClassificationRequestOutput": "outputs",
    "Client": "client",
    "ConfigError": "errors",
    "ConversionReport": "conversion.converter",
    "DeadlineError": "errors",
    "Decision": "outputs",
    "EngineDeadError": "errors",
    "EmbeddingRequestOutput": "outputs",
    "Head": "architecture",
    "HeadOption": "head_source",
    "HeadRequest": "architecture",
    "HeadResult": "architecture",
    "HeadSource": "head_source",
    "JobError": "errors",
    "JobReport": "jobs.report.job_report",
    "LLM": "llm",
    "LinearHead": "architecture",
    "LoRARequest": "params",
    "ModelError": "errors",
    "Moderation": "outputs",
    "PluginError": "errors",
    "PoolerConfig": "config",
    "PoolingParams": "params",
    "PoolingRequestOutput": "outputs",
    "PromptError": "errors",
    "QueueFullError": "errors",
    "ScoringRequestOutput": "outputs",
    "TokenClassificationRequestOutput": "outputs",
    "VclsError": "errors",
    "classify_file": "jobs.classify",
    "convert": "conversion.converter",
    "decide_file": "jobs.decide",
    "hookimpl": "hookspecs",
    "load_classifier": "classifier",
    "score_file": "jobs.score",
}

__all__ = [
    "LLM",
    "Architecture",
    "AsyncClient",
    "AsyncLLM",
    "ClassificationRequestOutput",
    "Client",
    "ConfigError",
    "ConversionReport",
    "DeadlineError",
    "Decision",
    "EmbeddingRequestOutput",
    "EngineDeadError",
    "Head",
    "HeadOption",
    "HeadRequest",
    "HeadResult",
    "HeadSource",
    "JobError",
    "JobReport",
    "LinearHead",
    "LoRARequest",
    "ModelError",
    "Moderation",
    "PluginError",
    "PoolerConfig",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptError",
    "QueueFullError",
    "ScoringRequestOutput",
    "TokenClassificationRequestOutput",
    "VclsError",
    "__version__",
    "classify_file",
    "convert",
    "decide_file",
    "hookimpl",
    "load_classifier",
    "score_file",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vllm-cls")
    if name in _HOMES:
        if _HOMES[name] in ("llm", "async_llm"):
            _startup.import_libraries()
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


_autoclass.install()
