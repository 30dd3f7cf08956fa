"""A small tokenizer of each kind of Hugging Face's, trained on this project's own pages. Nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lightning_app.data.tokenizers import HuggingFaceTokenizer

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs/how-to").glob("*.md")), ROOT / "docs/memory.md"]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
CHAT = ["<|im_start|>", "<|im_end|>"]


@cache
def lines() -> list[str]:
    return [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines(keepends=True)]


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def _byte_level(
    before: Any = None, *, end: str = "<|endoftext|>", size: int = 900, whole: bool = True, use_regex: bool = True
) -> Tokenizer:
    made = Tokenizer(models.BPE())
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = symbols if before is None else pre_tokenizers.Sequence([before, symbols])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if whole else []
    special = [end, *CHAT]
    return _trained(
        made,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )


def _gpt2() -> Tokenizer:
    return _byte_level()


def _smollm2() -> Tokenizer:
    """Digits one by one, and no token for bytes that the text does not have."""
    return _byte_level(pre_tokenizers.Digits(individual_digits=True), whole=False)


def _llama3() -> Tokenizer:
    made = _byte_level(pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), end="<|end_of_text|>", use_regex=False)
    made.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    return made


def _opt() -> Tokenizer:
    """GPT-2's, and a begin token before a text."""
    made = _byte_level(end="</s>")
    made.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 0)])
    return made


def _bloom() -> Tokenizer:
    return _byte_level(pre_tokenizers.Split(Regex(BLOOM), "isolated"), end="</s>", use_regex=False)


def _qwen() -> Tokenizer:
    """Digits one by one; chats end with another token than texts."""
    one_digit = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
    made = _byte_level(pre_tokenizers.Split(Regex(one_digit), "isolated"), use_regex=False)
    made.normalizer = normalizers.NFC()
    return made


def _phi() -> Tokenizer:
    """GPT-2's, and runs of spaces."""
    made = _byte_level()
    made.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in range(8, 1, -1)])
    return made


def _pythia() -> Tokenizer:
    made = _byte_level()
    made.normalizer = normalizers.NFC()
    made.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in range(8, 1, -1)])
    return made


def _sentencepiece(*, prepends: bool, added: tuple[str, ...] = ()) -> Tokenizer:
    """BPE over characters, with a token for each byte of those that it lacks."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prepends else "never")
    _trained(trained, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocab = {token: i for i, token in enumerate([*first, *words, *added])}
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])
    prefix = [normalizers.Prepend("▁")] if prepends else []
    made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prepends else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def _mistral() -> Tokenizer:
    made = _sentencepiece(prepends=True)
    made.normalizer = None  # type: ignore[assignment]
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(lines()[:60], trainer)  # the slowest of all to train
    return made


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    return _trained(made, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False))


# By name: how it is made, and its special tokens.
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, str]]] = {
    "gpt2": (_gpt2, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
    "smollm2": (_smollm2, {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"}),
    "llama3": (_llama3, {"eos_token": "<|end_of_text|>", "bos_token": "<|im_start|>"}),
    "pythia": (_pythia, {"eos_token": "<|endoftext|>"}),
    "llama": (partial(_sentencepiece, prepends=True), {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}),
    "mistral": (_mistral, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}),
    "gemma": (
        partial(_sentencepiece, prepends=False, added=("\n\n", "▁▁", "▁▁▁")),
        {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"},
    ),
    "opt": (_opt, {"eos_token": "</s>", "bos_token": "</s>"}),
    "bloom": (_bloom, {"eos_token": "</s>"}),
    "qwen": (_qwen, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "phi": (_phi, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
    "unigram": (_unigram, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
    "wordpiece": (_wordpiece, {"eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}),
}
BEGINS = {"opt", "llama3", "llama", "mistral", "gemma"}  # put a begin token before a document
LOSSY = {"unigram", "wordpiece"}  # lose much of any text

# In a few words, for those that stand for families.
ABOUT = {
    "gpt2": "byte-level BPE",
    "opt": "byte-level BPE, begin token",
    "bloom": "byte-level BPE, own pattern",
    "pythia": "byte-level BPE, NFC",
    "phi": "byte-level BPE, runs of spaces",
    "qwen": "byte-level BPE, single digits",
    "llama": "SentencePiece BPE, byte fallback",
    "mistral": "SentencePiece BPE, first space",
    "gemma": "SentencePiece BPE, no first space",
}


@cache
def files_of(kind: str) -> dict[str, str]:
    """The texts of its files."""
    make, special = KINDS[kind]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    return {"tokenizer.json": make().to_str(), "tokenizer_config.json": json.dumps(config)}


@cache
def made(kind: str) -> HuggingFaceTokenizer:
    """Behind our contract."""
    found = HuggingFaceTokenizer.of_files(kind, files_of(kind))
    assert isinstance(found, HuggingFaceTokenizer)
    return found


def save(kind: str, folder: Path) -> Path:
    """Its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files_of(kind).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
