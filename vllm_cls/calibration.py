"""`convert --calibrate`: the finished classifier runs over labelled rows, and a plugin fits its temperature and biases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .architecture import CalibrationRequest, HeadResult, Target
from .config import PoolerConfig
from .errors import ConfigError
from .head_job import HeadJob
from .registry import registry


def calibrated(
    job: HeadJob,
    result: HeadResult,
    target: Target,
    rows: tuple[Sequence[Any], Sequence[Any]],
    *,
    rows_path: str,
    seed: int,
    intercept: bool,
) -> HeadResult:
    """The head, calibrated where that improves the log loss of rows held out.

    Args:
        job: the model, how prompts are read and how many tokens run at once.
        rows: prompts and their labels.
        intercept: False fits a temperature alone, which every format can hold.

    Raises:
        ConfigError: the head gives no probabilities, or the checkpoint calibrates its logits already.
    """
    source = job.source
    stored = PoolerConfig.parse(source.settings.get("pooler_config"))
    if stored.mean is not None or stored.logit_sigma is not None:
        raise ConfigError(
            "--calibrate: this checkpoint's pooler_config calibrates its logits already; remove it first."
        )
    from .features import classifier_logits  # the runtime, which other conversions do without

    prompts, targets = rows
    logits, truncated = classifier_logits(
        source, target, job.options, job.processor, prompts, job.budget, head_is_trained=result.head.trained
    )
    if truncated:
        job.warnings.append(f"{truncated} of {len(prompts)} rows of --calibrate were cut to the model's length")
    request = CalibrationRequest(
        checkpoint=source.checkpoint,
        architecture=source.architecture,
        config=source.config,
        result=result,
        target=target,
        logits=logits,
        targets=targets,
        seed=seed,
        intercept=intercept,
        rows_name=Path(rows_path).name,
    )
    changed: HeadResult = registry().hook.vcls_calibrate(request=request)
    return changed
