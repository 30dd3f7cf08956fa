"""The tokenizer of a GGUF file as one of the Hugging Face library, with llama.cpp's ids.

A file names how its text is cut before pieces are merged (`tokenizer.ggml.pre`). Where the library does not know the
name it cuts by GPT-2's pattern, and the ids are wrong without a word. So the names are looked up here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_app.data.gguf_file import GGUFFile
from lightning_app.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model of a byte-level BPE; others have no `pre`
SENTENCEPIECE = "llama"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DIGIT = r"\p{N}"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_REST}"
QWEN2 = rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|{_REST}"
SEED = rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_REST}"
BAILING = rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+"
_RUNS = "|".join(rf"\s{{{2**power}}}(?!\S)" for power in range(9, 1, -1))
JAIS2 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|{_RUNS}|\s{{1,2}}(?!\S)|\s{{1}}"
BLOOM = r" ?[^(\s|.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c" + ")]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
DEEPSEEK3 = rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}"
# Patterns that cut one after the other, each what the one before has left; and the names that llama.cpp has for them.
STEPS: dict[tuple[str, ...], str] = {
    (
        GPT2,
    ): "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert roberta-bpe "
    "jina-v1-en jina-v2-code jina-es jina-de jina-v2-es jina-v2-de",
    (DIGIT, GPT2): "smollm starcoder refact command-r codeshell exaone minerva-7b",
    (LLAMA3,): "llama-bpe llama3 llama-v3 glm4 chatglm-bpe",
    (QWEN2,): "qwen2 stablelm2 hunyuan solar-open",
    (SEED,): "seed-coder",
    (BAILING,): "bailingmoe bailingmoe2 llada-moe",
    (JAIS2,): "jais-2",
    (BLOOM,): "bloom poro-chat gpt3-finnish",
    (BLOOM, DIGIT): "viking",
    (r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}"): "default",
    (r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9]{3}"): "falcon",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", DIGIT): "deepseek-coder",
    (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm",
    (r"\p{N}+", r"(?=(\d{3})+(?!\d))"): "superbpe",
}
NAMES = {name: steps for steps, names in STEPS.items() for name in names.split()}
# The library's own, compared with llama.cpp. Of the last five llama.cpp approximates the pattern that the library has.
OF_THE_LIBRARY = {
    *("falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "dbrx", "smaug-bpe"),
    *("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35"),
    *("tekken", "gpt-4o", "llama4", "kanana2", "minimax-m2"),
}


def gguf_tokenizer(file: GGUFFile) -> PreTrainedTokenizerBase:
    """What the library makes of the file, mended.

    Raises:
        InputError: nobody here knows how the file's text is cut.
    """
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would read the file once more, for 8 s

    kind = file.metadata.get("tokenizer.ggml.pre", "default")
    of_bytes = file.metadata.get("tokenizer.ggml.model") == BYTE_LEVEL
    if of_bytes and kind not in NAMES and kind not in OF_THE_LIBRARY:
        raise InputError(
            f"{file.path} cuts its text as {kind!r}, which is not known here: its ids would be wrong; take the "
            "tokenizer.json of the model's Hugging Face directory"
        )
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(file.path.parent), gguf_file=file.path.name)
    if of_bytes and kind in NAMES:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer(NAMES[kind])
    if file.metadata.get("tokenizer.ggml.model") == SENTENCEPIECE:
        _mend_spaces(tokenizer.backend_tokenizer, prefix=file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    if (longest := file.about("context_length")) is not None:
        tokenizer.model_max_length = longest
    return tokenizer


def _mend_spaces(backend: Any, *, prefix: bool) -> None:
    """A space before a text, and one more where it begins with one; or none at all. The library looks at neither."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    if not isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        return  # Gemma's and Phi-3's are right
    space = "\u2581"
    steps = [normalizers.Replace(" ", space)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(space), *steps] if prefix else steps)
    backend.pre_tokenizer = None
    if not prefix:
        backend.decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()])


def pre_tokenizer(steps: tuple[str, ...]) -> Any:
    """Cuts a text by patterns, one after the other, and spells the pieces in bytes; as families themselves write it."""
    from tokenizers import Regex, pre_tokenizers

    plain = steps[-1:] == (GPT2,)  # the library has GPT-2's pattern with the spelling
    cuts = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == DIGIT
        else pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in (steps[:-1] if plain else steps)
    ]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)])
