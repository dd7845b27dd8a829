"""How long converting a large model takes against copying its files, and how much memory it needs.

    python benchmarks/convert_speed.py [--size-gb 2] [--rounds 5] [--folder DIR] [--json FILE]

Makes a Qwen2 language model with random weights and an LM head of its own, in one file and in several.
Copies and conversions (`--head tokens`) take turns in one process; both wait until their bytes are on the
disk. Then one conversion runs in a process of its own, for its memory and its time with all imports.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import statistics
import string
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE, KEY_VALUE, VOCABULARY = 1536, 8960, 256, 151_936  # of Qwen2-1.5B
LABELS = "negative=no,positive=ok"
TEMPLATE = "Review: {text}\nAnswer:"


def tensor_shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """Name → shape, as `Qwen2ForCausalLM` saves them."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, HIDDEN), "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for layer in range(num_layers):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", HIDDEN), ("k_proj", KEY_VALUE), ("v_proj", KEY_VALUE)):
            shapes |= {f"{stem}.self_attn.{name}.weight": (rows, HIDDEN), f"{stem}.self_attn.{name}.bias": (rows,)}
        shapes[f"{stem}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes |= {f"{stem}.mlp.{name}.weight": (INTERMEDIATE, HIDDEN) for name in ("gate_proj", "up_proj")}
        shapes[f"{stem}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    return dict(sorted(shapes.items()))


def num_bytes(shape: tuple[int, ...]) -> int:
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)  # bfloat16


def make_source(folder: Path, size: float, num_files: int) -> None:
    """Write a model of about `size` bytes, in bfloat16, its tokenizer and its config."""
    from transformers import Qwen2Config

    num_layers = 1
    while sum(map(num_bytes, tensor_shapes(num_layers).values())) < size:
        num_layers += 1
    config = Qwen2Config(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=num_layers, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=VOCABULARY, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config.save_pretrained(folder)
    make_tokenizer(folder)
    shapes = list(tensor_shapes(num_layers).items())
    total, weight_map, start = sum(num_bytes(shape) for _, shape in shapes), {}, 0
    for number in range(1, num_files + 1):
        end, filled = start, 0
        while end < len(shapes) and (filled < total / num_files or number == num_files):
            filled += num_bytes(shapes[end][1])
            end += 1
        name = f"model-{number:05d}-of-{num_files:05d}.safetensors" if num_files > 1 else "model.safetensors"
        write_random(folder / name, dict(shapes[start:end]))
        weight_map |= dict.fromkeys((tensor for tensor, _ in shapes[start:end]), name)
        start = end
    if num_files > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    flush(folder)


def write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of random bfloat16 numbers, a piece at a time."""
    import torch

    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + num_bytes(shape)]}
        offset += num_bytes(shape)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    generator = torch.Generator().manual_seed(0)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        while offset:
            values = torch.randn(min(offset // 2, 1 << 22), generator=generator).mul_(0.02).to(torch.bfloat16)
            file.write(values.view(torch.uint8).numpy().data)
            offset -= 2 * len(values)


def make_tokenizer(folder: Path) -> None:
    """Save a byte-level BPE tokenizer as large as Qwen2's, which is what takes memory."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [
        ("".join(pair[:-1]), pair[-1])
        for n in (2, 3, 4)
        for pair in itertools.product(string.ascii_lowercase, repeat=n)
    ]
    merges = pairs[: VOCABULARY - len(letters) - 300]
    vocabulary = {token: index for index, token in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=512
    )
    wrapped.save_pretrained(folder)


def flush(folder: Path) -> None:
    """Wait until a folder and its files are on the disk."""
    for path in [*folder.iterdir(), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def copy_files(source: Path, out: Path) -> None:
    shutil.copytree(source, out)
    flush(out)


def convert_model(source: Path, out: Path) -> None:
    from vllm_cls.conversion.converter import convert

    convert(str(source), out, head="tokens", label_tokens=LABELS, prompt_template=TEMPLATE)


def timed(work: Callable[[Path, Path], None], source: Path, out: Path) -> float:
    """Seconds of one run; what it wrote is removed, outside of the time."""
    start = time.perf_counter()
    work(source, out)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    flush(out.parent)
    return seconds


def turns(source: Path, rounds: int) -> Iterator[tuple[float, float]]:
    """Seconds of a copy and of a conversion, in turns, each going first every other time."""
    out = source.with_name("out")
    for work in (copy_files, convert_model):  # warms the page cache and the imports
        timed(work, source, out)
    for number in range(rounds):
        if number % 2:
            converted, copied = timed(convert_model, source, out), timed(copy_files, source, out)
        else:
            copied, converted = timed(copy_files, source, out), timed(convert_model, source, out)
        yield copied, converted


def alone(source: Path) -> dict[str, float]:
    """A conversion in a new process: peak memory in MB, seconds of the conversion and of the whole process."""
    out = source.with_name("out")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--once", str(source), str(out)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    shutil.rmtree(out)
    return {"process_seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def once(source: Path, out: Path) -> None:
    """Convert, and print the time and the peak of this process's memory."""
    start = time.perf_counter()
    convert_model(source, out)
    print(json.dumps({"convert_seconds": time.perf_counter() - start, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Peak resident memory of this process; getrusage would count what its parent held when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)


def machine(folder: Path) -> dict[str, str]:
    """What this ran on."""
    cpu, filesystem = platform.processor() or platform.machine(), "unknown"
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    if Path("/proc/mounts").exists():
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
        inside = [mount for mount in mounts if folder.resolve().is_relative_to(mount[0])]
        filesystem = max(inside, key=lambda mount: len(mount[0]))[1]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "filesystem": filesystem,
        "python": platform.python_version(),
        **versions,
    }


def measure(folder: Path, size: float, rounds: int, num_files: int) -> dict[str, Any]:
    source = folder / f"source-{num_files}"
    source.mkdir()
    make_source(source, size, num_files)
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    times = list(turns(source, rounds))
    result = {
        "files": num_files,
        "weights_gb": weights / 1e9,
        "copy_seconds": [copied for copied, _ in times],
        "convert_seconds": [converted for _, converted in times],
        "ratio": statistics.median(converted / copied for copied, converted in times),
        "alone": alone(source),
    }
    shutil.rmtree(source)
    return result


def report(result: dict[str, Any]) -> str:
    copied, converted = (statistics.median(result[name]) for name in ("copy_seconds", "convert_seconds"))
    alone = result["alone"]
    return (
        f"{result['files']} file(s), {result['weights_gb']:.2f} GB: copy {copied:.2f} s, convert {converted:.2f} s "
        f"(medians of {len(result['copy_seconds'])}), ratio {result['ratio']:.2f}\n"
        f"  in a process of its own: {alone['convert_seconds']:.2f} s, with starting and imports "
        f"{alone['process_seconds']:.2f} s, peak memory {alone['peak_mb']:.0f} MB"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-gb", type=float, default=2.0, help="of the model's weights")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a copy and a conversion")
    parser.add_argument("--num-files", type=int, nargs="+", default=[1, 4], help="files that the weights are in")
    parser.add_argument("--folder", type=Path, help="where to work, on the disk to be measured; three times the size")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--once", type=Path, nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.once:
        once(*options.once)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ran_on = machine(Path(name))
        print(", ".join(f"{key} {value}" for key, value in ran_on.items()), flush=True)
        results = []
        for num_files in options.num_files:
            results.append(measure(Path(name), options.size_gb * 1e9, options.rounds, num_files))
            print(report(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": ran_on, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
