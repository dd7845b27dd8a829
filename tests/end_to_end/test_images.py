"""Qwen2.5-VL as a classifier of texts with images and videos, held to transformers' own model and a head behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vllm_cls
from vllm_cls import LLM, PromptError

from ..media import samples
from ..models import tiny, vision

IMAGE, VIDEO = vision.IMAGE, vision.VIDEO
PICTURES = [vision.picture(24, 16, 0), vision.picture(40, 64, 1), vision.picture(100, 20, 2)]
FILM = vision.film(6, 24, 16)


def at(frames: Any, fps: float) -> tuple[Any, dict[str, Any]]:
    """A video, all of whose frames are given."""
    count = len(frames)
    return frames, {
        "fps": fps, "total_num_frames": count, "duration": count / fps, "frames_indices": list(range(count)),
    }  # fmt: skip


PROMPTS: dict[str, Any] = {
    "text": "The film was good and the music was great.",
    "one image": {"prompt": f"What is {IMAGE} this? good", "multi_modal_data": {"image": PICTURES[0]}},
    "three images": {
        "prompt": f"{IMAGE} and {IMAGE}{IMAGE} are the best practices",
        "multi_modal_data": {"image": PICTURES},
    },
    "video": {"prompt": f"The film {VIDEO} was boring", "multi_modal_data": {"video": at(FILM, 2.0)}},
    "interleaved": {
        "prompt": f"{VIDEO} no {IMAGE} yes {VIDEO}{IMAGE} true",
        "multi_modal_data": {"image": PICTURES[:2], "video": [at(FILM, 2.0), at(vision.film(4, 16, 32, 5), 1.0)]},
    },
    "ends with an image": {"prompt": f"Review: {IMAGE}", "multi_modal_data": {"image": PICTURES[1]}},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.qwen2_5_vl(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    vllm_cls.convert(str(source), out, head="random", num_labels=3, seed=0)
    return out


@pytest.fixture
def llm(converted: Path) -> Iterator[LLM]:
    with LLM(str(converted), dtype="float32") as llm:
        yield llm


def video_patches(frames: Any, images: Qwen2VLImageProcessorPil) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and grid of a video whose frames have a size that the model reads, by the library's patches of images."""
    pairs = [frames[index : index + 2] for index in range(0, len(frames), 2)]
    made = []
    for pair in pairs:
        (first, grid), (second, _) = (
            images.preprocess([Image.fromarray(each)], return_tensors="pt").values() for each in pair
        )
        size = (len(first), 3, 2, vision.PATCH, vision.PATCH)
        both = torch.stack([first.reshape(size)[:, :, 0], second.reshape(size)[:, :, 1]], dim=2)
        made.append(both.flatten(1))
    return torch.cat(made), torch.tensor([len(pairs), *grid[0, 1:].tolist()])


