"""The tokenizer: one token for each number, operator and word, separated by spaces."""

from typing import Any

from concordant.worlds.lm_arithmetic.vocabulary import (
    ASSISTANT,
    CHAT_TEMPLATE,
    END,
    PAD,
    SPECIAL,
    UNKNOWN,
    USER,
)
from concordant.worlds.lm_programs.language import OPERATORS
from concordant.worlds.lm_programs.problems import LARGEST

WORDS = (";", "python", "else", ">", "(", ")", ",")
NUMBERS = tuple(str(number) for number in range(-LARGEST, LARGEST + 1))
VOCABULARY = {piece: index for index, piece in enumerate((*SPECIAL, "x", *OPERATORS, *WORDS, *NUMBERS))}
WINDOW = 64


def build_tokenizer() -> Any:
    """Build the tokenizer as a transformers fast tokenizer with padding, end and chat template set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=WINDOW,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


__all__ = ["ASSISTANT", "END", "NUMBERS", "PAD", "USER", "VOCABULARY", "WINDOW", "build_tokenizer"]
