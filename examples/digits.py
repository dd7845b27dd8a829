"""Images to classify without a download: scikit-learn's digits, and a small Qwen2.5-VL of random weights that reads them.

    python examples/digits.py --out demo/digits                  images/, train.jsonl, test.jsonl and model/
    python examples/digits.py --out demo/digits --draw FILE PNG  draws rows that `vcls classify` wrote, images beside labels

docs/images.md fits a head on them. A real model does better; this one shows that the images arrive.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
PATCH = dict(patch_size=4, temporal_patch_size=2, merge_size=2)
SIZE = {"shortest_edge": 8**2, "longest_edge": 64**2}
QUESTION = "0 1 2 3 4 5 6 7 8 9 ?"
NUM_TRAIN, NUM_TEST, SIDE = 600, 200, 32


def write_rows(folder: Path) -> None:
    """The digits as PNG files, and the rows that name them."""
    digits = load_digits()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in np.random.default_rng(0).permutation(len(digits.target))[: NUM_TRAIN + NUM_TEST].tolist():
        grey = Image.fromarray((digits.images[index] / 16 * 255).astype(np.uint8))
        name = f"images/{index}.png"
        grey.resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB").save(folder / name)
        rows.append(json.dumps({"image": name, "text": QUESTION, "label": str(digits.target[index])}))
    (folder / "train.jsonl").write_text("\n".join(rows[:NUM_TRAIN]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(rows[NUM_TRAIN:]) + "\n")


def write_model(folder: Path) -> None:
    """A `Qwen2_5_VLForConditionalGeneration` of random weights, with a tokenizer of bytes and the family's processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({each: index for index, each in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, eos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    vision: dict[str, Any] = dict(depth=2, hidden_size=64, num_heads=2, intermediate_size=128, out_hidden_size=64)
    text: dict[str, Any] = dict(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=ids[SPECIAL[0]], hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | dict(patch_size=4, spatial_merge_size=2, window_size=16, fullatt_block_indexes=[1]),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size=SIZE, **PATCH).save_pretrained(folder)


def draw(folder: Path, classified: Path, picture: Path, columns: int = 10, num_rows: int = 3) -> None:
    """The first images of a file of results, each above its label; wrong ones with the right label behind it, in red."""
    rows = [json.loads(line) for line in classified.read_text().splitlines()][: columns * num_rows]
    cell = (SIDE * 2, SIDE * 2 + 18)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(rows) // columns) * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        left, top = index % columns * cell[0], index // columns * cell[1]
        sheet.paste(Image.open(folder / row["image"]).resize((SIDE * 2 - 4, SIDE * 2 - 4)), (left + 2, top + 2))
        is_right = row["label"] == row["input_label"]
        said = f"{row['label']} {row['score']:.2f}" + ("" if is_right else f" ({row['input_label']})")
        pen.text((left + 4, top + SIDE * 2), said, fill="black" if is_right else "red")
    sheet.quantize(32).save(picture, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("FILE", "PNG"))
    options = parser.parse_args()
    if options.draw:
        draw(options.out, *options.draw)
        return
    write_rows(options.out)
    write_model(options.out / "model")


if __name__ == "__main__":
    main()
