"""Compare the head of a converted toy model with the mean states that the model gives directly.

check_head.py MODEL FOLDER ROWS SHARPNESS prints one line of JSON: the labels, and the largest difference of a weight and
of a bias, None where there is none.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from vcls_toy import ToyForCausalLM

model, folder, rows, sharpness = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
with open(f"{folder}/config.json") as file:
    id2label = json.load(file)["id2label"]
labels = [id2label[str(index)] for index in range(len(id2label))]
backbone = ToyForCausalLM.from_pretrained(model).eval().toy
tokenizer = AutoTokenizer.from_pretrained(model)
states: dict[str, list[torch.Tensor]] = {label: [] for label in labels}
with open(rows) as file, torch.no_grad():
    for row in map(json.loads, file):
        states[row["label"]].append(backbone(tokenizer(row["text"], return_tensors="pt")["input_ids"])[0][0, -1])
means = torch.stack([torch.stack(states[label]).mean(0) for label in labels])
head = load_file(f"{folder}/model.safetensors")
answer = {"labels": labels, "weight": float((head["score.weight"] - sharpness * means).abs().max()), "bias": None}
if "score.bias" in head:
    answer["bias"] = float((head["score.bias"] + sharpness / 2 * means.square().sum(1)).abs().max())
print(json.dumps(answer))
