"""A model as a GGUF file, which llama.cpp and what builds on it load; read back and compared before it is kept."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from torch import Tensor

from lightning_app.data.gguf_file import ENDING, GGUFFile, is_gguf, is_named_gguf, read_gguf
from lightning_app.data.gguf_tokenizer import BYTE_LEVEL, SENTENCEPIECE
from lightning_app.errors import InputError
from lightning_app.export import llama_cpp
from lightning_app.export.gguf_family import UNEVEN, check_family, head_size, is_uneven, layers_of, rope_of
from lightning_app.export.gguf_vocabulary import Vocabulary
from lightning_app.export.options import DType
from lightning_app.io import remove_leftovers, sync, temporary, writing_into
from lightning_app.models.gguf import gguf_config, load_gguf
from lightning_app.models.gguf_rope import FACTORS, llama3_factors

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel

TYPES: dict[str, gguf.GGMLQuantizationType] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
LARGEST = float(np.finfo(np.float16).max)  # in q8_0 the scale is in f16
ROW = 32  # weights of a row that share a scale in q8_0
WHOLE = ("position_embd.weight",)  # a matrix, but added as it is
PROBE = 20  # positions that are compared
# Of a logit, relative to the largest where that is above 1. llama.cpp's GELU is a table in f16.
TOLERANCES = {"f32": 1e-5, "f16": 1e-2, "q8_0": 0.2}
GELU_TOLERANCE = 2e-3


@dataclass(frozen=True)
class GGUFExported:
    """What was written.

    Attributes:
        architecture: llama.cpp's name of the family.
        difference: the largest of a logit, between the file as transformers reads it and the checkpoint; None where
            layers differ, which transformers cannot read.
        llama_difference: likewise of llama.cpp; None where the package cyllama is not installed.
    """

    file: Path
    architecture: str
    dtype: str
    difference: float | None
    llama_difference: float | None


def write_gguf(
    model: PreTrainedModel, words: Vocabulary, output: Path, *, ids: Tensor, expected: Tensor, dtype: DType = "f16"
) -> GGUFExported:
    """Write a model of the Hugging Face library, read the file back, and compare every tensor and the logits.

    Args:
        ids: (1, T) that are compared, the first 20 of them.
        expected: (1, T, V) the checkpoint's logits of them.
        dtype: of matrices; vectors stay in f32.

    Raises:
        InputError: a model that llama.cpp has no family for, or that has rows which the dtype cannot hold; a file that
            computes other logits; a full disk. Nothing is left behind then.
    """
    architecture = check_family(model)
    tensors = dict(gguf_tensors(model, architecture))
    check_weights(tensors, dtype)
    parent, needed = output.absolute().parent, sum(4 * weight.numel() for weight in tensors.values()) + 2**24
    with writing_into(parent, needed=needed):
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
        with temporary(output.absolute()) as beside:
            _write(beside, model, architecture, words, tensors, dtype)
            file = read_gguf(beside)
            check_tensors(file, tensors, dtype)
            differences = _differences(file, ids[:, :PROBE], expected[0, :PROBE], dtype)
            sync(beside)
            beside.replace(output)
            sync(parent)
    return GGUFExported(output, architecture, dtype, *differences)


# What is refused


def check_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds something else.

    Raises:
        InputError: a name of another kind, a directory, or a file; with `overwrite` one that is no GGUF file.
    """
    if not is_named_gguf(output):
        raise InputError(f"output is {output}: give the name of a file that ends in {ENDING}")
    if output.is_dir():
        raise InputError(f"output is {output}, which is a directory: give a file")
    if output.exists() and not overwrite:
        raise InputError(f"output is {output}, which is there: give another file, or --overwrite")
    if output.exists() and not is_gguf(output):
        raise InputError(f"output is {output}, which is not a GGUF file: it is not overwritten")


def check_weights(tensors: dict[str, Tensor], dtype: str) -> None:
    """Refuse weights that the dtype cannot hold: rows that cannot be cut into blocks, or too large ones."""
    for name, weight in tensors.items():
        if dtype != "f32" and is_quantised(name, weight) and float(weight.abs().max()) > LARGEST:
            raise InputError(
                f"{name} has a weight of {float(weight.abs().max()):.3g}, which f16 cannot hold: give --dtype f32"
            )
        if dtype == "q8_0" and is_quantised(name, weight) and weight.shape[-1] % ROW:
            raise InputError(
                f"q8_0 needs rows of multiples of {ROW}, but those of {name} have {weight.shape[-1]} weights: give "
                "--dtype f16"
            )


def is_quantised(name: str, weight: Tensor) -> bool:
    return weight.dim() == 2 and name not in WHOLE


# What is written