def inputs_of(prompt: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What transformers' model is given for a prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if isinstance(prompt, str):
        return {"input_ids": tokenizer(prompt, return_tensors="pt").input_ids}
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    text, data = prompt["prompt"], prompt["multi_modal_data"]
    given: dict[str, Any] = {}
    counts: dict[str, Iterator[int]] = {}
    pictures = data.get("image", [])
    pictures = pictures if isinstance(pictures, list) else [pictures]
    if pictures:
        given |= images.preprocess(pictures, return_tensors="pt")
        counts["<|image_pad|>"] = iter((given["image_grid_thw"].prod(-1) // 4).tolist())
    films = data.get("video", [])
    films = films if isinstance(films, list) else [films]
    if films:
        read = [video_patches(frames, images) for frames, _ in films]
        given["pixel_values_videos"] = torch.cat([patches for patches, _ in read])
        given["video_grid_thw"] = torch.stack([grid for _, grid in read])
        given["second_per_grid_ts"] = [
            2 / (len(frames) / said["total_num_frames"] * said["fps"]) for frames, said in films
        ]
        counts["<|video_pad|>"] = iter((given["video_grid_thw"].prod(-1) // 4).tolist())
    types = {
        tokenizer.convert_tokens_to_ids(token): number for token, number in (("<|image_pad|>", 1), ("<|video_pad|>", 2))
    }
    names = {number: tokenizer.convert_ids_to_tokens(number) for number in types}
    ids = list(
        itertools.chain.from_iterable(
            [each] * next(counts[names[each]]) if each in types else [each] for each in tokenizer(text).input_ids
        )
    )
    return {
        **given,
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([[types.get(each, 0) for each in ids]]),
    }


def expected(prompt: Any, source: Path, converted: Path) -> torch.Tensor:
    """Logits of transformers' own model, alone, with the converted head behind it."""
    model = transformers.Qwen2_5_VLModel.from_pretrained(source, dtype=torch.float32).eval()
    head = vllm_cls.load_classifier(str(converted)).get_parameter("score.weight")
    with torch.no_grad():
        return model(**inputs_of(prompt, source))[0][0, -1] @ head.T


def logits(llm: LLM, prompts: Any) -> torch.Tensor:
    return torch.tensor([output.outputs.logits for output in llm.classify(prompts)])


@pytest.fixture(scope="module")
def wanted(source: Path, converted: Path) -> dict[str, torch.Tensor]:
    return {name: expected(prompt, source, converted) for name, prompt in PROMPTS.items()}


def test_all_packed_together_equal_transformers_own_model(llm: LLM, wanted: dict[str, torch.Tensor]) -> None:
    found = logits(llm, list(PROMPTS.values()))
    torch.testing.assert_close(found, torch.stack(list(wanted.values())), atol=1e-4, rtol=0)
    assert llm._open.engine.runner.media_form == "packed"
    assert len({tuple(row.tolist()) for row in found}) == len(PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_each_alone_does(llm: LLM, wanted: dict[str, torch.Tensor], name: str) -> None:
    torch.testing.assert_close(logits(llm, [PROMPTS[name]])[0], wanted[name], atol=1e-4, rtol=0)


def test_the_class_itself_takes_what_the_processor_gives(
    source: Path, converted: Path, wanted: dict[str, torch.Tensor]
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(converted, dtype=torch.float32).eval()
    assert type(model).__name__ == "Qwen2_5_VLForSequenceClassification"
    for name, prompt in PROMPTS.items():
        with torch.no_grad():
            found = model(**inputs_of(prompt, source)).logits[0]
        torch.testing.assert_close(found, wanted[name], atol=1e-4, rtol=0)


def test_positions_of_a_video_go_by_its_seconds(llm: LLM) -> None:
    slow, fast = ({**PROMPTS["video"], "multi_modal_data": {"video": at(FILM, fps)}} for fps in (0.5, 8.0))
    first, second = logits(llm, [slow, fast])
    assert (first - second).abs().max() > 1e-3


# -- the same image again ----------------------------------------------------------------------------

QUESTIONS = [
    "Is the film good?",
    "Is it bad? yes or no",
    "What is the plot?",
    "boring 1 2 3",
    "secure coding in Python",
]


def about(picture: Any, question: str) -> dict[str, Any]:
    return {"prompt": f"Review: {IMAGE} {question}", "multi_modal_data": {"image": picture}}


def test_an_image_is_read_once_and_its_tokens_run_once(converted: Path) -> None:
    picture = vision.picture(120, 80, 7)
    prompts = [about(picture.copy(), each) for each in QUESTIONS]
    with LLM(str(converted), dtype="float32", enable_prefix_caching=False) as llm:
        alone = torch.cat([logits(llm, [each]) for each in prompts])
    with LLM(str(converted), dtype="float32") as llm:
        llm.classify([about(PICTURES[0], "first")])
        before = llm.counters
        together = logits(llm, prompts)
        spent = llm.counters - before
        again = logits(llm, [about(picture, "and one more question")])
        later = llm.counters - before
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert spent.num_encoded == 1
    assert spent.num_shared_tokens > 5 * 50
    assert spent.num_tokens < spent.num_prompt_tokens / 3
    assert later.num_encoded == 1  # the prefix cache has its keys and values: no tower runs
    with LLM(str(converted), dtype="float32", enable_prefix_caching=False) as llm:
        torch.testing.assert_close(again, logits(llm, [about(picture, "and one more question")]), atol=1e-5, rtol=0)


def test_prompts_with_the_same_tokens_and_other_images_are_others(llm: LLM) -> None:
    one, other = vision.picture(48, 48, 1), vision.picture(48, 48, 2)
    prompts = [about(picture, question) for picture in (one, other) for question in QUESTIONS]
    first = logits(llm, prompts)
    assert len({tuple(row.tolist()) for row in first}) == len(prompts)
    assert (first[: len(QUESTIONS)] - first[len(QUESTIONS) :]).abs().max(dim=1).values.min() > 1e-3
    before = llm.counters
    twice = logits(llm, [*prompts, *prompts])
    torch.testing.assert_close(twice, torch.cat([first, first]), atol=1e-5, rtol=0)
    assert (llm.counters - before).num_duplicates == len(prompts)
    for prompt, row in zip(prompts, first, strict=True):  # in the other order, with what is kept by now
        torch.testing.assert_close(logits(llm, [prompt])[0], row, atol=1e-5, rtol=0)


def test_the_same_image_processed_otherwise_is_another(llm: LLM) -> None:
    picture = vision.picture(96, 96, 3)
    sizes = [{"shortest_edge": 64, "longest_edge": edge} for edge in (64 * 4, 64 * 9)]
    outputs = llm.classify([{**about(picture, "x"), "mm_processor_kwargs": {"size": size}} for size in sizes])
    lengths = [len(output.prompt_token_ids) for output in outputs]
    assert lengths[1] - lengths[0] == 9 - 4


# -- prompts -----------------------------------------------------------------------------------------


def test_embeddings_equal_pixels(llm: LLM, source: Path, wanted: dict[str, torch.Tensor]) -> None:
    model = transformers.Qwen2_5_VLModel.from_pretrained(source, dtype=torch.float32).eval()
    prompts = []
    for name in ("one image", "three images"):
        given = inputs_of(PROMPTS[name], source)
        with torch.no_grad():
            features = model.get_image_features(given["pixel_values"], given["image_grid_thw"]).pooler_output
        embeds = {"image_embeds": torch.cat(features), "image_grid_thw": given["image_grid_thw"]}
        prompts.append({"prompt": PROMPTS[name]["prompt"], "multi_modal_data": {"image_embeds": embeds}})
    found = logits(llm, [*prompts, PROMPTS["text"]])
    torch.testing.assert_close(
        found, torch.stack([wanted["one image"], wanted["three images"], wanted["text"]]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(logits(llm, PROMPTS["one image"])[0], wanted["one image"], atol=1e-4, rtol=0)


def test_chat_messages_and_token_ids_with_images(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    PICTURES[0].save(file)
    text = f"<|im_start|>user\n{IMAGE} good or {IMAGE} bad?{VIDEO}<|im_end|>\n"
    tokenizer: Any = llm.get_tokenizer()
    data = {"image": PICTURES[:2], "video": [at(FILM, 2.0)]}
    parts = [
        {"type": "image_url", "image_url": {"url": str(file)}}, {"type": "text", "text": " good or "},
        {"type": "image", "image": PICTURES[1]}, {"type": "text", "text": " bad?"}, {"type": "video", "video": at(FILM, 2.0)},
    ]  # fmt: skip
    found = logits(
        llm,
        [
            {"prompt": text, "multi_modal_data": data},
            [{"role": "user", "content": parts}],
            {"messages": [{"role": "user", "content": parts}]},
            {"prompt_token_ids": tokenizer(text).input_ids, "multi_modal_data": data},
        ],
    )
    assert llm.counters.num_duplicates == 3
    torch.testing.assert_close(found, found[:1].expand(4, -1))


ONE = {"prompt": IMAGE, "multi_modal_data": {"image": PICTURES[0]}}
SEEN = {"prompt": VIDEO, "multi_modal_data": {"video": samples.video(samples.greys(8))}}


def embedded(rows: torch.Tensor, grid: list[int] | None = None) -> dict[str, Any]:
    value: Any = rows if grid is None else {"image_embeds": rows, "image_grid_thw": torch.tensor([grid])}
    return {"prompt": IMAGE, "multi_modal_data": {"image_embeds": value}}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            {"prompt": "no place", "multi_modal_data": {"image": PICTURES[0]}},
            "has 0 places for images .* and 1 of them",
        ),
        (
            {"prompt": f"{IMAGE}{IMAGE}", "multi_modal_data": {"image": PICTURES[0]}},
            "has 2 places for images .* and 1 of",
        ),
        ({"prompt": VIDEO, "multi_modal_data": {"image": PICTURES[0]}}, "has 0 places for images"),
        ({"prompt": f"a {IMAGE}", "multi_modal_data": {"image": []}}, "has 1 places for images .* and 0 of them"),
        ({"prompt": f"a {IMAGE}", "multi_modal_data": {"image": None}}, "multi_modal_data holds nothing"),
        ({"prompt_token_ids": [5], "multi_modal_data": {"image": PICTURES[0]}}, "fewer places for images or videos"),
        ({"prompt": "a", "multi_modal_data": 3}, "multi_modal_data cannot be int 3"),
        ({"prompt": "a", "mm_processor_kwargs": {"size": 1}}, "mm_processor_kwargs are for images and videos"),
        (
            {"prompt": ("a", IMAGE), "multi_modal_data": {"image": PICTURES[0]}},
            "a pair of texts takes no images|one label",
        ),
        (
            {"prompt": IMAGE, "multi_modal_data": {"image": vision.picture(1, 300)}},
            "aspect ratio must be smaller than 200",
        ),
        (
            {**ONE, "mm_processor_kwargs": {"max_pixles": 64}},
            "processor has no 'max_pixles'. Did you mean 'max_pixels'",
        ),
        ({**ONE, "mm_processor_kwargs": {"max_pixels": "x"}}, "processor refuses this image: .*expected int, got str"),
        ({**ONE, "mm_processor_kwargs": {"patch_size": 0}}, "patch_size=0, and the model was built with 4"),
        ({**SEEN, "mm_processor_kwargs": {"num_frames": "x"}}, "num_frames takes a number above 0; got 'x'"),
        ({**SEEN, "mm_processor_kwargs": {"fps": -1}}, "fps takes a number above 0; got -1"),
        ({**SEEN, "mm_processor_kwargs": {"fps": float("nan")}}, "fps takes a number above 0; got nan"),
        (embedded(torch.zeros(4, 32)), "image_embeds: this model needs image_grid_thw with them"),
        (embedded(torch.zeros(4, 7), [1, 4, 4]), "image_embeds has rows of 7 numbers, and this model reads rows of 32"),
        (embedded(torch.zeros(1, 32), [1, 1, 4]), "rows and columns of patches are multiples of 2"),
    ],
)
def test_what_does_not_fit_is_refused(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        llm.classify(prompt)


def test_an_image_that_truncation_would_cut_is_refused(llm: LLM) -> None:
    cut = {"truncate_prompt_tokens": 6}
    with pytest.raises(PromptError, match="images do not fit in it"):
        llm.classify(PROMPTS["three images"], tokenization_kwargs=cut)
    long = {**PROMPTS["one image"], "prompt": PROMPTS["one image"]["prompt"] + " good" * 50}
    (output,) = llm.classify(long, tokenization_kwargs={"truncate_prompt_tokens": 30})
    assert len(output.prompt_token_ids) == 30


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_cut_beside_its_image_wherever_that_is(llm: LLM, side: str) -> None:
    """The search for how much of a message fits tries texts that have lost the image's place."""
    words, tokenizer = " good" * 100, llm.get_tokenizer()
    text = {"right": f"{words}{words}{words}{IMAGE}{words}", "left": f"{words}{IMAGE}{words}{words}{words}"}[side]
    prompt = {
        "messages": [{"role": "user", "content": text}],
        "multi_modal_data": {"image": PICTURES[0]},
    }
    (whole,) = llm.classify(prompt)
    limit = len(whole.prompt_token_ids) - 40
    (cut,) = llm.classify(prompt, tokenization_kwargs={"truncate_prompt_tokens": limit, "truncation_side": side})
    assert limit - 5 <= len(cut.prompt_token_ids) <= limit
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert list(cut.prompt_token_ids).count(pad) == list(whole.prompt_token_ids).count(pad)
    with pytest.raises(PromptError, match="template and the images do not fit in 60 tokens"):
        llm.classify(prompt, tokenization_kwargs={"truncate_prompt_tokens": 60, "truncation_side": side})


def test_a_model_of_texts_says_that_it_reads_no_images(llm: LLM, tmp_path: Path) -> None:
    assert llm.describe()["reads_images"]
    model = str(tiny.classifier("qwen2", tmp_path))
    with LLM(model, dtype="float32") as texts:
        assert not texts.describe()["reads_images"]
        with pytest.raises(PromptError, match="this model reads texts alone"):
            texts.classify(PROMPTS["one image"])


def test_few_images_are_held_at_once(llm: LLM) -> None:
    """However long a stream of prompts is: their pixels take more memory than texts."""
    drawn = 0

    def prompts() -> Iterator[Any]:
        nonlocal drawn
        for index in range(80):
            drawn += 1
            yield PROMPTS["text"] if index % 2 else {"messages": [{"role": "user", "content": [PART]}]}

    seen = [drawn for _ in llm.classify_iter(prompts())]
    assert len(seen) == 80
    assert seen[0] <= 4
    assert max(drawn - index for index, drawn in enumerate(seen)) <= 32


PART = {"type": "image", "image": PICTURES[0]}


def test_a_prompt_that_fails_first_does_not_decide_how_others_run(
    converted: Path, wanted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of prompts with images is found by those that run."""
    broken = {**about(PICTURES[0], ""), "mm_processor_kwargs": {"patch_size": 8}}  # which the tower was not made for
    with LLM(str(converted), dtype="float32") as llm:
        with monkeypatch.context() as unchecked, pytest.raises(PromptError, match="refuses this prompt"):
            unchecked.setattr("vllm_cls.media.processor.check_options", lambda *_: None)  # which refuses it earlier
            llm.classify(broken)
        torch.testing.assert_close(logits(llm, [PROMPTS["one image"]])[0], wanted["one image"], atol=1e-4, rtol=0)
        assert llm._open.engine.runner.media_form == "packed"
