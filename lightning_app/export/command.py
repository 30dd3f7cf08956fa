"""`python main.py export`: a trained model as a Hugging Face directory, compared with what it was made from."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_app.data.chat_encoding import template_of
from lightning_app.data.chat_template import PLAIN, ChatTemplate
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.data.tokenizers.sources import TEMPLATE, TEMPLATES
from lightning_app.errors import InputError
from lightning_app.export import llama_cpp
from lightning_app.export.code import AUTO_MAP, code_files, descriptions_in
from lightning_app.export.gguf import GGUFExported, check_place, write_gguf
from lightning_app.export.gguf_vocabulary import vocabulary
from lightning_app.export.hub import check_name, push
from lightning_app.export.model_card import Facts, model_card
from lightning_app.export.models import (
    fill_removed,
    fold_masks,
    merge_adapters,
    own_model,
    plain_model,
    removed_units,
    uneven_model,
)
from lightning_app.export.onnx import check_onnx, write_onnx
from lightning_app.export.options import DType, ExportOptions
from lightning_app.export.tokenizer import write_tokenizer
from lightning_app.io import remove_leftovers, sync, temporary, writing_into
from lightning_app.models.backbone import Backbone
from lightning_app.models.hugging_face import without_bars
from lightning_app.models.pretrained import SPECIAL, PretrainedLM
from lightning_app.models.registry import describe
from lightning_app.training.checkpoint import load_module, open_checkpoint
from lightning_app.training.command_options import CheckpointOptions
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.module import LanguageModule

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

TOLERANCE = 1e-5  # of a logit in fp32, relative to the largest where that is above 1
PROBE = 64  # tokens that the written directory is compared on
OWN = "lightning_app"  # the model_type of our own code
OF_DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SMALL_FILES = 2**24  # bytes of all but the weights, at most


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        model_type: "gpt2", "llama" and so on; "lightning_app" is our own, whose code lies in the directory.
        difference: the largest of a logit, between the directory and the checkpoint.
        onnx_difference: likewise of `model.onnx`; None without one.
    """

    folder: Path
    model_type: str
    difference: float
    onnx_difference: float | None


