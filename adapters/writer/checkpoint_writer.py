"""Writes a converted checkpoint: tensors are copied from file to file, and the model is never loaded.

The folder appears whole or not at all. Python files are copied only where the model's config is code that came with
it, and that the user trusted: else the written class is transformers' or ours, and needs none.
"""

from __future__ import annotations

import copy
import errno
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from vllm_cls.config import has_own_code, is_own_code
from vllm_cls.errors import ModelError
from vllm_cls.hookspecs import hookimpl

from .atomic_folder import checked_place, new_folder
from .file_copies import can_clone, place_file
from .safetensors_stream import write_file
from .tensor_plan import TensorPlan, configs_within, plan_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from vllm_cls.architecture import ConversionPlan

INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = (
    "tokenizer*.json", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.spm",
    "*.tiktoken", "bpe.codes", "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
# Not generation_config.json, nor the files of a Sentence Transformers embedder (modules.json, 1_Pooling …):
# the result neither generates nor embeds.
_PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json",
)  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MARGIN = 16 * 2**20  # bytes that config, tokenizer and the filesystem itself may take


@dataclass(frozen=True)
class WriteResult:
    """What was written, or would be.

    Args:
        files: names in the folder.
        num_bytes: of the weight files.
        dropped: tensors of the source that are not in the result (LM head, old buffers …).
        renamed: how many tensors have another name than in the source.
        warnings: messages for the user.
    """

    files: list[str]
    num_bytes: int
    dropped: list[str]
    renamed: int
    warnings: list[str]


@hookimpl(trylast=True)
def vcls_write_checkpoint(plan: ConversionPlan) -> WriteResult:
    """Write the checkpoint that a plan describes, or with `dry_run` only say what would be written.

    Raises:
        ModelError: `out` cannot be written, or the source does not make up the classifier.
    """
    try:
        _refuse_code_inside(plan)
        _refuse_other_code(plan)
        place = checked_place(plan.out, [plan.checkpoint.folder, *plan.checkpoint.shards], overwrite=plan.overwrite)
        tensors = plan_tensors(plan)
        return _dry_run(plan, tensors) if plan.dry_run else _write(plan, tensors, place)
    except OSError as error:
        if error.errno in _FULL:
            raise ModelError(f"the disk of {plan.out} filled up; nothing was left behind. {_needs(tensors)}") from error
        raise ModelError(f"{plan.out} cannot be written: {error.strerror or error}.") from error


def _refuse_code_inside(plan: ConversionPlan) -> None:
    """Our own format holds the backbone's config, and would need its code to be read."""
    if not has_own_code(plan.config) and any(map(has_own_code, configs_within(plan.config))):
        raise ModelError(
            f"{plan.checkpoint.name} has code of its own, and this head takes our own format, which has no place for it; make "
            "one that is a plain matrix (--head tokens, fit without --bias, random) on the model's own pooling."
        )


def _refuse_other_code(plan: ConversionPlan) -> None:
    """A class made on a checkpoint's own code is not to be opened as another one: transformers goes by names."""
    made = plan.classifier_class
    if not has_own_code(plan.config) or is_own_code(made):
        return
    if hasattr(transformers, made.__name__) or "AutoConfig" not in (getattr(plan.config, "auto_map", None) or {}):
        raise ModelError(
            f"{plan.checkpoint.name} has code of its own and no classifier in it, and the result would open as transformers' "
            f"own class for model_type {plan.config.model_type!r}, which computes something else. Give its code a class for "
            "AutoModelForSequenceClassification, or make the head where it runs (convert='classify' with "
            "hf_overrides={'classifier_from_token': …})."
        )


def _dry_run(plan: ConversionPlan, tensors: TensorPlan) -> WriteResult:
    with tempfile.TemporaryDirectory() as folder:
        _write_beside(plan, tensors, Path(folder))
        return _result(tensors, Path(folder), tensors.files)


def _write(plan: ConversionPlan, tensors: TensorPlan, place: Path) -> WriteResult:
    with new_folder(place, overwrite=plan.overwrite) as folder:
        _refuse_full_disk(plan, tensors, folder)
        for name, file in tensors.files.items():
            if file.copy_of:
                place_file(file.copy_of, folder / name, link=plan.link)
            else:
                write_file(folder / name, file.pieces)
        _write_beside(plan, tensors, folder)
        return _result(tensors, folder)


def _write_beside(plan: ConversionPlan, tensors: TensorPlan, folder: Path) -> None:
    """Write all files besides the weights: index, config, tokenizer, processor, model card."""
    if tensors.index:
        (folder / INDEX).write_text(json.dumps(tensors.index, indent=2) + "\n", encoding="utf-8")
    written_config(plan, tensors).save_pretrained(folder)
    patterns = _PROCESSOR_FILES if plan.tokenizer is not None else _TOKENIZER_FILES + _PROCESSOR_FILES
    for source in sorted({path for pattern in patterns for path in plan.checkpoint.folder.glob(pattern)}):
        target = folder / source.relative_to(plan.checkpoint.folder)
        if source.is_file() and source.suffix != ".py":
            target.parent.mkdir(exist_ok=True)
            place_file(source, target)
    if plan.tokenizer is not None:
        plan.tokenizer.save_pretrained(folder)
    if has_own_code(plan.config):
        for source in plan.checkpoint.folder.glob("*.py"):
            if not (folder / source.name).exists():  # transformers writes that of the config
                place_file(source, folder / source.name)
    for name, text in {**plan.files, "README.md": plan.card}.items():
        (folder / name).write_text(text, encoding="utf-8")


def written_config(plan: ConversionPlan, tensors: TensorPlan) -> PreTrainedConfig:
    """The plan's config as it is written: it names the class, and the type of the weights."""
    config = copy.deepcopy(plan.config)
    config.architectures = [plan.classifier_class.__name__]
    requested = None if plan.dtype == "auto" else plan.dtype
    if requested or config.dtype is None:
        for part in configs_within(config):
            part.dtype = requested or tensors.dtype
    # What belongs to generation is refused in a config by transformers.
    generation: dict[str, Any] = config._get_generation_parameters()
    for name in [*generation, *([] if has_own_code(config) else ["auto_map"])]:
        if hasattr(config, name):
            delattr(config, name)
    return config


def _result(tensors: TensorPlan, folder: Path, more: Any = ()) -> WriteResult:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return WriteResult(sorted(names | set(more)), tensors.num_bytes, tensors.dropped, tensors.renamed, tensors.warnings)


def _refuse_full_disk(plan: ConversionPlan, tensors: TensorPlan, folder: Path) -> None:
    """Raise before hours of copying rather than after; reflinks and hard links take no room."""
    sources = plan.checkpoint.shards
    if can_clone(sources[0], folder):
        return
    linked = plan.link and sources[0].stat().st_dev == folder.stat().st_dev
    needed = sum(file.size for file in tensors.files.values() if not (linked and file.copy_of))
    free = shutil.disk_usage(folder).free
    if needed + _MARGIN > free:
        raise ModelError(f"the disk of {plan.out} has {free / 1e9:.2f} GB free. {_needs(tensors)}")


def _needs(tensors: TensorPlan) -> str:
    return f"The weights take {tensors.num_bytes / 1e9:.2f} GB; make room, or choose a folder on another disk."
