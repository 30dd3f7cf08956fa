"""The tokenizer of a GGUF file as one of the Hugging Face library, with llama.cpp's ids.

The library splits a text by GPT-2's pattern wherever its table lacks the file's `tokenizer.ggml.pre`. The ids of such a
tokenizer are wrong without a word, so the pre-tokenizer is mended here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_app.data.gguf_file import GGUFFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")  # each digit, then GPT-2's


def gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """What the library makes of the file, mended."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would read the file once more, for 8 s

    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    if (mended := pre_tokenizer(file.metadata.get("tokenizer.ggml.pre"))) is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = mended
    if (longest := file.about("context_length")) is not None:
        tokenizer.model_max_length = longest
    return tokenizer


def pre_tokenizer(kind: str | None) -> Any:
    """How a text is cut before its pieces are merged; None where the library's own is right."""
    from tokenizers import pre_tokenizers

    if kind not in DIGITS:
        return None
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def known_pre_tokenizers() -> dict[str, Any]:
    """By llama.cpp's names, one name for each way to cut."""
    from tokenizers import pre_tokenizers

    return {"gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False), DIGITS[0]: pre_tokenizer(DIGITS[0])}
