"""A GGUF file once and for all as a Hugging Face directory, which loads in a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightning_app.data.gguf_file import GGUFFile, read_gguf
from lightning_app.data.gguf_tokenizer import gguf_tokenizer
from lightning_app.errors import InputError
from lightning_app.io import remove_leftovers, sync, temporary, writing_into
from lightning_app.models.gguf import gguf_config, load_gguf
from lightning_app.models.modes import one_thread

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import GenerationConfig

# Control tokens that end an answer, in whichever family; llama.cpp knows them by their text too.
ENDS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_text|>",
    "</s>",
)
CONTROL = 3  # in tokenizer.ggml.token_type


def convert_gguf(path: Path, folder: Path) -> GGUFFile:
    """Write the Hugging Face directory of a GGUF file: weights in float32, tokenizer, chat template, stop tokens.

    On one thread: where two share busy cores the conversion takes minutes.

    Raises:
        InputError: see `read_gguf`; a folder that is not empty; a full disk. Nothing is left behind then.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there and not an empty folder: remove it, or give another one")
    file = read_gguf(path)
    parent = folder.absolute().parent
    with writing_into(parent, needed=_bytes_of(file)), one_thread():
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        with temporary(folder.absolute()) as beside:
            model, _ = load_gguf(file, gguf_config(file)[0], torch.float32)
            model.generation_config = stop_tokens(file)
            model.save_pretrained(beside)
            gguf_tokenizer(file).save_pretrained(beside)
            for written in beside.iterdir():
                written.chmod(beside.stat().st_mode & 0o666)  # safetensors writes for its owner alone
                sync(written)
            beside.replace(folder)
            sync(parent)
    return file


def stop_tokens(file: GGUFFile) -> GenerationConfig:
    """A generation config whose `eos_token_id` are all the tokens that end an answer."""
    from transformers import GenerationConfig

    special = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    kinds = file.metadata.get("tokenizer.ggml.token_type", [])
    ends = {special[name] for name in ("eos", "eot", "eom")} - {None}
    ends |= {i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == CONTROL and token in ENDS}
    pad = file.metadata.get("tokenizer.ggml.padding_token_id", special["eos"])
    return GenerationConfig(bos_token_id=special["bos"], eos_token_id=sorted(ends) or None, pad_token_id=pad)


def _bytes_of(file: GGUFFile) -> int:
    return 4 * sum(int(tensor.n_elements) for tensor in file.tensors.values()) + 2**24
