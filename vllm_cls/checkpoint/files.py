"""The files of a checkpoint: where they are, which tensors they hold, and how one tensor is read.

Nothing here loads a whole model. Pickled weights are refused unless they are allowed by name.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..parsing.json_fields import check_file

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 8192
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_READABLE_PICKLES = "pytorch_model*.bin"  # by transformers
# What a training run keeps beside the weights.
_OF_TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args|trainer_state|model_head)")
# What torch.compile, FSDP and activation checkpointing put into names, wherever they wrap a module.
_WRAPPERS = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_PARALLEL = r"^module\."  # what DataParallel puts before all names
_OF_A_MODEL = (
    "*.safetensors", "*.bin", "*config*.json", "*.index.json", "modules.json", "*token*.json", "vocab*", "merges.txt",
    "*.model", "*.tiktoken", "*.jinja", "*.py", "decision.json",
)  # fmt: skip
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "*.md"]


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """Names of tensors on disk → the same without the prefixes of wrappers (DDP, torch.compile …) in which it was saved."""
    plain = {name: re.sub(_WRAPPERS, "", name) for name in names}
    if plain and all(re.match(_PARALLEL, name) for name in plain.values()):
        plain = {name: re.sub(_PARALLEL, "", inner) for name, inner in plain.items()}
    return plain


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model, or one GGUF file in it.

    Args:
        folder: the local folder.
        gguf: the GGUF file's name within the folder, or None.
        name: what the user called it.
        made_from: the folder of the GGUF file that this one was made from.
    """

    folder: Path
    gguf: str | None = None
    name: str = ""
    made_from: Path | None = field(default=None, kw_only=True)

    @property
    def beside(self) -> Path:
        """Where the settings of its decisions lie: beside the model as the user has it."""
        return self.made_from or self.folder

    @functools.cached_property
    def shards(self) -> list[Path]:
        """The safetensors files that hold the weights: one, or those that the index names.

        Raises:
            ModelError: the index is damaged, or names a file outside the folder.
        """
        single = self.folder / "model.safetensors"
        if single.is_file():  # which transformers takes, too, where there are both
            return [single]
        indexed = self._indexed("model.safetensors.index.json")
        return indexed if indexed is not None else sorted(set(self.folder.glob("*.safetensors")) - {self.adapter_file})

    @functools.cached_property
    def files(self) -> list[Path]:
        """What a model is read from: weights, settings, tokenizer, those of Sentence Transformers' modules too."""
        if self.gguf is not None:
            return [self.folder / self.gguf]
        found = {path for name in _OF_A_MODEL for inner in ("", "[0-9]*_*/") for path in self.folder.glob(inner + name)}
        if self.made_from is not None:
            found |= set(self.made_from.glob("decision[._]*"))
        return sorted(path for path in found if path.is_file())

    @property
    def adapter_file(self) -> Path:
        """Where the weights of a PEFT adapter would be."""
        return self.folder / "adapter_model.safetensors"

    @property
    def has_adapter(self) -> bool:
        """Whether there is a PEFT adapter in the folder, which transformers would load with the model."""
        return (self.folder / "adapter_config.json").is_file()

    @functools.cached_property
    def locations(self) -> dict[str, Path]:
        """Tensor name → the file that holds it; empty for formats other than safetensors.

        Names are those of the model, without the wrappers that it was saved in.
        """
        return {name: self._files[stored] for name, stored in self._stored_names.items()}

    @functools.cached_property
    def _stored_names(self) -> dict[str, str]:
        """Tensor name → the name on disk.

        Raises:
            ModelError: two tensors have the same name but for wrappers.
        """
        plain = unwrapped(self._files)
        twice = [name for name, count in Counter(plain.values()).items() if count > 1]
        if twice:
            raise ModelError(
                f"{self.name} holds {twice[0]} several times, wrapped and not; remove those that do not belong to it."
            )
        return {name: stored for stored, name in plain.items()}

    @functools.cached_property
    def _files(self) -> dict[str, Path]:
        """Tensor's name on disk → the file that holds it."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, Path] = {}
        for shard in self.shards:
            if not shard.is_file():
                raise ModelError(f"{self.name}: the index names {shard.name}, which is not in {self.folder}.")
            try:
                with safe_open(shard, framework="pt") as file:
                    found.update(dict.fromkeys(file.keys(), shard))
            except SafetensorError as error:
                raise ModelError(f"{shard} is not a readable safetensors file: {error}. Fetch it again.") from error
        return found

    @property
    def raw_config(self) -> dict[str, Any]:
        """config.json as it was parsed, unchecked, since overrides may replace fields; empty without one."""
        found = self._content("config.json")
        return found if isinstance(found, dict) else {}

    @property
    def class_names(self) -> list[str]:
        """`architectures` of config.json, without overrides."""
        names = self.raw_config.get("architectures")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def json(self, name: str, *, replaced: Collection[str] = ()) -> Any:
        """A JSON file of the folder, parsed and checked; None where there is no such file.

        Args:
            replaced: fields that overrides replace, which are not checked.

        Raises:
            ModelError: it is not JSON, or a field has a value of the wrong type.
        """
        content = self._content(name)
        if (self.folder / name).is_file():
            check_file(self.name, name, content, replaced=replaced)
        return content

    def _content(self, name: str) -> Any:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.name}: {name} is not JSON ({error}); fetch the model again.") from error

    def _indexed(self, index: str) -> list[Path] | None:
        """The files that an index names, all within the folder; None where there is no such index."""
        found = self.json(index)
        if found is None:
            return None
        weight_map = found.get("weight_map") if isinstance(found, dict) else None
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(v, str) for v in weight_map.values())
        ):
            raise ModelError(f"{self.name}: {index} has no weight_map of tensors to files; fetch the model again.")
        for name in weight_map.values():
            if PurePosixPath(name).name != name or "\\" in name or name == "..":
                raise ModelError(
                    f"{self.name}: {index} names {name!r}, which is no file of the folder itself; an index that points "
                    "elsewhere is not followed."
                )
        return [self.folder / name for name in sorted(set(weight_map.values()))]

    @property
    def num_bytes(self) -> int:
        """The size of all weight files in bytes."""
        return sum(path.stat().st_size for path in self.shards or self.pickles if path.is_file())

    @property
    def pickles(self) -> list[Path]:
        """Files in pickle formats, which can run code when they are read."""
        found = {path for pattern in _PICKLES for path in self.folder.glob(pattern)}
        return sorted(path for path in found if not _OF_TRAINING.fullmatch(path.stem) and path.stem != "adapter_model")

    def refuse_pickle(self, allowed: bool) -> None:
        """Raise `ModelError` if there are no weights, or only pickles and these are not `allowed`."""
        if allowed and not self.shards:
            self._indexed("pytorch_model.bin.index.json")
        readable = [path for path in self.pickles if path.match(_READABLE_PICKLES)]
        if self.gguf is not None or self.shards or (readable and allowed):
            return
        if readable:
            raise ModelError(
                f"{self.name} has its weights only as {readable[0].name}, a pickle, which can run code when it is "
                "read; convert it to safetensors, or pass --allow-pickle (allow_pickle=True), which reads it with "
                "weights_only."
            )
        other = f"; {self.pickles[0].name} is in no format that is read here" if self.pickles else ""
        raise ModelError(
            f"{self.name} has no weights in safetensors{other}; give a folder that holds model.safetensors (a hub model that "
            "has only .bin files needs --allow-pickle)."
        )

    def tensor(self, name: str, rows: Sequence[int] | None = None) -> torch.Tensor:
        """One tensor, or some of its rows, in float32.

        Raises:
            ModelError: the checkpoint has no tensor of that name.
        """
        import torch
        from safetensors import safe_open

        if name not in self.locations:
            raise ModelError(f"{self.name} has no tensor {name!r}.")
        with safe_open(self.locations[name], framework="pt") as file:
            stored = self._stored_names[name]
            if rows is None:
                whole: torch.Tensor = file.get_tensor(stored)
                return whole.to(torch.float32)
            part = file.get_slice(stored)
            return torch.stack([part[row : row + 1][0].to(torch.float32) for row in rows])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header."""
        from safetensors import safe_open

        with safe_open(self.locations[name], framework="pt") as file:
            return tuple(file.get_slice(self._stored_names[name]).get_shape())

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are equal; of large ones, a part is in memory at a time."""
        import torch
        from safetensors import safe_open

        with (
            safe_open(self.locations[name], framework="pt") as file,
            safe_open(self.locations[other], framework="pt") as file_of_other,
        ):
            one, two = file.get_slice(self._stored_names[name]), file_of_other.get_slice(self._stored_names[other])
            shape = one.get_shape()
            if shape != two.get_shape():
                return False
            starts = range(0, shape[0], _ROWS_AT_ONCE)
            return all(torch.equal(one[at : at + _ROWS_AT_ONCE], two[at : at + _ROWS_AT_ONCE]) for at in starts)

    def holds(self, name: str) -> bool:
        """Whether a tensor, by any name that it may be read under, belongs to this model."""
        return True

    def key_mapping(self, prefix: str) -> dict[str, str] | None:
        """Patterns of names on disk → what a class whose backbone has this prefix calls them; None where it finds them."""
        if all(name == stored for name, stored in self._stored_names.items()) and self._files:
            return None
        return {_WRAPPERS: "", _PARALLEL: ""}  # of pickled weights, whose names are not known before they are read, too


def resolve(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """The local files of a folder, a `.gguf` file or a hub id (downloaded, weights in safetensors only).

    Raises:
        ModelError: there is nothing at that path, or the hub does not have or give it.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model} is a file; give the model's folder, a hub id or a .gguf file.")
        return Checkpoint(path.parent, path.name, model)
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file() and len(ggufs) == 1:
            return Checkpoint(path, ggufs[0].name, model)
        return _folder(path, model)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or not model.strip():
        raise ModelError(
            f"there is no folder {model!r}; give an existing folder, a hub id (owner/name) or a .gguf file."
        )
    return _download(model, revision, [*_HUB_FILES, "*.bin"] if allow_pickle else _HUB_FILES)


def _download(model: str, revision: str | None, patterns: list[str]) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{model!r} is neither a local folder nor to be had from the hub ({reason}). "
            "Check the name, the network and, for a gated model, `hf auth login`."
        ) from error
    return _folder(Path(folder), model)


def _folder(path: Path, model: str) -> Checkpoint:
    """The model in a folder.

    Raises:
        ModelError: its config is not there.
    """
    if (path / "config.json").is_file():
        return Checkpoint(path, None, model)
    if (path / "modules.json").is_file():
        raise ModelError(
            f"{model} is a Sentence Transformers folder of an old layout, whose transformer has a folder of its own; save it "
            f"anew: SentenceTransformer({model!r}).save_pretrained(…) puts it beside the rest."
        )
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{model} is a PEFT adapter, without the model that it belongs to; give that model{_base_of(path)}, and the adapter "
            f"with --lora {model} (lora={model!r})."
        )
    raise ModelError(f"{model} has no config.json; give the folder that holds the model's config and weights.")


def _base_of(adapter: Path) -> str:
    """A clause that names the base model of an adapter; empty where it is not known."""
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" ({base})" if isinstance(base, str) and base else ""
