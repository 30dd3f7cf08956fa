"""The tokenizer that a name stands for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import tiktoken

from lightning_app.data.bpe import GPT2_PATTERN, Texts, ensure_trained, read_ranks
from lightning_app.data.reading import END_OF_TEXT
from lightning_app.data.tokenizers.base import Tokenizer
from lightning_app.data.tokenizers.hugging_face import HuggingFaceTokenizer
from lightning_app.data.tokenizers.sources import is_hugging_face, read_config, read_files
from lightning_app.data.tokenizers.tiktoken import TiktokenTokenizer
from lightning_app.errors import InputError

BYTES = "bytes"
COULD_NOT = (OSError, ValueError, AssertionError, KeyError)  # requests' errors are OSErrors
TWINS = {"gpt2": "r50k_base", "r50k_base": "gpt2"}  # one vocabulary, which tiktoken has in different files


def load_tokenizer(
    name: str,
    *,
    vocab_size: int | None = None,
    training_texts: Texts | None = None,
    special_text: bool = False,
) -> Tokenizer:
    """Load a tokenizer by name, or train it first.

    Args:
        name: "bytes" (256 bytes and the end of text); a tiktoken encoding such as "r50k_base" (of
            which "gpt2" is another name: whichever is at hand serves); the path of a
            `.tiktoken` file; or Hugging Face's, see `is_hugging_face`. A `.tiktoken` file that does not exist is
            trained, if `vocab_size` and `training_texts` are given. Where it was trained on other ones, the tokenizer
            is that of a file beside it (see `ensure_trained`).
        vocab_size: number of ids, the end of text included. A tokenizer may have fewer (ids to spare).
        training_texts: called for the texts to train on, each time that they are read.
        special_text: names of special tokens in a text become those tokens.

    Raises:
        InputError: an unknown name, a failed download, a damaged file, or a `vocab_size` below what it has.
    """
    tokenizer: Tokenizer
    if name == BYTES:
        tokenizer = _bytes_tokenizer()
    elif is_hugging_face(name):
        tokenizer = HuggingFaceTokenizer.of_files(name, read_files(name), read_config(name))
    elif name.endswith(".tiktoken"):
        tokenizer = _file_tokenizer(Path(name), vocab_size=vocab_size, training_texts=training_texts)
    else:
        tokenizer = _named_tokenizer(name)
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"data.vocab_size is {vocab_size}, but tokenizer {name!r} has {tokenizer.vocab_size} ids; "
            "set at least that many, or leave it out; where that is a model's number of ids, the two do not belong "
            "together"
        )
    tokenizer.special_text = special_text
    return tokenizer


def _bytes_tokenizer() -> Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)}
    return TiktokenTokenizer(BYTES, ranks=ranks, pattern=r"[\s\S]+", specials={END_OF_TEXT: 256})


def _file_tokenizer(path: Path, *, vocab_size: int | None, training_texts: Texts | None) -> Tokenizer:
    name = str(path)
    if vocab_size is not None and training_texts is not None:
        path = ensure_trained(path, vocab_size=vocab_size, texts=training_texts)
    if not path.exists():
        raise InputError(
            f"no such tokenizer file: {path} (data.vocab_size is {vocab_size}); give an existing .tiktoken file, "
            "or set data.vocab_size (at least 257) and data.train.path to train one and write it there"
        )
    ranks = read_ranks(path)
    return TiktokenTokenizer(name, ranks=ranks, pattern=GPT2_PATTERN, specials={END_OF_TEXT: max(ranks.values()) + 1})


def _named_tokenizer(name: str) -> Tokenizer:
    encoding = _named_encoding(name)
    specials = dict(encoding._special_tokens)
    if END_OF_TEXT not in specials:
        raise InputError(f"the tiktoken encoding {name!r} has no {END_OF_TEXT} token; choose another, or 'bytes'")
    return TiktokenTokenizer(name, ranks=encoding._mergeable_ranks, pattern=encoding._pat_str, specials=specials)


def _named_encoding(name: str) -> tiktoken.Encoding:
    available = sorted(tiktoken.list_encoding_names())
    if name not in available:
        raise InputError(
            f"unknown tokenizer {name!r}, and no such directory; choose 'bytes', the path of a .tiktoken file, a "
            f"directory with a tokenizer.json, or a tiktoken encoding: {', '.join(available)}"
        )
    try:
        return tiktoken.get_encoding(name)
    except COULD_NOT as error:
        if name in TWINS:
            with suppress(*COULD_NOT):
                return tiktoken.get_encoding(TWINS[name])
        raise InputError(
            f"tiktoken could not load {name!r} ({type(error).__name__}): its file is not in the cache folder, or is "
            "damaged there, and could not be downloaded. Set TIKTOKEN_CACHE_DIR to a folder that has it; or work "
            "offline with data.tokenizer: bytes, or a path ending in .tiktoken with data.vocab_size"
        ) from error
