"""Every format that `vcls convert` writes: how one is made, and what transformers itself gives for a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.end_to_end import test_reward
from tests.model import test_lora
from tests.models import gguf_file, tiny

TEXT = "The film was good"
PAIR = ("The film", "good music")
GOOD_BAD = ["--head", "tokens", "--label-tokens", "b= bad,g= good"]
# Most are "b", so that a calibration has something to move.
ROWS = [{"text": f"{word} film", "label": label} for word in "The A What I".split() for label in "bbbg" for _ in "abc"]

Numbers = list[float]


@dataclass(frozen=True)
class Format:
    """A way to be written.

    Args:
        source: makes the model in a folder, with the files that the options name.
        options: of `vcls convert`; `{folder}` is that folder.
        expected: `(source, out)` → what plain transformers gives for `TEXT`: probabilities, a reward, or of each token that of
            its likeliest label.
        own: our own `model_type`; else the source's own.
        task: "classify", "token_classify", "reward" or "steps".
        again: options of a second conversion of the result.
        pairs: `(source, out)` → the score of `PAIR`, of a model with one label.
    """

    source: Callable[[Path], Path]
    options: Sequence[str]
    expected: Callable[[Path, Path], Numbers]
    own: bool = False
    task: str = "classify"
    again: Sequence[str] = ()
    pairs: Callable[[Path, Path], float] | None = None


# -- what transformers gives ----------------------------------------------------------------------------


def ids_of(folder: Path, *texts: str) -> torch.Tensor:
    return transformers.AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt").input_ids


@torch.no_grad()
def next_logits(folder: Path, words: Sequence[str], text: str = TEXT) -> torch.Tensor:
    """The language model's own logits of these words behind a text."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model: Any = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chosen = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]
    return model(input_ids=ids_of(folder, text)).logits[0, -1, chosen]


@torch.no_grad()
def states(folder: Path, text: str = TEXT) -> torch.Tensor:
    """Hidden states `(num_tokens, hidden)` of the bare model."""
    return transformers.AutoModel.from_pretrained(folder).eval()(input_ids=ids_of(folder, text)).last_hidden_state[0]


@torch.no_grad()
def head_of(out: Path, state: torch.Tensor) -> torch.Tensor:
    """The logits that the written `score` layer gives for a state."""
    tensors = load_file(out / "model.safetensors")
    logits = tensors["score.weight"] @ state
    return logits + tensors["score.bias"] if "score.bias" in tensors else logits


@torch.no_grad()
def own_logits(folder: Path, *texts: str) -> torch.Tensor:
    """The logits of transformers' own classifier."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(**tokenizer(*texts, return_tensors="pt")).logits[0]


def softmax(logits: torch.Tensor) -> Numbers:
    return logits.softmax(-1).tolist()


def _last(source: Path, out: Path) -> Numbers:
    return softmax(head_of(out, states(source)[-1]))


def _mean(source: Path, out: Path) -> Numbers:
    return softmax(head_of(out, states(source).mean(0)))


def _rows_of_words(source: Path, out: Path) -> Numbers:
    return softmax(next_logits(source, [" bad", " good"]))


def _of_classifier(source: Path, out: Path) -> Numbers:
    return softmax(own_logits(source, TEXT))


def _mean_of_words(source: Path, out: Path) -> Numbers:
    bad, boring, good = next_logits(source, [" bad", " boring", " good"])
    return softmax(torch.stack([(bad + boring) / 2, good]))


@torch.no_grad()
def _decoder_alone(source: Path, out: Path) -> Numbers:
    """By the states of the decoder's own class, whose config alone would open as the encoder-decoder."""
    model = transformers.BartForCausalLM.from_pretrained(source).eval()
    found = model(input_ids=ids_of(source, TEXT), output_hidden_states=True)
    return softmax(head_of(out, found.hidden_states[-1][0, -1]))


@torch.no_grad()
def _whole_texts(source: Path, out: Path) -> Numbers:
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    start, logits = ids_of(source, TEXT).shape[1], []
    for label in (" very bad", " quite good"):
        ids = ids_of(source, TEXT + label)
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
        logits.append(sum(logs[place - 1, ids[0, place]] for place in range(start, ids.shape[1])))
    return softmax(torch.stack(logits))  # type: ignore[arg-type]


def _merged(source: Path, out: Path) -> Numbers:
    (logits,) = test_lora.expected(source, source.parent / "adapter", 3, [ids_of(source, TEXT)[0].tolist()])
    return softmax(logits)


@torch.no_grad()
def _tags(source: Path, out: Path) -> Numbers:
    """Probability of each token's likeliest label."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(source).eval()
    return model(input_ids=ids_of(source, TEXT)).logits[0].softmax(-1).max(-1).values.tolist()


@torch.no_grad()
def _token_words(source: Path, out: Path) -> Numbers:
    """Probability of the likelier word behind each token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    words = [int(ids_of(source, word)[0, 0]) for word in (" bad", " good")]
    return model(input_ids=ids_of(source, TEXT)).logits[0][:, words].softmax(-1).max(-1).values.tolist()


def _reward(source: Path, out: Path) -> Numbers:
    return head_of(out, states(source)[-1]).tolist()


@torch.no_grad()
def _own_reward(source: Path, out: Path) -> Numbers:
    """The two layers of Qwen2.5-Math's reward head, by hand."""
    tensors = load_file(source / "model.safetensors")
    state = states(source)[-1]
    inner = torch.relu(tensors["score.0.weight"] @ state + tensors["score.0.bias"])
    return (tensors["score.2.weight"] @ inner + tensors["score.2.bias"]).tolist()


