from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from types import SimpleNamespace

from vllm_cls.architecture import Architecture
from vllm_cls.runtime.batch import ForwardItem, SequenceForm, TokenSequence
from vllm_cls.runtime.prefixes.continuations import Continuations, chunks

FORM = SequenceForm(Architecture(), SimpleNamespace(is_encoder_decoder=False))
TEXTS = list(itertools.product(range(6), repeat=4))
BEGINNINGS = sorted({text[:count] for text in TEXTS for count in range(4)}, key=lambda ids: (len(ids), ids))


def work(*token_ids: int) -> ForwardItem:
    return ForwardItem(TokenSequence(token_ids, tuple(range(len(token_ids)))))


def answered(works: Sequence[ForwardItem]) -> list[str]:
    return [" ".join(map(str, each.sequence.token_ids)) for each in works]


def test_each_continuation_runs_once_whatever_is_held() -> None:
    texts = Continuations(BEGINNINGS, FORM)
    prompts = [work(*range(100, 110)), work(*range(200, 220))]
    whole = texts.whole(prompts, answered)
    for most_tokens in (1, 100, 10**6):
        ran: list[str] = []

        def execute(works: Sequence[ForwardItem], ran: list[str] = ran) -> list[str]:
            ran += answered(works)
            return answered(works)

        assert texts.shared(prompts, execute, bool, most_tokens) == whole
        assert sorted(ran) == sorted(itertools.chain(*whole))


def test_keys_and_values_held_at_once_are_bounded() -> None:
    held: list[weakref.ref] = []
    most = 0

    def execute(works: Sequence[ForwardItem]) -> list[str]:
        nonlocal most
        held.extend(weakref.ref(each.keep) for each in works if each.keep is not None)
        alive = [keep for each in held if (keep := each()) is not None]
        most = max(most, sum(keep.num_tokens for keep in alive))
        return answered(works)

    texts = Continuations(BEGINNINGS, FORM)
    texts.shared([work(*range(10))], execute, bool, 300)
    assert most <= 300 + 10  # beside the prompt's own
    texts.shared([work(*range(10))], execute, bool, 10**6)
    assert most > 400


def test_what_goes_on_from_a_failure_fails_like_it() -> None:
    texts = Continuations([(), (1,), (2,), (1, 3), (1, 3, 4)], FORM)

    def execute(works: Sequence[ForwardItem]) -> list[str]:
        return ["" if each.sequence.token_ids[-1] == 1 else "ran" for each in works]

    assert texts.shared([work(9)], execute, bool, 10) == [["ran", "", "ran", "", ""]]


def test_chunks() -> None:
    works = [work(*range(length)) for length in (5, 5, 20, 1, 1, 1)]
    assert [[len(each.sequence) for each in part] for part in chunks(works, 10, 2)] == [[5, 5], [20], [1, 1], [1]]
    assert list(chunks([], 10, 2)) == []
