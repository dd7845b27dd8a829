"""Models for images, sound and more: those that read texts too become classifiers, all others are refused."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

import vllm_cls
from benchmarks.coverage.case import randomize
from benchmarks.coverage.small_configs import VOCABULARY, small_config
from vllm_cls import LLM, ModelError, load_classifier
from vllm_cls.adapters.classifiers.families import base_class
from vllm_cls.cli.main import vcls
from vllm_cls.plugins.generic import Generic
from vllm_cls.registry import registry

PROMPTS = [[20, 21, 22, 23], [20, 21, 22, 99], [20, 21, 22], [20, 40, 41, 42, 43, 44, 45, 46, 47]]
"""The first three begin alike: all have the same state at their first token where a model is causal."""
WITH_IMAGES = """
    llava idefics3 smolvlm gemma3 mistral3 internvl qwen3_vl got_ocr2 florence2
""".split()
WITH_SOUND = ["qwen2_audio", "voxtral"]
NOT_FROM_AUTO = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "musicflamingo": "MusicFlamingoForConditionalGeneration",
    "vibevoice": "VibeVoiceForConditionalGeneration",
}


def mapped(mapping: Any, config_class: Any) -> Any:
    try:
        found = mapping.get(config_class, None)
        first = found[0] if isinstance(found, (tuple, list)) else found
        getattr(first, "forward", None)  # what stands in for a class whose library is missing refuses here
        return first
    except (ImportError, ValueError, AttributeError):  # a library that it needs is not installed
        return None


def default_configs() -> Iterator[tuple[str, PreTrainedConfig]]:
    """A config of every model type that transformers' base and language models have."""
    names = {
        *auto.MODEL_MAPPING_NAMES,
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    }
    for name in sorted(names):
        try:
            yield name, CONFIG_MAPPING[name]()
        except Exception:  # each config class refuses in its own way
            continue


# -- which state is pooled ---------------------------------------------------------------------------

# What is said to write texts, and does not read them so.
EXCEPTIONS = {
    "an encoder that writes texts only where its config says is_decoder": """
        bert big_bird bert-generation camembert data2vec-text electra ernie megatron-bert rembert roberta
        roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod reformer vision-text-dual-encoder
    """.split(),
    "says is_decoder: false too, and opens as a part of another model": ["trocr"],
}


def writes_texts(config: PreTrainedConfig) -> bool:
    """Whether transformers writes texts with a model of this config, or with the part of it that reads texts."""
    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    )  # fmt: skip
    kinds = {type(config), type(config.get_text_config(decoder=True))}
    return any(each in mapping for mapping in mappings for each in kinds)


def test_a_state_that_has_read_the_text_is_pooled() -> None:
    """Of everything that writes texts, the last one; an encoder-decoder's decoder is such."""
    writers = {name: config for name, config in default_configs() if writes_texts(config)}
    assert len(writers) > 250
    first = [name for name, config in writers.items() if Generic().pooling(config) != "LAST"]
    assert first == sorted(name for names in EXCEPTIONS.values() for name in names)


def test_encoders_of_texts_beside_images_pool_the_first_token() -> None:
    names = "flava visual_bert modernvbert ultravbert embedding_gemma2 vilt bridgetower layoutlm align altclip siglip".split()
    found = {name: Generic().pooling(CONFIG_MAPPING[name]()) for name in names}
    assert found == dict.fromkeys(names, "CLS")


def test_a_causal_model_inside_another_config() -> None:
    """GPT-NeoX says `is_decoder: false`, as an encoder does; the wrapper's own language model tells that it is none."""
    inside = {"model_type": "gpt_neox"}
    assert Generic().pooling(CONFIG_MAPPING["llava"](text_config=inside)) == "LAST"
    assert Generic().pooling(CONFIG_MAPPING["blip-2"](text_config={"model_type": "t5"})) == "LAST"
    assert Generic().pooling(CONFIG_MAPPING["vision-text-dual-encoder"]()) == "CLS"


# -- the whole way -----------------------------------------------------------------------------------


