"""Decides how prompts with images or videos run, when the first ones come: as `equivalence` does for texts.

Until then nothing is known of the tensors that the model's processor makes, so these prompts themselves are tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from ..batch import ForwardItem, TokenSequence
from ..row import KeyValues
from ..runner import Runner
from ..schedule import begun
from .equivalence import FAILURES, check_sequences, relative_error, tolerance

_SAMPLES = 3


def choose_media_form(runner: Runner, sequences: Sequence[TokenSequence]) -> None:
    """Set `media_form` and `shares_media` of a runner to the fastest whose states equal those of the model's own forward.

    "packed": in a row with any other prompts; "padded": in a batch of their own; "single": one at a time. Of all these
    the towers run before, each image once. "pixels": one at a time, the towers within the model's forward.

    Args:
        sequences: those with media are tried, the shortest of them.
    """
    samples = sorted((each for each in sequences if each.media), key=len)[:_SAMPLES]
    runner.media_form = "pixels"
    if not runner.towers.takes_outputs:
        return
    given = any(span.input.features is not None for each in samples if each.media for span in each.media.spans)
    runner.media_form = "single" if given else "pixels"
    if runner.mode.whole:
        return
    works = [ForwardItem(each) for each in [*samples, samples[0]]]
    works.insert(1, ForwardItem(_text(runner)))
    try:
        expected = [_states(runner, [each])[0] for each in works]
    except FAILURES:  # which each prompt is told of when it runs; the next ones decide
        runner.media_form = ""
        return
    for form, by_row in _forms(runner):
        runner.media_form, runner.masks_by_row = form, by_row
        together = form in ("packed", "padded")
        tried = works if form == "packed" else [each for each in works if each.sequence.media]
        wanted = [states for each, states in zip(works, expected, strict=True) if each in tried]
        with contextlib.suppress(*FAILURES):
            found = _states(runner, tried) if together else [_states(runner, [each])[0] for each in tried]
            if all(relative_error(*pair) <= tolerance(runner) for pair in zip(found, wanted, strict=True)):
                break
    else:
        runner.media_form, runner.masks_by_row = "pixels", False
    # What a mask looks up of the row is not there of tokens that ran before.
    may_share = runner.packs_media and runner.shares and not runner.masks_by_row
    runner.shares_media = may_share and _shares(runner, works, expected)


def _forms(runner: Runner) -> list[tuple[str, bool]]:
    """Forms, the fastest first, with whether mask functions get indices of the row."""
    single, padded = ("single", False), ("padded", False)
    forms = {"packed": [("packed", False), ("packed", True), padded, single], "padded": [padded, single]}
    return forms.get(runner.mode.form, [single])


def _text(runner: Runner) -> TokenSequence:
    architecture, config = runner.architecture, runner.backbone.config
    types = architecture.takes_token_type_ids(config)
    return check_sequences(architecture, config, [max(9, architecture.min_tokens(config))], types)[0]


@torch.inference_mode()
def _states(runner: Runner, works: Sequence[ForwardItem]) -> list[torch.Tensor]:
    hidden, layout, _ = runner.hidden(works)
    starts = layout.starts.tolist()
    return [hidden[start : start + len(each)].float() for start, each in zip(starts, works, strict=True)]


def _shares(runner: Runner, works: Sequence[ForwardItem], expected: Sequence[torch.Tensor]) -> bool:
    """Whether prompts can go on from the keys and values of what is before their media, and of these."""
    tried = False
    for work, states in zip(works, expected, strict=True):
        media = work.sequence.media
        if media is None:
            continue
        for cut in (media.spans[0].start, media.spans[0].stop):
            if not 0 < cut < len(work.sequence):
                continue
            kept = KeyValues(cut)
            try:
                runner.keep([ForwardItem(begun(work.sequence, cut), keep=kept)])
                found = _states(runner, [ForwardItem(work.sequence, kept)])[0]
            except FAILURES:
                return False
            if not relative_error(found, states[cut:]) <= tolerance(runner):
                return False
            tried = True
    return tried
