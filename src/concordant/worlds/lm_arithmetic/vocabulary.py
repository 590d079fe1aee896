"""The tokenizer: one token per character, tag and word; decoding gives back the exact text."""

from typing import Any

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WORDS = ("sum", "make", "from", "check", "hint", "solution")
CHARACTERS = tuple("0123456789+-*=;?()|: ")
PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)
VOCABULARY = {piece: index for index, piece in enumerate((*SPECIAL, *TAGS, *WORDS, *CHARACTERS))}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> Any:
    """Build the tokenizer as a transformers fast tokenizer with padding, end and chat template set."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    pattern = "|".join((*TAGS, "[a-z]+", r"[\s\S]"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=192,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
