"""GGUF files as models: dequantised once by transformers into a cached folder of safetensors."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat.disk import cache_folder
from ..compat.transformers_logging import quiet, quiet_gguf
from ..errors import ModelError
from .files import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = 1  # raise it when what is written here changes


def materialize(checkpoint: Checkpoint) -> Checkpoint:
    """The folder that holds a GGUF file's model in float32, made at its first use.

    Raises:
        ModelError: the `gguf` package is missing, or transformers cannot read the file.
    """
    assert checkpoint.gguf is not None
    file = (checkpoint.folder / checkpoint.gguf).resolve()
    folder = cache_folder() / "gguf" / f"{file.stem}-{_identity(file)}"
    if not (folder / "config.json").is_file():
        _write(file, folder)
    return Checkpoint(folder, None, checkpoint.name, made_from=checkpoint.folder)


def _identity(file: Path) -> str:
    stat = file.stat()
    return hashlib.sha256(f"{_FORMAT}:{file}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_gguf():
            loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ImportError, ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "pip install 'vllm-cls[gguf]'" if isinstance(error, ImportError) else "use the model's safetensors"
        raise ModelError(f"{file} cannot be read as GGUF ({reason}); {hint}.") from error
    if hasattr(loaded.config, "quantization_config"):  # it is dequantised now, and would refuse to be saved
        del loaded.config.quantization_config
    loaded.hf_quantizer = None
    loaded.is_quantized = False
    _restore_pretokenizer(file, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with quiet():
            loaded.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        if folder.exists():  # another process was faster
            return
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _restore_pretokenizer(file: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """GGUF keeps only the name of the pre-tokenizer; rebuild those we know, and say where one stays unknown."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    name = _pretokenizer_name(file)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if name in ("smollm", "starcoder", "refact", "command-r") and backend is not None:
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    elif name not in (None, "default", "gpt-2"):
        warnings.warn(
            f"{file.name}: its tokenizer was rebuilt without the pre-tokenizer {name!r}, so some texts may split "
            "otherwise than the model was trained with; pass the original one with --tokenizer.",
            stacklevel=2,
        )


def _pretokenizer_name(file: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return None if field is None else bytes(field.parts[field.data[0]]).decode()