def _yes_or_no(source: Path, out: Path) -> float:
    no, yes = next_logits(source, [" bad", " good"], f"Query: {PAIR[0]} Document: {PAIR[1]} Relevant:")
    return float(torch.sigmoid(yes - no))


def _two_way(source: Path, out: Path) -> Numbers:
    no, yes = next_logits(source, [" bad", " good"])
    return [float(torch.sigmoid(yes - no))]


def _sigmoid(source: Path, out: Path) -> Numbers:
    return [float(torch.sigmoid(own_logits(source, TEXT)[0]))]


def _cross_encoded(source: Path, out: Path) -> float:
    return float(torch.sigmoid(own_logits(source, *PAIR)[0]))


# -- sources --------------------------------------------------------------------------------------------


def _causal(name: str, **values: Any) -> Callable[[Path], Path]:
    return lambda folder: tiny.causal_lm(name, folder / "source", **values)


def _base(name: str) -> Callable[[Path], Path]:
    return lambda folder: tiny.base_model(name, folder / "source")


def _classifier(name: str, **values: Any) -> Callable[[Path], Path]:
    return lambda folder: tiny.classifier(name, folder / "source", **values)


def _with_rows(source: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A source with labelled rows beside it."""

    def make(folder: Path) -> Path:
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        return source(folder)

    return make


def _with_head(folder: Path) -> Path:
    """A bare BERT, and a head in a file of its own."""
    generator = torch.Generator().manual_seed(3)
    save_file({"weight": torch.randn(2, 32, generator=generator)}, folder / "head.safetensors")
    return _base("bert")(folder)


def _with_adapter(folder: Path) -> Path:
    source = _classifier("bert")(folder)
    test_lora.train(source, folder / "adapter", test_lora.TARGETS["bert"], 3, seed=1)
    return source


def _gguf(folder: Path) -> Path:
    """A GGUF file, and beside it the same model as transformers saves it."""
    return tiny.save(*gguf_file.write(folder / "tiny.gguf"), folder / "source")


def _tagger(folder: Path) -> Path:
    return tiny.token_classifier("qwen2", folder / "source", id2label={0: "b", 1: "g"})


def _rm(folder: Path) -> Path:
    return test_reward.checkpoint(folder / "source", "Qwen2ForRewardModel", 1)[0]


_CALIBRATE = ["--calibrate", "{folder}/rows.jsonl"]
_FIT = ["--head", "fit", "--train", "{folder}/rows.jsonl"]
_PAIRS = ["--score-template", "Query: {{ query }} Document: {{ document }} Relevant:"]
_TAGS = ["--convert", "token_classify"]

TRANSFORMERS = {
    "encoder": Format(_classifier("bert"), [], _of_classifier),
    "decoder": Format(_causal("qwen2"), GOOD_BAD, _rows_of_words),
    "fitted": Format(_with_rows(_base("qwen2")), _FIT, _last),
    "class of ours": Format(_causal("mamba"), ["--head", "random", "--num-labels", "2"], _last),
    "lora merged": Format(_with_adapter, ["--lora", "{folder}/adapter"], _merged),
    "gguf": Format(_gguf, GOOD_BAD, _rows_of_words),
    "cross-encoder": Format(_classifier("bert", num_labels=1), [], _sigmoid, pairs=_cross_encoded),
    "two-way": Format(
        _causal("qwen2"), ["--head", "two-way", "--label-tokens", " bad, good", *_PAIRS], _two_way, pairs=_yes_or_no
    ),
    "tagger": Format(_tagger, [], _tags, task="token_classify"),
    "reward": Format(_base("qwen2"), ["--convert", "reward", "--head", "random"], _reward, task="reward"),
    "reward head": Format(_rm, [], _own_reward, task="reward"),
}  # fmt: skip
OWN = {
    "logit bias": Format(_causal("qwen2"), [*GOOD_BAD, "--logit-bias", "0.5"], _rows_of_words, own=True),
    "bias": Format(_with_rows(_base("qwen2")), [*_FIT, "--bias"], _last, own=True),
    "mean": Format(
        _with_head, ["--head", "file", "--head-weights", "{folder}/head.safetensors", "--pooling", "mean"], _mean, own=True
    ),
    "soft cap": Format(_causal("gemma2", final_logit_softcapping=2.0), GOOD_BAD, _rows_of_words, own=True),
    "bias of the output layer": Format(_causal("phi"), GOOD_BAD, _rows_of_words, own=True),
    "several words": Format(
        _causal("gemma2", final_logit_softcapping=2.0),
        ["--head", "tokens", "--label-tokens", "b= bad| boring,g= good"], _mean_of_words, own=True,
    ),
    "decoder of two": Format(_causal("bart"), ["--head", "random", "--num-labels", "2"], _decoder_alone, own=True),
    "calibrated": Format(_with_rows(_causal("qwen2")), [*GOOD_BAD, *_CALIBRATE], _last, own=True),
    "sequence": Format(
        _causal("qwen2"), ["--head", "sequence", "--label-tokens", "b= very bad,g= quite good"], _whole_texts, own=True
    ),
    "named": Format(
        _causal("qwen2"), [*GOOD_BAD, "--head-name", "mood"], _rows_of_words, own=True,
        again=["--head", "random", "--num-labels", "3", "--head-name", "topic"],
    ),
    "tagger": Format(
        _causal("gemma2", final_logit_softcapping=2.0), [*_TAGS, *GOOD_BAD], _token_words, own=True, task="token_classify"
    ),
}  # fmt: skip