def saved(name: str, folder: Path) -> PreTrainedModel:
    """A language model that reads images or sound too, as transformers saves it."""
    torch.manual_seed(0)
    config = small_config(name)
    found: Any = mapped(auto.MODEL_FOR_MULTIMODAL_LM_MAPPING, type(config))
    model_class = found or getattr(transformers, NOT_FROM_AUTO[name])
    model: PreTrainedModel = randomize(model_class(config))
    model.save_pretrained(folder)
    return model


def read_by_the_lm_head(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The last token's state `(hidden,)`, as transformers' language model hands it to its output layer."""
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    decoder = {}
    if model.config.is_encoder_decoder:
        start = model.config.get_text_config(decoder=True).decoder_start_token_id
        decoder["decoder_input_ids"] = torch.tensor([[start, *ids[:-1]]])
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False, **decoder)
    hook.remove()
    return seen[-1][0, -1]


@pytest.mark.parametrize("name", WITH_IMAGES + WITH_SOUND)
def test_a_language_model_for_images_or_sound_classifies_texts(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path / "lm")
    report = vllm_cls.convert(str(tmp_path / "lm"), tmp_path / "out", head="random", num_labels=3, seed=0)
    assert report.pooling == "LAST"
    with LLM(str(tmp_path / "out"), dtype="float32") as llm:
        found = torch.tensor([output.outputs.logits for output in llm.classify(PROMPTS)])
        head = llm.model.get_parameter("score.weight").clone()
    expected = torch.stack([read_by_the_lm_head(model, ids) for ids in PROMPTS]) @ head.T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-2  # texts that begin alike
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        again = torch.cat([whole(input_ids=torch.tensor([ids])).logits for ids in PROMPTS])
    torch.testing.assert_close(found, again, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["modernvbert", "ultrabert", "ultravbert"])
@pytest.mark.parametrize(("said", "pooling"), [("cls", "CLS"), ("mean", "MEAN")])
def test_an_encoder_pools_as_its_own_classifier_does(name: str, said: str, pooling: str, tmp_path: Path) -> None:
    config = small_config(name, classifier_pooling=said)
    config.num_labels = 3
    torch.manual_seed(0)
    model = randomize(transformers.AutoModelForSequenceClassification.from_config(config))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in PROMPTS])
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert (llm.describe()["pooling"], llm.describe()["execution"]) == (pooling, "packed")
        found = torch.tensor([output.outputs.logits for output in llm.classify(PROMPTS)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def sees_what_follows(model: PreTrainedModel, decoder: bool) -> bool:
    """Whether the state of a text's first token depends on its last."""
    generator = random.Random(0)
    one = [generator.randrange(20, VOCABULARY) for _ in range(9)]
    other = [*one[:-1], one[-1] - 1]
    states = []
    for ids in (one, other):
        given = {"input_ids": torch.tensor([ids])}
        if decoder:  # which is causal in what it reads, and knows the whole text by its encoder
            given["decoder_input_ids"] = torch.tensor([one])
        with torch.no_grad():
            states.append(model(**given)[0])
    if states[0].shape[:2] != (1, 9):
        raise ValueError("its output is no state of each token")
    return not torch.allclose(states[0][0, 0], states[1][0, 0], atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")  # as an error, one would be taken for a model that does not run
def test_every_model_that_runs_on_texts_alone_pools_a_state_that_has_read_them() -> None:
    """Built small, and asked: the first token's state is pooled only where it depends on the last token."""
    checked, wrong = 0, []
    for name, config in default_configs():
        if name in ("mra",):  # its attention is of blocks, which so short a text does not fill
            continue
        try:
            architecture = registry().find(name)
            architecture.classifier_class(type(config))
            model = randomize(base_class(type(config))(small_config(name)))
            both_ways = sees_what_follows(model, model.config.is_encoder_decoder)
        except Exception:  # refused, or not to be built small, or not to be run on texts alone
            continue
        checked += 1
        if architecture.pooling(model.config) == "CLS" and not both_ways:
            wrong.append(name)
    assert wrong == []
    assert checked > 200


# -- what reads no texts -----------------------------------------------------------------------------

OTHERS = {
    "vit": ("ViTForImageClassification", r"ViTModel reads images \(pixel_values\) and no text"),
    "yolos": ("YolosForObjectDetection", r"YolosModel reads images \(pixel_values\) and no text"),
    "videomae": ("VideoMAEForVideoClassification", r"VideoMAEModel reads videos \(pixel_values\) and no text"),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", r"Wav2Vec2Model reads sound \(input_values\) and no text"),
    "hubert": ("HubertForSequenceClassification", r"HubertModel reads sound \(input_values\) and no text"),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        r"ASTModel reads sound \(input_values\) and no text",
    ),
    "whisper": ("WhisperForConditionalGeneration", r"WhisperModel reads sound \(input_features\) and no text"),
    "patchtst": ("PatchTSTForClassification", r"PatchTSTModel reads time series \(past_values\) and no text"),
    "imagegpt": ("ImageGPTForCausalImageModeling", r"ImageGPTModel reads images \(input_ids\) and no text"),
    "clip": ("CLIPModel", r"CLIPModel compares texts with images, and reads none alone"),
    "blip-2": ("Blip2ForConditionalGeneration", r"Blip2Model reads images \(pixel_values\) and no text alone"),
    "bark": ("BarkModel", r"BarkModel has no forward of its own"),
}
"""Model type → the class that saves it, and what is said of it."""
COMMANDS: dict[str, Callable[[str, Path], Any]] = {
    "LLM": lambda model, folder: LLM(model, convert="none"),
    "LLM as a classifier": lambda model, folder: LLM(model),
    "load_classifier": lambda model, folder: load_classifier(model),
    "convert": lambda model, folder: vllm_cls.convert(model, folder / "out", head="random", num_labels=2),
    "convert for tokens": lambda model, folder: vllm_cls.convert(
        model, folder / "out", head="random", num_labels=2, convert="token_classify"
    ),
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folder of a model that reads no texts alone, and what is to be said of it."""
    class_name, message = OTHERS[request.param]
    folder = tmp_path_factory.mktemp("other")
    config = small_config(request.param)
    if request.param == "bark":  # large in every part: its config is enough to be refused
        config.architectures = [class_name]
        config.save_pretrained(folder)
        (folder / "model.safetensors").touch()
    else:
        getattr(transformers, class_name)(config).save_pretrained(folder)
    return str(folder), message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_reads_no_texts_is_refused(other: tuple[str, str], command: str, tmp_path: Path) -> None:
    model, message = other
    with pytest.raises(ModelError, match=message):
        COMMANDS[command](model, tmp_path)
    assert not (tmp_path / "out").exists()


def test_and_so_are_the_commands(other: tuple[str, str], tmp_path: Path) -> None:
    model, message = other
    (tmp_path / "in.jsonl").write_text('{"text": "good"}')
    for arguments in (["inspect", model], ["classify", model, str(tmp_path / "in.jsonl")], ["serve", model]):
        result = CliRunner().invoke(vcls, arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        told = result.stderr.splitlines()
        assert told[-1].startswith("error: ") and all(line.startswith("loading ") for line in told[:-1])
        assert re.search(message, result.stderr)


NAMED_FOR_ITS_FAMILY = ["sam3_lite_text_text_model"]  # its main input is not its own, but that of models round it


@pytest.mark.slow
def test_no_model_for_something_else_becomes_a_classifier() -> None:
    """By its class's main input: pixels, waves, time series."""
    native = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    refused, taken = 0, []
    for name, config in default_configs():
        model_class = mapped(auto.MODEL_MAPPING, type(config))
        if model_class is None or mapped(native, type(config)) is not None:
            continue
        if model_class.main_input_name == "input_ids" or name in NAMED_FOR_ITS_FAMILY:
            continue
        try:
            registry().find(name).classifier_class(type(config))
            taken.append(name)
        except ModelError:
            refused += 1
    assert taken == []
    assert refused > 150