def export(
    checkpoint: str | Path,
    output: Path,
    *,
    dense: bool = False,
    onnx: bool = False,
    chat_template: Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model of a checkpoint to the directory `output`, load it back, and compare the logits.

    Args:
        dense: removed heads and neurons come back as zeros.
        onnx: write `model.onnx` too.
        chat_template: a file in Jinja; without it that of the model's training, or of its tokenizer.
        overwrite: replace an earlier export.

    Raises:
        InputError: no such checkpoint, a directory that is in use, a full disk, a model that cannot be exported, or
            one that computes other logits than the checkpoint. Nothing is left behind then.
    """
    check_output(output, overwrite=overwrite)
    given = None if chat_template is None else ChatTemplate.read(chat_template)
    loaded, module, tokenizer = open_checkpoint(checkpoint)
    backbone, facts = _of_states(module), Facts.of(loaded, Path(checkpoint), module)
    if onnx:
        check_onnx(backbone)
    ids = _probe(backbone)
    expected = _logits_of(backbone, ids)
    model = _model(backbone, dense=dense)
    with _new_folder(output, needed=_bytes_of(model)) as folder:
        known = write_tokenizer(tokenizer, folder, max_length=backbone.max_length)
        if (template := given or module.chat_template) is not None:  # before the one in tokenizer_config.json
            (folder / TEMPLATE).write_bytes(template.text.encode())
            shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
        _write_model(model, folder, _generation(module, tokenizer, known=known, own=_own(model)))
        difference = _difference(folder, ids, expected)
        onnx_difference = write_onnx(model, folder) if onnx else None
        done = Exported(output, model.config.model_type, difference, onnx_difference)
        card = model_card(facts, name=output.name, model=model, difference=difference)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return done


def export_gguf(
    checkpoint: str | Path,
    output: Path,
    *,
    dtype: DType = "f16",
    dense: bool = False,
    chat_template: Path | None = None,
    overwrite: bool = False,
) -> GGUFExported:
    """Write the model of a checkpoint as the GGUF file `output`, for llama.cpp; see `gguf.write_gguf`.

    Args:
        chat_template: a file in Jinja, which becomes a part of the file.

    Raises:
        InputError: see `export`; a model that llama.cpp has no family for.
    """
    check_place(output, overwrite=overwrite)
    given = None if chat_template is None else ChatTemplate.read(chat_template)
    module, tokenizer = load_module(checkpoint)
    template = _template(given or module.chat_template, tokenizer)
    backbone = _of_states(module)
    words = vocabulary(tokenizer, backbone.vocab_size, chat_template=template)
    ids = _probe(backbone)
    expected = _logits_of(backbone, ids)
    prepared = _prepared(backbone, dense=dense)
    model = plain_model(prepared) or (uneven_model(prepared) if llama_cpp.is_installed() else None)
    if model is None:
        raise InputError(_why_no_family(backbone))
    return write_gguf(model, words, output, ids=ids, expected=expected, dtype=dtype)


def _template(given: ChatTemplate | None, tokenizer: Tokenizer) -> str | None:
    """None: it has none but the plain one, which a model that was trained on no conversations gets."""
    template = template_of(tokenizer, given)
    return None if template.text == PLAIN else template.text


def _why_no_family(backbone: Backbone) -> str:
    if removed := removed_units(backbone):
        lost = " and ".join(f"{count} {kind}" for kind, count in removed.items())
        return (
            f"{lost} are removed, so that layers differ, and llama.cpp has no family for that (but one like LLaMA, "
            "which is written where cyllama is installed): --dense brings them back as zeros"
        )
    return (
        "llama.cpp has no family for this model (a memory, or other choices than GPT-2's or LLaMA's): leave out "
        "--format gguf"
    )


def _of_states(module: LanguageModule) -> Backbone:
    """Its backbone, without what reads tokens or prompts: whoever opens the export gives it states alone."""
    found = module.backbone.of_states
    own, kept = ([one["part"] for one in descriptions_in(describe(model))] for model in (module.backbone, found))
    if gone := [part for part in own if part not in kept and part != "MemoryLM"]:
        rank_zero_warn(f"the export is the model without {', '.join(gone)}: its code is given states alone")
    return found


def _model(backbone: Backbone, *, dense: bool) -> PreTrainedModel:
    prepared = _prepared(backbone, dense=dense)
    return plain_model(prepared) or own_model(prepared)


def _prepared(backbone: Backbone, *, dense: bool) -> Backbone:
    """The backbone with all that is beside its matrices written into them."""
    if dense and not removed_units(backbone):
        raise InputError("--dense brings removed heads and neurons back as zeros, but none is removed: leave it out")
    backbone = merge_adapters(backbone)
    fold_masks(backbone)
    if dense:
        fill_removed(backbone)
    return backbone


def _own(model: PreTrainedModel) -> bool:
    return model.config.model_type == OWN


# The proof


def _probe(backbone: Backbone) -> Tensor:
    """(1, T) ids, drawn once and for all."""
    length = min(PROBE, backbone.max_length or PROBE)
    return torch.randint(backbone.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits_of(backbone: Backbone, ids: Tensor) -> Tensor:
    """In fp32, whatever the weights are in."""
    dtypes = {p.dtype for p in backbone.parameters()}
    model = backbone if dtypes == {torch.float32} else copy.deepcopy(backbone).float()
    return model.eval()(ids).float()


@torch.no_grad()
def _difference(folder: Path, ids: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit of the written directory.

    Raises:
        InputError: it is too large.
    """
    from transformers import AutoModelForCausalLM

    with without_bars():
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    found = model.eval()(input_ids=ids).logits
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise InputError(
            f"the written {model.config.model_type} computes other logits than the checkpoint: they differ by "
            f"{difference:.3g}, the largest is {largest:.3g}; nothing was exported"
        )
    return difference


# What is written


def _generation(module: LanguageModule, tokenizer: Tokenizer, *, known: set[int], own: bool) -> GenerationConfig:
    """Special ids, and how texts are drawn: as the model's source says, else as `generate` does. Ids that are not
    `known` are never drawn."""
    from transformers import GenerationConfig

    ends = sorted(module.end_ids, key=lambda i: (i != tokenizer.eot, i))  # its own first: some readers take one
    core = module.backbone.core
    if isinstance(core, PretrainedLM):
        said = {"bos_token_id": tokenizer.bos, **_of_source(core, tokenizer)}
    else:
        begin = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
        said = {"do_sample": True, "temperature": 0.8, "top_k": 50, "bos_token_id": begin}
    if not said.get("do_sample"):  # it had no effect, and the library refuses to write it
        said = {name: value for name, value in said.items() if name not in OF_DRAWS}
    said.setdefault("pad_token_id", tokenizer.pad)
    unknown = set(range(module.backbone.vocab_size)) - known
    said["suppress_tokens"] = sorted(unknown.union(said.get("suppress_tokens") or ())) or None
    return GenerationConfig(
        **said,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        max_length=None if own else module.backbone.max_length,  # our own code goes on with the newer half
    )


def _of_source(core: PretrainedLM, tokenizer: Tokenizer) -> dict[str, Any]:
    """What its source said; of its begin and pad ids those that are no text of this tokenizer."""
    sizes, text = tokenizer.token_bytes(), core.model.config.get_text_config(decoder=True)
    said = {name: getattr(text, name, None) for name in ("bos_token_id", "pad_token_id")} | core.generation
    ids = {name: said.pop(name) for name in ("bos_token_id", "pad_token_id")}
    return said | {name: i for name, i in ids.items() if i is not None and 0 <= i < len(sizes) and sizes[i] == 0}


def _write_model(model: PreTrainedModel, folder: Path, generation: GenerationConfig) -> None:
    """Weights, both configs, and our own code where the library has none."""
    for name in SPECIAL:
        setattr(model.config, name, getattr(generation, name))
    model.generation_config = generation
    if _own(model):
        model.config.auto_map = AUTO_MAP
        for name, text in code_files(model.config.backbone).items():
            (folder / name).write_text(text, encoding="utf-8")
    with without_bars(), _plain_disk_errors():
        model.save_pretrained(folder)


@contextmanager
def _plain_disk_errors() -> Iterator[None]:
    """What safetensors meets is an OSError in its message alone."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


# Where it is written


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds something else.

    Raises:
        InputError: a file, or a directory that is not empty; with `overwrite` one that is no export.
    """
    if output.name in ("", ".."):
        raise InputError(f"output is {output}: give a directory of its own, which is replaced as a whole")
    if output.exists() and not output.is_dir():
        raise InputError(f"output is {output}, which is a file: give a directory")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not overwrite:
        raise InputError(f"output is {output}, which is not empty: give another directory, or --overwrite")
    if not (output / "config.json").is_file():
        raise InputError(
            f"output is {output}, which holds no config.json, so it is no earlier export: it is not overwritten"
        )


@contextmanager
def _new_folder(output: Path, *, needed: int) -> Iterator[Path]:
    """A folder beside `output`, of the same name, which takes its place at the end; an error leaves nothing of it."""
    parent = output.absolute().parent
    with writing_into(parent, needed=needed):
        parent.mkdir(parents=True, exist_ok=True)
        _check_space(parent, needed)
        remove_leftovers(parent)
    with temporary(output.absolute()) as beside, writing_into(parent, needed=needed):
        folder = beside / output.name
        folder.mkdir(parents=True)
        yield folder
        for file in (path for path in folder.rglob("*") if path.is_file()):
            file.chmod(folder.stat().st_mode & 0o666)  # safetensors writes for its owner alone
            sync(file)
        if output.exists():
            output.replace(beside / "old")
        folder.replace(output)
        sync(parent)


def _check_space(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"no space left in {parent}: up to {needed:,} bytes are needed, {free:,} are free; make room or choose a "
            "directory on another disk"
        )


def _bytes_of(model: PreTrainedModel) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return SMALL_FILES + sum(x.numel() * x.element_size() for x in tensors)


# The command


def export_model(model: CheckpointOptions, written: ExportOptions) -> None:
    """Export, and say what was written."""
    if written.push_to_hub:
        check_name(written.push_to_hub)
    path = find_checkpoint(model.ckpt_path, model.runs_dir)
    shared: dict[str, Any] = {name: getattr(written, name) for name in ("dense", "chat_template", "overwrite")}
    if written.format == "gguf":
        done = export_gguf(path, written.output, dtype=written.dtype or "f16", **shared)
        print(*_gguf_report(done, path), sep="\n")
        return
    directory = export(path, written.output, onnx=written.onnx, **shared)
    print(*report(directory, path), sep="\n")
    if written.push_to_hub:
        print(f"on the hub        {push(directory.folder, written.push_to_hub, private=written.private)}")


def report(done: Exported, checkpoint: str | Path) -> list[str]:
    """Lines for the terminal."""
    own = done.model_type == OWN
    loading = ", trust_remote_code=True" if own else ""
    kind = "its own code, in the directory" if own else "a family of transformers, no code of its own"
    lines = [
        f"exported          {checkpoint}",
        f"to                {done.folder}",
        f"as                {done.model_type}: {kind}",
        f"loaded back       logits differ by at most {done.difference:.2g}",
    ]
    if done.onnx_difference is not None:
        lines.append(f"model.onnx        logits differ by at most {done.onnx_difference:.2g}")
    return [*lines, f'load              AutoModelForCausalLM.from_pretrained("{done.folder}"{loading})']


def _gguf_report(done: GGUFExported, checkpoint: str | Path) -> list[str]:
    lines = [
        f"exported          {checkpoint}",
        f"to                {done.file} ({done.file.stat().st_size / 1e6:.1f} MB)",
        f"as                {done.architecture}, {done.dtype}",
        "read back         every tensor; transformers has no family whose layers differ"
        if done.difference is None
        else f"read back         logits differ by at most {done.difference:.2g} in transformers",
    ]
    if done.llama_difference is None:
        return [*lines, "llama.cpp         not asked: pip install lightning_app[gguf]"]
    return [*lines, f"llama.cpp         logits differ by at most {done.llama_difference:.2g}"]
