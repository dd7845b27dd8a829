"""config.json, tokenizer_config.json and the other files of a model with one odd value each.

Whatever it is, a text gets transformers' own logits, or an error of ours that says what is wrong: no other exception, no
hang, no memory without bound.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import vllm_cls
from benchmarks.coverage.small_configs import small_config
from vllm_cls import LLM, ConfigError, ModelError, VclsError
from vllm_cls.compat.transformers_calls import model_errors
from vllm_cls.model.loading import weights

from ..model.test_lora import peft, train
from ..models import tiny
from ..models.odd_values import Case, changed

TEXT = "The film was good"
SECONDS, BYTES = 60, 3 << 30
SAMPLE = 30
"""Cases of each file in the fast test; the slow one runs all."""

Answer = Callable[[Path], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """A model, and what is said of it by others.

    Args:
        make: writes it into a folder.
        expected: `(folder) → logits`, by the library whose files they are.
        ours: the same by this package.
        files: that are changed → fields that they lack and could have.
    """

    make: Callable[[Path], Any]
    expected: Answer
    ours: Answer
    files: Mapping[str, tuple[str, ...]]


CONFIG = tuple(
    """
    auto_map rope_scaling rope_parameters quantization_config num_labels id2label label2id problem_type torch_dtype vcls
    sentence_transformers sbert_ce_default_activation_function is_encoder_decoder is_decoder tie_word_embeddings
    attn_implementation head_dtype use_sep_token classifier_from_token is_original_qwen3_reranker is_causal return_dict
    output_hidden_states output_attentions chunk_size_feed_forward sep_token_id cls_token_id bos_token_id eos_token_id
    pad_token_id decoder_start_token_id layer_types sliding_window per_layer_config backbone_config
    """.split()
)
TOKENIZER = tuple(
    """
    padding_side truncation_side chat_template auto_map unk_token added_tokens_decoder additional_special_tokens
    extra_special_tokens clean_up_tokenization_spaces split_special_tokens add_bos_token add_eos_token do_lower_case
    add_prefix_space special_tokens_map_file
    """.split()
)
BOTH = {"config.json": CONFIG, "tokenizer_config.json": TOKENIZER}


def transformers_logits(folder: Path, text: str = TEXT) -> torch.Tensor:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**tokenizer(text, return_tensors="pt"), return_dict=True).logits[0]
    return logits


def ours(folder: Path) -> torch.Tensor:
    with LLM(str(folder), dtype="float32", num_threads=1) as llm:
        return torch.tensor(llm.classify(TEXT)[0].outputs.logits)


def classifier(name: str, **files: tuple[str, ...]) -> Subject:
    return Subject(lambda folder: tiny.classifier(name, folder), transformers_logits, ours, {**BOTH, **files})


def gemma3(folder: Path) -> None:
    """A model for images, whose text model has a config of its own."""
    text = {"vocab_size": 420, "eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 3}
    config = small_config("gemma3", text_config=text, image_token_id=400, boi_token_id=401, eoi_token_id=402)
    config.num_labels, config.pad_token_id, config.eos_token_id = 3, 1, 0
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    tiny.save(tiny.randomize(model), tiny._tokenizer("qwen2"), folder)


def own_format(folder: Path) -> None:
    """Two heads with names, one of label texts; the prompt has a template."""
    lm = tiny.causal_lm("qwen2", folder.with_name("lm"))
    first = folder.with_name("first")
    texts, prompt = "g= good| very good,b= bad", "Q: {text}"
    vllm_cls.convert(str(lm), first, head="sequence", label_tokens=texts, head_name="a", prompt_template=prompt)
    vllm_cls.convert(str(first), folder, head="random", num_labels=2, head_name="b", seed=1)


def embedder(folder: Path) -> None:
    transformer = modules.Transformer(str(tiny.base_model("bert", folder.with_name("base"))))
    parts = [transformer, modules.Pooling(32), modules.Dense(32, 16)]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder))


def sharded(folder: Path) -> None:
    tiny.classifier("bert", folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")


def adapted(folder: Path) -> None:
    """A model with an adapter in a folder within."""
    tiny.classifier("qwen2", folder)
    train(folder, folder / "adapter", ["q_proj", "v_proj"], 3, seed=1, rank_pattern={"q_proj": 2})


def by_peft(folder: Path) -> torch.Tensor:
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
    return logits


def merged(folder: Path) -> torch.Tensor:
    with LLM(str(folder), dtype="float32", num_threads=1, lora=str(folder / "adapter")) as llm:
        return torch.tensor(llm.classify(TEXT)[0].outputs.logits)


def embedding(folder: Path) -> torch.Tensor:
    with LLM(str(folder), dtype="float32", num_threads=1) as llm:
        return torch.tensor(llm.embed(TEXT)[0].outputs.embedding)


BESIDE = {
    "special_tokens_map.json": ("pad_token", "cls_token", "additional_special_tokens"),
    "generation_config.json": ("eos_token_id", "max_length", "do_sample", "temperature"),
    "preprocessor_config.json": ("image_processor_type", "processor_class", "size"),
}
SUBJECTS = {
    "bert": classifier("bert", **BESIDE),
    "roberta": classifier("roberta"),
    "qwen2": classifier("qwen2", **{"generation_config.json": BESIDE["generation_config.json"]}),
    "gpt2": classifier("gpt2"),
    "bart": classifier("bart"),
    "gemma3": Subject(gemma3, transformers_logits, ours, BOTH),
    "own": Subject(own_format, lambda folder: transformers_logits(folder, f"Q: {TEXT}"), ours, {"config.json": ()}),
    "sharded": Subject(sharded, transformers_logits, ours, {"model.safetensors.index.json": ()}),
    "embedder": Subject(
        embedder,
        lambda folder: torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXT)),
        embedding,
        {
            "modules.json": (), "config_sentence_transformers.json": ("model_type", "prompts", "default_prompt_name"),
            "sentence_bert_config.json": ("max_seq_length", "do_lower_case", "model_args", "processing_kwargs"),
            "1_Pooling/config.json": ("pooling_mode", "pooling_mode_cls_token", "include_prompt"),
            "2_Dense/config.json": ("bias", "use_residual"),
        },
    ),
    "adapter": Subject(adapted, by_peft, merged, {"adapter/adapter_config.json": ()}),
}  # fmt: skip
FILES = [(name, file) for name, subject in SUBJECTS.items() for file in subject.files]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a subject, written once."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name) / "model"
            SUBJECTS[name].make(folders[name])
        return folders[name]

    return folder


CONVERSIONS: dict[str, tuple[Callable[[Path], Any], list[dict[str, Any]]]] = {
    "language model": (
        lambda folder: tiny.causal_lm("qwen2", folder),
        [
            {"head": "tokens", "label_tokens": "g= good,b= bad"},
            {"head": "sequence", "label_tokens": "g= very good,b= bad"},
            {"head": "random", "num_labels": 2},
        ],
    ),
    "classifier": (lambda folder: tiny.classifier("bert", folder), [{}, {"head": "random", "num_labels": 2}]),
}


class Hang(BaseException):
    """Nothing catches it on its way."""


@contextmanager
def bounded() -> Iterator[None]:
    """At most so many seconds, and so much more memory."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (int(used.split()[1]) * 1024 + BYTES, before[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def cases(source: Path, file: str, more: tuple[str, ...]) -> list[Case]:
    path = source / file
    content = json.loads(path.read_text()) if path.is_file() else {}
    if isinstance(content, list):  # of modules
        found = [(f"[{at}].{told}", [*content[:at], new, *content[at + 1 :]])
                 for at, each in enumerate(content) for told, new in changed(each)]  # fmt: skip
        return [*found, ("no list", {}), ("nothing", []), ("numbers", [1, 2]), ("text", "x")]
    return [*changed(content, more), ("a list", [content]), ("text", "x"), ("nothing", {}), ("deep", _deep())]


