"""Compare every way to run a converted toy model with its backbone and head computed directly.

check_model.py FOLDER prints one line of JSON: the largest difference of a probability, by way.
"""

import json
import sys
import tempfile
from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from vllm_cls import LLM, load_classifier

folder = sys.argv[1]
texts = ["a", "two words", "a longer text, of more than one clause", "x" * 64]


def direct() -> torch.Tensor:
    """Probabilities `(text, label)` from the files alone."""
    from transformers import AutoTokenizer
    from vcls_toy import ToyConfig, ToyModel

    tensors = load_file(f"{folder}/model.safetensors")
    backbone = ToyModel(ToyConfig.from_pretrained(folder)).eval()
    backbone.load_state_dict({name.removeprefix("toy."): tensors[name] for name in tensors if name != "score.weight"})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = [backbone(tokenizer(text, return_tensors="pt")["input_ids"])[0][0, -1] for text in texts]
    return (torch.stack(states) @ tensors["score.weight"].T).softmax(-1)


def by_llm(model: str) -> torch.Tensor:
    with LLM(model) as llm:
        return torch.tensor([output.outputs.probs for output in llm.classify(texts, use_tqdm=False)])


def one_by_one(model: torch.nn.Module, token_ids: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model.eval()(ids).logits for ids in token_ids]).softmax(-1)


with torch.no_grad():
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    expected = direct()
    model = load_classifier(folder)
    with tempfile.TemporaryDirectory() as copy:
        model.save_pretrained(copy)
        tokenizer.save_pretrained(copy)
        answers = {
            "llm": by_llm(folder),
            "load_classifier": one_by_one(model, token_ids),
            "auto_class": one_by_one(AutoModelForSequenceClassification.from_pretrained(folder), token_ids),
            "saved_again": by_llm(copy),
        }
    with LLM(folder) as llm:
        execution = llm.describe()["execution"]
differences = {name: float((answer - expected).abs().max()) for name, answer in answers.items()}
print(json.dumps(differences | {"execution": execution}))