def gguf_tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """The model's weights by the format's names and in its layout: rows are outputs, rotary pairs lie together."""
    from transformers.pytorch_utils import Conv1D

    families = {name: family for family, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(families[architecture], model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem == "lm_head" and model.config.tie_word_embeddings:
            continue
        if kind == "weight" and isinstance(model.get_submodule(stem), Conv1D):
            weight = weight.t()
        if architecture in ("llama", UNEVEN) and stem.endswith(("q_proj", "k_proj")):
            weight = _pairs(weight, weight.shape[0] // head_size(model))
        yield f"{names.get_name(stem)}.{kind}", weight.detach().float()
    if rope_of(model)["rope_type"] == "llama3":
        yield FACTORS, llama3_factors(rope_of(model), head_size(model) // 2)


def _pairs(weight: Tensor, heads: int) -> Tensor:
    """(heads * 2 * half, ...) with the halves of each head's rotary pairs side by side."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class _Writer(gguf.GGUFWriter):
    """Writes empty arrays too: llama.cpp wants merges even of a tokenizer of bytes, which has none."""

    def _pack_val(self, val: Any, vtype: gguf.GGUFValueType, *args: Any, **options: Any) -> bytes:
        if vtype == gguf.GGUFValueType.ARRAY and not val:
            return struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, 0)
        return super()._pack_val(val, vtype, *args, **options)


def _write(
    path: Path, model: PreTrainedModel, architecture: str, words: Vocabulary, tensors: dict[str, Tensor], dtype: str
) -> None:
    writer = _Writer(path, architecture)
    writer.add_file_type(FILE_TYPES[dtype])
    _add_settings(writer, model)
    _add_vocabulary(writer, words)
    for name, weight in tensors.items():
        kind = TYPES[dtype] if is_quantised(name, weight) else TYPES["f32"]
        data = np.ascontiguousarray(weight.numpy())
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_head_count(config.num_attention_heads)
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    heads, groups, neurons = (list(sizes) for sizes in zip(*layers_of(model), strict=True))
    uneven = is_uneven(model)
    writer.add_head_count(heads if uneven else heads[0])
    writer.add_head_count_kv(groups if uneven else groups[0])
    writer.add_feed_forward_length(neurons if uneven else neurons[0])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size(model))
    writer.add_key_length(head_size(model))
    writer.add_value_length(head_size(model))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _add_vocabulary(writer: gguf.GGUFWriter, words: Vocabulary) -> None:
    if words.scores is None:
        writer.add_tokenizer_model(BYTE_LEVEL)
        writer.add_tokenizer_pre(words.pre)
        writer.add_key_value("tokenizer.ggml.merges", words.merges, gguf.GGUFValueType.ARRAY)
    else:
        writer.add_tokenizer_model(SENTENCEPIECE)
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.puts_space)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    writer.add_add_bos_token(words.begins)
    for name, number in words.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)


# The proof


def check_tensors(file: GGUFFile, tensors: dict[str, Tensor], dtype: str) -> None:
    """Every tensor that was read back is what was written, up to its own quantisation."""
    assert set(file.tensors) == set(tensors)
    for name, weight in tensors.items():
        read = file.tensors[name]
        found = torch.from_numpy(np.array(gguf.dequantize(read.data, read.tensor_type)))
        allowed = _rounding(weight, dtype) if is_quantised(name, weight) else torch.zeros(())
        if not bool(((found - weight).abs() <= allowed).all()):
            raise InputError(f"{name} is not what was written when it is read back: nothing was exported")


def _rounding(weight: Tensor, dtype: str) -> Tensor:
    """How far a weight may lie off: half a step of its own block in q8_0, whose scale is in f16; 2^-11 in f16."""
    if dtype == "f32":
        return torch.zeros(())
    if dtype == "f16":
        return weight.abs() * 2**-11 + 2**-25  # below 6e-5 steps are 2^-24
    blocks = weight.unflatten(-1, (-1, ROW))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    return ((0.5 + 127 * 2**-11) * step + 2**-25 * 127).expand_as(blocks).flatten(-2)


@torch.no_grad()
def _differences(file: GGUFFile, ids: Tensor, expected: Tensor, dtype: str) -> tuple[float | None, float | None]:
    """The largest of a logit: of the file through transformers, which has no family with uneven layers, and in
    llama.cpp."""
    difference = None if file.architecture == UNEVEN else _in_transformers(file, ids, expected, dtype)
    if not llama_cpp.is_installed():
        return difference, None
    tolerance = max(TOLERANCES[dtype], GELU_TOLERANCE if file.architecture == "gpt2" else 0.0)
    theirs = torch.tensor(llama_cpp.logits(file.path, ids[0].tolist()))
    return difference, _checked(theirs, expected, tolerance, "llama.cpp")


def _in_transformers(file: GGUFFile, ids: Tensor, expected: Tensor, dtype: str) -> float:
    loaded, _ = load_gguf(file, gguf_config(file)[0], torch.float32)
    found = loaded.eval()(input_ids=ids).logits[0]
    return _checked(found, expected, TOLERANCES[dtype], "transformers")


def _checked(found: Tensor, expected: Tensor, tolerance: float, where: str) -> float:
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= tolerance * max(1.0, largest):
        raise InputError(
            f"the written file computes other logits in {where} than the checkpoint: they differ by {difference:.3g}, "
            f"the largest is {largest:.3g}; nothing was exported"
        )
    return difference
