"""Scaled rotary positions in a GGUF file. The library that reads such files does not look at them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_app.data.gguf_file import GGUFFile, package
from lightning_app.errors import InputError

FACTORS = "rope_freqs.weight"  # what each frequency is divided by, one for each rotary pair
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of LLaMA 3.1 on
READ_BY_THE_LIBRARY = ("gpt-oss",)


def scaled_rope(file: GGUFFile, theta: float) -> dict[str, Any] | None:
    """`rope_parameters` of the file's config; None where nothing is scaled.

    Raises:
        InputError: a scaling that is none of LLaMA 3.1's, nor linear.
    """
    kind = file.about("rope.scaling.type")
    if file.architecture in READ_BY_THE_LIBRARY:
        return None
    if FACTORS in file.tensors:
        return _llama3(file, theta)
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": file.about("rope.scaling.factor")}
    if kind in (None, "none"):
        return None
    raise InputError(
        f"{file.path} scales its rotary positions as {kind!r}, which is not read here; give the model's Hugging Face "
        "directory"
    )


def _llama3(file: GGUFFile, theta: float) -> dict[str, Any]:
    tensor = file.tensors[FACTORS]
    found = torch.from_numpy(package().dequantize(tensor.data, tensor.tensor_type).copy())
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(found.max()), **LLAMA3}
    if not torch.allclose(llama3_factors(rope, len(found)), found, rtol=1e-4):
        raise InputError(
            f"{file.path} scales its rotary positions otherwise than LLaMA 3.1, which is not read here; give the "
            "model's Hugging Face directory"
        )
    return rope


def llama3_factors(rope: Mapping[str, Any], pairs: int) -> Tensor:
    """(pairs,) what the frequencies are divided by: 1 for short waves, `factor` for long ones, smoothly between."""
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(pairs) / pairs)
    turns = rope["original_max_position_embeddings"] / waves
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - kept) / rope["factor"] + kept)
