"""A checkpoint whose memory is edited: opened, changed in size, and written again with the config that fits it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.io import write_atomic
from lightning_app.memory.build_options import Filled
from lightning_app.memory.extension import Memory, memory_of
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import KNNReader
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.registry import Description, as_config, build, describe, name_of
from lightning_app.reports.run_folder import RunFolder, config_of_run
from lightning_app.training.checkpoint import open_checkpoint, without_fit
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.checkpoint_keys import WEIGHTS
from lightning_app.training.module import LanguageModule
from lightning_app.training.wrapping import wrapped_as
from lightning_app.yaml_file import LINKED

OF_MODEL = ("backbone", "readers", "segment_length", "isolate_segments", "freeze", "extensions", "art")
PLAIN = ("ArticleGPT", "CausalLM", "VardaGPT")  # with a memory each is a VardaGPT
MIXTURE = "GatedMixture"
READERS = "backbone.readers."  # names of their tensors
UNKNOWN_BLOCK = 512
HEADER = """\
# {name}: the model of {name}.ckpt, with its memory. Written by `python main.py memory`.
# python main.py validate --config {name}.yaml --ckpt_path {name}.ckpt
"""


@dataclass(frozen=True)
class Opened:
    """A checkpoint and what it holds.

    Attributes:
        path: where it was read.
        checkpoint: as it was read.
        module: the model, in eval mode.
        tokenizer: the one that travelled with it.
    """

    path: Path
    checkpoint: dict[str, Any]
    module: LanguageModule
    tokenizer: Tokenizer

    @classmethod
    def read(cls, path: str | Path) -> Opened:
        """Read a checkpoint. Raises what `open_checkpoint` raises."""
        return cls(Path(path), *open_checkpoint(path))

    @property
    def memory(self) -> Memory:
        """The module's memory; an `InputError` where it has none."""
        memory = memory_of(self.module)
        if memory is None or not memory.readers:
            raise InputError(
                f"{self.path} holds a {type(self.module).__name__} without a memory: "
                f"make one by `python main.py memory build --ckpt_path {self.path}`"
            )
        return memory

    @property
    def readers(self) -> Sequence[Reader]:
        return self.memory.readers

    @property
    def knn(self) -> KNNReader:
        """The KNNReader, to which texts are added."""
        for reader in self.readers:
            if isinstance(reader, KNNReader) and reader.scope == "shared":
                return reader
        kinds = ", ".join(f"{type(reader).__name__} (scope {reader.scope})" for reader in self.readers)
        raise InputError(
            f"{self.path} has no KNNReader with one memory for all rows, but {kinds}: "
            "texts are added to a kNN memory alone, which `memory build` makes; the others learn what to store"
        )

    @property
    def searched(self) -> list[Reader]:
        """The readers of memories; an `InputError` where there is none, but counts of n-grams."""
        found = [reader for reader in self.readers if reader.bank.memories]
        if not found:
            kinds = ", ".join(type(reader).__name__ for reader in self.readers)
            raise InputError(
                f"{self.path} has counts of its training text ({kinds}) and no vectors, so there are no entries to "
                "search, delete or check: `memory list` says how many tokens are counted"
            )
        return found

    @property
    def memories(self) -> list[AssociativeMemory]:
        """The memories of all readers. Raises as `searched` does."""
        return [memory for reader in self.searched for memory in reader.bank.memories]

    def with_module(self, module: LanguageModule) -> Opened:
        """The same checkpoint with another model and this one's tokenizer."""
        module.use_tokenizer(self.tokenizer)
        old, new = memory_of(self.module), memory_of(module)
        if old is not None and new is not None:
            new.documents = dict(old.documents)
        return replace(self, module=module.eval())

    def config(self) -> dict[str, Any]:
        """The config of the run, or of the command that wrote the checkpoint; empty where there is none."""
        own, run = self.path.with_suffix(".yaml"), RunFolder.of(self.path)
        return config_of_run(own) if own.is_file() else run.config() if run else {}

    def block_size(self) -> int:
        """Tokens that the model sees at once: as in its training; where that is not known, no more than 512."""
        longest, wanted = self.module.longest_block, (self.config().get("data") or {}).get("block_size")
        block = wanted or UNKNOWN_BLOCK
        block = block if longest is None else min(block, longest)
        segment = self.module.backbone.segment_length if isinstance(self.module.backbone, MemoryLM) else None
        return block if segment is None else max(segment, block // segment * segment)

    def _data(self) -> dict[str, Any]:
        """The options of the data where no config has them."""
        return {"tokenizer": self.tokenizer.name, "block_size": self.block_size()}

    def write(self, path: str | Path, *, with_config: bool) -> None:
        """Write the model as it is now, whole or not at all, and beside it the config that fits it."""
        config = self.config()
        checkpoint = {**self.checkpoint, WEIGHTS: self.module.cpu().state_dict()}
        self.module.on_save_checkpoint(checkpoint)
        AtomicCheckpointIO(keep_previous=False).save_checkpoint(checkpoint, path)  # what was deleted is gone
        if with_config:
            config = config | {"data": config.get("data") or self._data()}
            text = yaml.safe_dump(fitting(config, self.module), sort_keys=False, allow_unicode=True)
            header = HEADER.format(name=Path(path).stem)
            write_atomic(Path(path).with_suffix(".yaml"), (header + text).encode())


def with_reader(opened: Opened, options: dict[str, Any], part: str = "KNNReader") -> Opened:
    """The model with an empty reader of these options, one of `Filled`: behind its others, or for that which it has.

    Raises:
        InputError: a `GatedMixture` has learned how much its readers count, and would have another one.
    """
    description = copy.deepcopy(describe(opened.module))
    options_of = _memory_options(description)
    readers = options_of.get("readers", [])
    mixed = bool(readers) and readers[-1]["part"] == MIXTURE
    behind = len(readers) - mixed  # the mixture stands last
    number = next((i for i, reader in enumerate(readers) if _is_knn(reader)), behind)
    before = readers[number] if number < behind else None
    kept = before["options"] if before is not None and before["part"] == part else {}
    if mixed and (part == "KNNReader") != (before is not None and before["part"] == "KNNReader"):
        raise InputError(
            f"{opened.path} has a {MIXTURE}, which has learned how much each of its readers counts: no KNNReader can "
            "join them or go now; fit it with one, which stays empty in the fit, or without"
        )
    given = options_of_today({**options, "path": None}, "KNNReader")
    fixed = {"scope": "shared", "streams": 1, "writes": "never"}
    fixed["advanced"] = {**kept.get("advanced", {}), **given["advanced"]}
    made = {"part": part, "version": 1, "options": {**kept, **given, **fixed}}
    options_of["readers"] = [*readers[:number], made, *readers[number + (before is not None) :]]
    module: LanguageModule = build(description)
    own, state = f"{READERS}{number}.", wrapped_as(module, opened.module.state_dict())
    if mixed and before is None:  # the mixture makes room
        further = f"{READERS}{number + 1}."
        state = {further + name.removeprefix(own) if name.startswith(own) else name: t for name, t in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
    new = {name: tensor for name, tensor in module.state_dict().items() if name.startswith(own)}
    module.load_state_dict(state | new)
    return replace(opened.with_module(module), checkpoint=without_fit(opened.checkpoint))


def _memory_options(description: Description) -> dict[str, Any]:
    """Where the description of a module has its readers; one without a memory gets a place for them."""
    options = description["options"]
    for extension in options["extensions"]:
        if extension["part"] == "Memory":
            return extension["options"]
    if description["part"] in PLAIN:
        description["part"] = "VardaGPT"
        return options
    memory: dict[str, Any] = {"readers": []}  # the class stays, with the options that no other has
    options["extensions"].append({"part": "Memory", "version": 1, "options": memory})
    return memory


def _is_knn(reader: dict[str, Any]) -> bool:
    return reader["part"] in get_args(Filled)


def with_capacity(opened: Opened, n: int) -> Opened:
    """The kNN memory with a capacity of `n` entries at least; those that it holds keep their ids."""
    knn = opened.knn
    if n <= knn.bank.shared.memory_size:
        return opened
    description = copy.deepcopy(describe(opened.module))
    readers = _memory_options(description)["readers"]
    next(reader for reader in readers if _is_knn(reader))["options"]["memory_size"] = n
    module: LanguageModule = build(description)
    state = module.state_dict()
    for name, tensor in opened.module.state_dict().items():
        if all(new >= old for new, old in zip(state[name].shape, tensor.shape, strict=True)):
            state[name][tuple(slice(size) for size in tensor.shape)] = tensor
        else:  # counts of a text, which are as long as it
            state[name] = tensor
    module.load_state_dict(state)
    return opened.with_module(module)


def fitting(config: dict[str, Any], module: LanguageModule) -> dict[str, Any]:
    """A config with the model in its place, so that `validate` and `test` can build it before they load it."""
    described = as_config(describe(module))
    parts = {name: value for name, value in described["init_args"].items() if name in OF_MODEL}
    backbone = parts["backbone"]
    without_links = {name: value for name, value in backbone["init_args"].items() if name not in LINKED}
    parts["backbone"] = {**backbone, "init_args": without_links}
    data = dict(config.get("data") or {})
    if data.get("vocab_size") is None:  # a Hugging Face config says it too, and both must be equal
        data["vocab_size"] = module.backbone.vocab_size
    kept = {name: value for name, value in config.items() if name not in ("ckpt_path", "init_from", "model")}
    options = (config.get("model") or {}).get("init_args") or {}
    model = {"class_path": name_of(module), "init_args": {**options, **parts}}
    return {**kept, "data": {name: value for name, value in data.items() if value is not None}, "model": model}
