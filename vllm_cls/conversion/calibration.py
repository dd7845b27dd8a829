"""`convert --calibrate`: the finished classifier runs over labelled rows, and a plugin fits its temperature and biases."""

from __future__ import annotations

from pathlib import Path

from ..architecture import CalibrationRequest, HeadResult, Target
from ..config import PoolerConfig, labels_of
from ..errors import ConfigError
from ..jobs.training import MULTI_LABEL, TrainingRows, read_labels
from ..pooler.activations import activation_for, softmax_or_sigmoid
from ..registry import registry
from .head_job import HeadJob


def calibrated(
    job: HeadJob,
    result: HeadResult,
    target: Target,
    rows: TrainingRows,
    *,
    rows_path: str,
    seed: int,
    intercept: bool,
) -> HeadResult:
    """The head, calibrated where that improves the log loss of rows held out.

    Args:
        job: the model, how prompts are read and how many tokens run at once.
        rows: prompts and their labels, as the file has them.
        intercept: False fits a temperature alone, which every format can hold.

    Raises:
        ConfigError: the head gives no probabilities by softmax or sigmoid, the checkpoint calibrates its logits already,
            or a row has a label that is none of the head's.
    """
    source = job.source
    stored = PoolerConfig.parse(source.settings.get("pooler_config"))
    if stored.mean is not None or stored.logit_sigma is not None:
        raise ConfigError(
            "--calibrate: this checkpoint's pooler_config calibrates its logits already; remove it first."
        )
    problem_type = target.config.problem_type
    activation = activation_for(target.config, registry().collect("vcls_activations"))
    if activation is not softmax_or_sigmoid and problem_type != MULTI_LABEL:
        raise ConfigError("--calibrate needs a head that gives probabilities by softmax or sigmoid; this one does not.")
    labels = read_labels(
        rows, list(labels_of(target.config).values()), problem_type, "--calibrate", "the model's labels"
    )
    job.warnings += labels.notes
    from .feature_extraction import classifier_logits  # the runtime, which other conversions do without

    logits, truncated = classifier_logits(
        source,
        target,
        job.options,
        job.processor,
        rows.prompts,
        job.budget,
        head_is_trained=result.head.trained,
        use_tqdm=job.use_tqdm,
    )
    if truncated:
        job.warnings.append(f"{truncated} of {len(rows.prompts)} rows of --calibrate were cut to the model's length")
    request = CalibrationRequest(
        checkpoint=source.checkpoint,
        architecture=source.architecture,
        config=source.config,
        result=result,
        target=target,
        logits=logits,
        targets=labels.targets,
        seed=seed,
        intercept=intercept,
        rows_name=Path(rows_path).name,
    )
    changed: HeadResult = registry().call("vcls_calibrate", request=request)
    return changed