def _deep() -> Any:
    return {"a": json.loads("[" * 400 + "]" * 400)}


def linked(source: Path, folder: Path, file: str, content: Any) -> Path:
    """A model's folder with another content of one of its files."""
    for each in source.rglob("*"):
        place = folder / each.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if each.is_file():
            os.link(each, place)
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder


def wrong(subject: Subject, source: Path, folder: Path, file: str, case: Case) -> str | None:
    """What is wrong with the outcome of one change, or None."""
    told, content = case
    linked(source, folder, file, content)
    try:
        with bounded():
            found = subject.ours(folder)
    except VclsError as error:
        return None if str(error).strip() and "\n" not in str(error) else f"{told}: an error of several lines: {error}"
    except (Exception, Hang) as error:
        return f"{told}: {type(error).__name__}: {error}"
    try:
        with bounded():
            expected = subject.expected(folder)
    except (Exception, Hang):  # it has no answer
        return None
    if found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4, rtol=1e-4):
        return None
    return f"{told}: {found.tolist()}, not {expected.tolist()}"


def all_wrong(made: Callable[[str], Path], name: str, file: str, place: Path, count: int | None) -> list[str]:
    subject, source = SUBJECTS[name], made(name)
    found = cases(source, file, subject.files[file])
    if count is not None and count < len(found):
        found = random.Random(f"{name}/{file}").sample(found, count)
    outcomes = [wrong(subject, source, place / str(index), file, case) for index, case in enumerate(found)]
    return [each for each in outcomes if each is not None]


