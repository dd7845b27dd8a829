"""Texts of known lengths in tokens, the same on every machine for the same tokenizer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, nearest

Text = str | tuple[str, str]
"""What a contender classifies: a text, or a pair of texts."""

Encode = Callable[[Sequence[Text]], "list[list[int]]"]
"""Texts → token ids, special tokens included."""

MEDIAN, SIGMA, LONGEST = 40, 0.9, 512  # tokens; lognormal
LONG = 2048
PREFIX, OWN = 256, (20, 60)
QUERY, DOCUMENT = 24, (60, 160)
_COUNTS = {"mixed": 192, "long": 8, "shared-prefix": 128, "rerank": 100}
NAMES = tuple(_COUNTS)
_MOST_WORDS, _FEWEST_WORDS = 2000, 8


@dataclass(frozen=True)
class Workload:
    """Texts with their lengths in tokens, special tokens included."""

    name: str
    description: str
    texts: list[Text]
    lengths: list[int]

    def summary(self) -> dict[str, object]:
        """Plain values for the report."""
        return {
            "name": self.name,
            "description": self.description,
            "texts": len(self.texts),
            "tokens": sum(self.lengths),
            "median_length": statistics.median(self.lengths),
            "longest": max(self.lengths),
        }


def workload(
    name: str,
    words: Sequence[str],
    encode: Encode,
    *,
    longest: int,
    count: int | None = None,
    lengths: tuple[float, float] = (MEDIAN, SIGMA),
    seed: int = 0,
) -> Workload:
    """One of `NAMES`, shrunk to fit a model that takes less.

    Args:
        words: what `single_token_words` found.
        encode: of the model's tokenizer.
        longest: the model's longest sequence, in tokens.
        count: texts; None takes the workload's own number.
        lengths: of "mixed", the median in tokens and sigma of the lognormal distribution; sigma 0 makes all equal.

    Raises:
        ConfigError: there is no such workload.
    """
    if name not in _COUNTS:
        raise ConfigError(f"workload {name!r} is unknown; use one of {', '.join(NAMES)}.{nearest(name, NAMES)}")
    count = count or _COUNTS[name]
    random = np.random.default_rng(seed)
    one, two = encode([words[0], (words[0], words[0])])
    special, pair_special = len(one) - 1, len(two) - 2

    def text(length: int) -> str:
        return " ".join(random.choice(words, size=max(1, length)).tolist())

    texts: list[Text]
    if name == "mixed":
        (median, sigma), most = lengths, min(LONGEST, longest)
        drawn = np.exp(random.normal(np.log(median), sigma, count)).round().astype(int)
        texts = [text(length - special) for length in drawn.clip(special + 1, most).tolist()]
        description = f"lengths lognormal, median {median:g} tokens, sigma {sigma:g}, at most {most}"
        if sigma == 0:
            description = f"{min(round(median), most)} tokens each"
    elif name == "long":
        length = min(LONG, longest)
        texts = [text(length - special) for _ in range(count)]
        description = f"{length} tokens each"
    elif name == "shared-prefix":
        prefix, low, high = _scaled((PREFIX, *OWN), longest - special, PREFIX + OWN[1])
        shared = text(prefix)
        texts = [f"{shared} {text(own)}" for own in random.integers(low, high + 1, count).tolist()]
        description = f"one prefix of {prefix} tokens, then {low} to {high} of each text's own"
    else:
        query, low, high = _scaled((QUERY, *DOCUMENT), longest - pair_special, QUERY + DOCUMENT[1])
        query_text = text(query)
        texts = [(query_text, text(own)) for own in random.integers(low, high + 1, count).tolist()]
        description = f"one query of {query} tokens with each of {count} documents of {low} to {high}"
    return measured(name, description, texts, encode)


def measured(
    name: str, description: str, texts: Sequence[Text], encode: Encode, longest: int | None = None
) -> Workload:
    """A workload of given texts; those over `longest` count as what is left of them."""
    lengths = [len(ids) for ids in encode(texts)]
    return Workload(name, description, list(texts), [min(each, longest or each) for each in lengths])


def as_pairs(texts: Sequence[Text]) -> list[Text]:
    """The same texts, each cut in two at its middle word, for those who take pairs only."""
    pairs: list[Text] = []
    for each in texts:
        if isinstance(each, tuple):
            pairs.append(each)
        else:
            words = each.split()
            middle = max(1, len(words) // 2)
            pairs.append((" ".join(words[:middle]), " ".join(words[middle:]) or words[-1]))
    return pairs


def single_token_words(vocabulary: Sequence[str], encode: Encode) -> list[str]:
    """Words that this tokenizer takes as one token each, wherever they stand.

    Args:
        vocabulary: its tokens, in the order of their ids.
        encode: of the same tokenizer.

    Raises:
        ConfigError: it has too few such words; texts have to be given.
    """
    bare = (token.lstrip("Ġ▁") for token in vocabulary)
    plain = [word for word in dict.fromkeys(bare) if word.isascii() and word.isalpha() and word.islower()]
    candidates = [word for word in plain if 3 <= len(word) <= 8][:_MOST_WORDS]
    special = len(encode([""])[0])
    alone = encode(candidates) if candidates else []
    twice = encode([f"{word} {word}" for word in candidates]) if candidates else []
    words = [
        word
        for word, one, two in zip(candidates, alone, twice, strict=True)
        if len(one) == special + 1 and len(two) == special + 2
    ]
    if len(words) < _FEWEST_WORDS:
        raise ConfigError("this tokenizer has too few words of one token to make texts from; give an INPUT file.")
    return words


def _scaled(lengths: tuple[int, ...], room: int, needed: int) -> list[int]:
    """Lengths as they are where there is room for them, else all smaller by the same factor."""
    factor = min(1.0, room / needed)
    return [max(1, int(length * factor)) for length in lengths]
