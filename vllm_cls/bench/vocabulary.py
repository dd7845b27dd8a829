"""Tokenizers made from code: every short word is one token, as in the real ones, and no file is needed."""

from __future__ import annotations

import itertools
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def wordpiece(size: int, longest: int) -> PreTrainedTokenizerFast:
    """BERT's kind: `[CLS] a [SEP] b [SEP]`, lower case, pieces of words after `##`.

    Args:
        size: of the vocabulary.
        longest: sequence, in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    pieces = [*special, *letters, *string.digits, *string.punctuation, *(f"##{letter}" for letter in letters)]
    pieces += [a + b for a in letters for b in letters]
    pieces += [f"##{a}{b}" for a in letters for b in letters]
    words = ("".join(word) for n in (3, 4) for word in itertools.product(letters, repeat=n))
    vocabulary = list(itertools.islice(itertools.chain(pieces, words), size))
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_level(size: int, longest: int) -> PreTrainedTokenizerFast:
    """GPT-2's and Qwen's kind: bytes, joined by merges into words with the space before them.

    Args:
        size: of the vocabulary.
        longest: sequence, in tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = size - len(alphabet) - 1
    letters = string.ascii_lowercase
    while 2 * sum(len(letters) ** n for n in (1, 2, 3)) > room:  # every word of three of them, with a space and without
        letters = letters[:-1]
    words = ["".join(word) for n in (1, 2, 3) for word in itertools.product(letters, repeat=n)]
    merges = [("Ġ" + word[:-1], word[-1]) for word in words]  # first, so that no piece of a word is joined before
    merges += [(word[:-1], word[-1]) for word in words if len(word) > 1]
    longer = itertools.product(letters, repeat=4)
    merges += [("Ġ" + "".join(word[:-1]), word[-1]) for word in itertools.islice(longer, max(0, room - len(merges)))]
    ids = {token: number for number, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        model_input_names=["input_ids", "attention_mask"],
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