@pytest.mark.parametrize(("name", "file"), FILES, ids=["-".join(each) for each in FILES])
def test_some_odd_values(name: str, file: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    assert all_wrong(made, name, file, tmp_path, SAMPLE if file in BOTH else SAMPLE // 3) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "file"), FILES, ids=["-".join(each) for each in FILES])
def test_every_odd_value(name: str, file: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    assert all_wrong(made, name, file, tmp_path, None) == []


@pytest.mark.parametrize("name", CONVERSIONS)
def test_odd_values_are_converted_or_refused(name: str, tmp_path: Path) -> None:
    make, heads = CONVERSIONS[name]
    source = tmp_path / "source"
    make(source)
    found = []
    for file, more in BOTH.items():
        chosen = random.Random(file).sample(cases(source, file, more), 12)
        chosen += [
            case for case in cases(source, file, more) if case[0] in ("num_key_value_heads: zero", "unk_token: no text")
        ]
        for index, (told, content) in enumerate(chosen):
            folder = linked(source, tmp_path / f"{file}{index}", file, content)
            for options in heads:
                try:
                    with bounded():
                        vllm_cls.convert(str(folder), tmp_path / "out", dry_run=True, **options)
                except VclsError:
                    continue
                except (Exception, Hang) as error:
                    found.append(f"{told}, {options}: {type(error).__name__}: {error}")
    assert found == []


def test_the_files_as_they_are_give_the_answers_of_others(made: Callable[[str], Path]) -> None:
    for name, subject in SUBJECTS.items():
        torch.testing.assert_close(
            subject.ours(made(name)), subject.expected(made(name)), atol=1e-4, rtol=1e-4, msg=name
        )


# -- one by one ---------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a length below 1": ("bert", "tokenizer_config.json", {"model_max_length": -1}, r"model_max_length is -1.*--max-model-len"),
    "no length": ("bert", "tokenizer_config.json", {"model_max_length": 0}, "model_max_length is 0"),
    "a length in a string": ("bert", "tokenizer_config.json", {"model_max_length": "512"}, "model_max_length is '512'"),
    "a length of true": ("bert", "tokenizer_config.json", {"model_max_length": True}, "model_max_length is True"),
    "padding outside": ("bert", "config.json", {"pad_token_id": 600}, "pad_token_id is 600, outside the vocabulary"),
    "no padding": ("roberta", "config.json", {"pad_token_id": None}, "pad_token_id is null"),
    "a start outside": ("bart", "config.json", {"decoder_start_token_id": -7}, "decoder_start_token_id is -7, outside"),
    "an end outside": ("bart", "config.json", {"eos_token_id": 10**9}, "eos_token_id is 1000000000, outside"),
    "positions in a string": ("qwen2", "config.json", {"max_position_embeddings": "48"}, "max_position_embeddings"),
    "no positions": ("gpt2", "config.json", {"n_positions": 0}, "n_positions is 0"),
    "width and heads": ("bert", "config.json", {"hidden_size": 33}, "hidden_size 33 is no multiple of num_attention_heads 4"),
    "another width": ("bert", "config.json", {"intermediate_size": 64}, r"intermediate_size is 64"),
    "another vocabulary": ("bert", "config.json", {"vocab_size": 100}, "vocab_size is 100"),
    "more labels": ("bert", "config.json", {"num_labels": 5}, "3 rows, but there are 5 labels"),
    "a label's index": ("bert", "config.json", {"id2label": {"x": "a", "1": "b", "2": "c"}}, "id2label"),
    "a label that is none": ("bert", "config.json", {"id2label": {"0": ["a"], "1": "b", "2": "c"}}, "id2label"),
    "a class": ("bert", "config.json", {"architectures": "BertForSequenceClassification"}, "architectures is .* a list"),
    "a model type": ("bert", "config.json", {"model_type": ["bert"]}, r"model_type is \['bert'\].* a string"),
    "an auto_map": ("bert", "config.json", {"auto_map": ["a"]}, r"auto_map is \['a'\].* an object"),
    "a dtype": ("bert", "config.json", {"dtype": "float13"}, "dtype is 'float13'"),
    "a problem type": ("bert", "config.json", {"problem_type": "guessing"}, "problem_type='guessing' is unknown"),
    "a problem type of a number": ("bert", "config.json", {"problem_type": 5}, "problem_type is 5"),
    "an activation": ("bert", "config.json", {"hidden_act": "gelux"}, "hidden_act is 'gelux'"),
    "a rope type": ("qwen2", "config.json", {"rope_parameters": {"rope_type": "odd"}}, "rope_parameters.rope_type is 'odd'"),
    "a pooling": ("bert", "config.json", {"vcls": {"pooler_config": {"seq_pooling_type": "ODD"}}}, "seq_pooling_type='ODD'"),
    "columns": ("bert", "config.json", {"vcls": {"pooler_config": {"returned_token_ids": 5}}}, "returned_token_ids=5"),
}  # fmt: skip
LARGE: dict[str, tuple[str, dict[str, Any], str]] = {
    "labels": ("bert", {"num_labels": 10**12}, "num_labels is 1000000000000.* from 1 to 1000000"),
    "layers": ("qwen2", {"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
    "many layers": ("bert", {"num_hidden_layers": 900}, "more than 5000 tensors.*num_hidden_layers is 900"),
    "words": ("bert", {"vocab_size": 10**12}, "vocab_size is 1000000000000"),
    "positions": ("gpt2", {"n_positions": 10**12}, "n_positions is 1000000000000"),
    "width": ("qwen2", {"intermediate_size": 10**12}, "intermediate_size is 1000000000000"),
}
ANSWERED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no limit": ("bert", "tokenizer_config.json", {"model_max_length": 1e30}),
    "no length given": ("bert", "tokenizer_config.json", {"model_max_length": None}),
    "a whole float": ("bert", "tokenizer_config.json", {"model_max_length": 48.0}),
    "padding that nothing reads": ("gpt2", "config.json", {"pad_token_id": 600}),
    "padding from the end": ("roberta", "config.json", {"pad_token_id": -1}),
    "no padding": ("bert", "config.json", {"pad_token_id": None}),
    "positions that nothing reads": ("qwen2", "config.json", {"max_position_embeddings": -5}),
    "ids that nothing reads": (
        "bert",
        "config.json",
        {"bos_token_id": -5, "eos_token_id": 10**12, "sep_token_id": 999},
    ),
    "labels that are numbers": ("bert", "config.json", {"id2label": {"0": 0, "1": 1, "2": 2}}),
    "tuples": ("bert", "config.json", {"return_dict": False}),
}


def edited(source: Path, folder: Path, file: str, **values: Any) -> Path:
    return linked(source, folder, file, {**json.loads((source / file).read_text()), **values})


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_model_runs_with_is_named(case: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    name, file, values, message = REFUSED[case]
    folder = edited(made(name), tmp_path / "model", file, **values)
    with pytest.raises(VclsError, match=message):
        ours(folder)


@pytest.mark.parametrize("case", LARGE)
def test_what_is_too_large_is_refused_before_it_is_made(case: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    name, values, message = LARGE[case]
    folder = edited(made(name), tmp_path / "model", "config.json", **values)
    with bounded(), pytest.raises(ModelError, match=message):
        ours(folder)
    if case == "many layers":  # of which a conversion, that takes no memory, makes all before it compares them
        return
    with bounded(), pytest.raises(VclsError):
        vllm_cls.convert(str(folder), tmp_path / "out", head="random", num_labels=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ANSWERED)
def test_what_transformers_runs_with_has_its_answer(case: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    name, file, values = ANSWERED[case]
    folder = edited(made(name), tmp_path / "model", file, **values)
    torch.testing.assert_close(ours(folder), transformers_logits(folder), atol=1e-4, rtol=1e-4)


def test_a_length_asked_for_takes_the_place_of_one_that_is_none(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = edited(made("bert"), tmp_path / "model", "tokenizer_config.json", model_max_length=-1)
    with LLM(str(folder), max_model_len=20) as llm:
        assert llm.max_model_len == 20
        assert torch.tensor(llm.classify(TEXT)[0].outputs.logits).shape == (3,)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "5", "null", '"x"', "[]", "\ud800"])
def test_a_config_that_is_no_object(content: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = edited(made("bert"), tmp_path / "model", "config.json")
    (folder / "config.json").write_text(content, errors="surrogatepass")
    with pytest.raises(ModelError, match=r"config.json"):
        ours(folder)


def test_options_that_replace_fields_are_held_to_the_same(made: Callable[[str], Path]) -> None:
    for values, message in (
        ({"num_labels": 10**12}, "num_labels=1000000000000 is more than 1000000"),
        ({"architectures": "BertModel"}, "hf_overrides: architectures is 'BertModel'"),
        ({"vcls": {"prompt_template": 5}}, "hf_overrides: vcls.prompt_template is 5"),
        ({"sentence_transformers": {"activation_fn": 5}}, "hf_overrides: sentence_transformers.activation_fn is 5"),
        ({"hidden_size": "x"}, "hf_overrides: .*hidden_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM(str(made("bert")), hf_overrides=values)
    with pytest.raises(ModelError, match="pad_token_id is 600"):
        LLM(str(made("bert")), hf_overrides={"pad_token_id": 600})
    for pooler, message in (
        ({"returned_token_ids": 5}, "returned_token_ids=5"),
        ({"step_tag_id": "x"}, "step_tag_id='x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            LLM(str(made("bert")), pooler_config=pooler)


def test_a_fault_of_ours_while_weights_load_is_no_fault_of_the_model(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "refuse_nonfinite", _fails)
    with pytest.raises(ZeroDivisionError):
        ours(made("bert"))


def test_a_fault_of_ours_within_a_call_of_transformers(made: Callable[[str], Path]) -> None:
    """Told by where it was raised: transformers builds classes of ours, too."""
    for raised_in, error in (
        ("vllm_cls.adapters.classifiers.own_type", ZeroDivisionError),
        ("transformers.models", ModelError),
    ):
        calls: dict[str, Any] = {"__name__": raised_in}
        exec("def build(): 1 / 0", calls)
        with pytest.raises(error), model_errors("the model cannot be built"):
            calls["build"]()


def _fails(*args: Any, **options: Any) -> None:
    raise ZeroDivisionError


def test_the_vocabulary_of_a_model_whose_config_names_none(tmp_path: Path) -> None:
    """CANINE's tokens are code points."""
    config = small_config("canine")
    config.num_labels = 2
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with LLM(str(tmp_path)) as llm:
        assert llm.vocab_size == 0x110000
