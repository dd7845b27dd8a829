"""Compare every way to run a head on median states, a pooling method of a plugin's, with backbone and head directly.

check_pooling.py LAST MEDIAN prints one line of JSON: the largest difference of a probability, by way. LAST is a toy
classifier of its own pooling, which LLM is told to pool otherwise; MEDIAN one that was converted with `--pooling median`.
"""

import json
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from vcls_toy import ToyConfig, ToyModel

from vllm_cls import LLM, PoolerConfig, load_classifier

last, median = sys.argv[1:3]
texts = ["a", "two words", "a longer text, of more than one clause", "x" * 64]
token_ids = [torch.tensor(ids) for ids in AutoTokenizer.from_pretrained(median)(texts)["input_ids"]]


def direct(folder: str) -> torch.Tensor:
    """Probabilities `(text, label)` from the files alone."""
    tensors = load_file(f"{folder}/model.safetensors")
    head = {name: tensors.pop(name, None) for name in ("score.weight", "score.bias")}
    backbone = ToyModel(ToyConfig.from_pretrained(folder)).eval()
    backbone.load_state_dict({name.removeprefix("toy."): tensor for name, tensor in tensors.items()})
    states = torch.stack([backbone(ids[None])[0][0].median(0).values for ids in token_ids])
    return torch.nn.functional.linear(states, head["score.weight"], head["score.bias"]).softmax(-1)


def by_llm(folder: str, **options: PoolerConfig) -> torch.Tensor:
    with LLM(folder, **options) as llm:
        return torch.tensor([output.outputs.probs for output in llm.classify(texts, use_tqdm=False)])


def padded(model: torch.nn.Module, left: bool) -> torch.Tensor:
    """Of one batch, in which the texts stand at the right or the left; the mask says where."""
    ids, longest = torch.zeros(len(texts), 64, dtype=torch.long), 64
    mask = torch.zeros_like(ids)
    for row, each in enumerate(token_ids):
        place = slice(longest - len(each), longest) if left else slice(len(each))
        ids[row, place], mask[row, place] = each, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model.eval()(ids, attention_mask=mask, position_ids=positions).logits.softmax(-1)


with torch.no_grad():
    expected = direct(median)
    auto = AutoModelForSequenceClassification.from_pretrained(median)
    told = {
        "llm": by_llm(median) - expected,
        "told to": by_llm(last, pooler_config=PoolerConfig(pooling_type="Median")) - direct(last),
        "load_classifier": padded(load_classifier(median), left=False) - expected,
        "auto class": padded(auto, left=True) - expected,
    }
print(json.dumps({way: float(difference.abs().max()) for way, difference in told.items()}))
