"""What an export may be like. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from lightning_app.errors import InputError

Format = Literal["hf", "gguf"]
DType = Literal["f32", "f16", "q8_0"]


@Parameter(name="*")
@dataclass(frozen=True)
class ExportOptions:
    """What is written.

    Args:
        output: the directory to write; with --format gguf the file.
        format: a Hugging Face directory, or a file for llama.cpp.
        dtype: of the matrices in a GGUF file; f16 unless given.
        chat_template: a file in Jinja; without it that of the model's training, or of its tokenizer.
        dense: removed heads and neurons come back as zeros: loads without code.
        onnx: write model.onnx as well.
        overwrite: replace an earlier export in OUTPUT.
        push_to_hub: upload the directory as this model, such as user/model.
        private: a model on the hub that only you can see.

    Raises:
        InputError: an option that would have no effect.
    """

    output: Path
    format: Format = "hf"
    dtype: DType | None = None
    chat_template: Path | None = None
    dense: bool = False
    onnx: bool = False
    overwrite: bool = False
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        if self.private and not self.push_to_hub:
            raise InputError("--private is given without --push_to_hub: there is nothing to hide")
        others = ("onnx", "push_to_hub") if self.format == "gguf" else ("dtype",)
        if given := [name for name in others if getattr(self, name)]:
            raise InputError(f"--{given[0]} has no effect on --format {self.format}: leave it out")
