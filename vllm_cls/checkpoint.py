"""A model's files: where they are, which tensors they hold, and reading those one by one.

Nothing here loads a whole model. Pickled weights are refused unless they are allowed by name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 8192
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "*.md"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model, or one GGUF file in it.

    Args:
        folder: the local folder.
        gguf: the GGUF file's name within the folder, or None.
        name: what the user called it.
    """

    folder: Path
    gguf: str | None = None
    name: str = ""

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
        return indexed if indexed is not None else sorted(self.folder.glob("*.safetensors"))

    @functools.cached_property
    def locations(self) -> dict[str, Path]:
        """Tensor name → the file that holds it; empty for formats other than safetensors."""
        from safetensors import SafetensorError, safe_open

        found = {}
        for shard in self.shards:
            if not shard.is_file():
                raise ModelError(f"{self.name}: the index names {shard.name}, which is not in {self.folder}.")
            try:
                with safe_open(shard, framework="pt") as file:
                    found.update(dict.fromkeys(file.keys(), shard))
            except SafetensorError as error:
                raise ModelError(f"{shard} is not a readable safetensors file: {error}. Fetch it again.") from error
        return found

    def json(self, name: str) -> Any:
        """What a JSON file of the folder says; None where there is no such file.

        Raises:
            ModelError: it is not JSON.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not JSON ({error}); fetch the model again.") from error

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
    def pickles(self) -> list[Path]:
        """Files in pickle formats, which can run code when they are read."""
        return sorted(
            path for pattern in _PICKLES for path in self.folder.glob(pattern) if path.stem != "training_args"
        )

    def refuse_pickle(self, allowed: bool) -> None:
        """Raise `ModelError` if there are no weights, or only pickles and these are not `allowed`."""
        if allowed and not self.shards:
            self._indexed("pytorch_model.bin.index.json")
        if self.gguf is not None or self.shards or (self.pickles and allowed):
            return
        if not self.pickles:
            raise ModelError(
                f"{self.name} has no weights in safetensors; give a folder that holds model.safetensors (a hub model that "
                "has only .bin files needs --allow-pickle)."
            )
        if not allowed:
            raise ModelError(
                f"{self.name} has its weights only as {self.pickles[0].name}, a pickle, which can run code when it is "
                "read; convert it to safetensors, or pass --allow-pickle (allow_pickle=True), which reads it with "
                "weights_only."
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
            if rows is None:
                return file.get_tensor(name).to(torch.float32)
            part = file.get_slice(name)
            return torch.stack([part[row : row + 1][0].to(torch.float32) for row in rows])

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are equal; of large ones, a part is in memory at a time."""
        import torch
        from safetensors import safe_open

        with (
            safe_open(self.locations[name], framework="pt") as file,
            safe_open(self.locations[other], framework="pt") as file_of_other,
        ):
            one, two = file.get_slice(name), file_of_other.get_slice(other)
            shape = one.get_shape()
            if shape != two.get_shape():
                return False
            starts = range(0, shape[0], _ROWS_AT_ONCE)
            return all(torch.equal(one[at : at + _ROWS_AT_ONCE], two[at : at + _ROWS_AT_ONCE]) for at in starts)

    def key_mapping(self, prefix: str) -> dict[str, str] | None:
        """Patterns of names on disk → what a class whose backbone has this prefix calls them; None where it finds them."""
        return None


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
    raise ModelError(f"{model} has no config.json; give the folder that holds the model's config and weights.")
