"""What a checkpoint holds, and the one way each to write, resume, start from and open it.

`read_checkpoint` and `AtomicCheckpointIO` (training/checkpoint_io.py) know the file, this module what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.models.hugging_face import is_model
from lightning_app.models.lora import named_as
from lightning_app.models.pretrained import ids_of_directory, special_ids_of_directory
from lightning_app.models.registry import (
    Description,
    build,
    describe,
    find_class,
    former_name,
    from_former,
    is_description,
    layouts_in,
    set_layouts,
    take_layouts,
)
from lightning_app.training.checkpoint_fit import check_fits, extensions_in
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.checkpoint_keys import (
    CALLBACKS,
    CLASS_PATH,
    DATA,
    DOCUMENTS,
    FORMER_COMMIT,
    FORMER_DOCUMENTS,
    FORMER_LOG_LINES,
    FORMER_OPTIONS,
    FORMER_UNITS,
    HPARAMS_NAME,
    HYPER_PARAMETERS,
    INSTANTIATOR,
    LOOPS,
    OF_EXTENSIONS,
    OPTIMIZERS,
    OURS,
    PRECISION,
    SCHEDULERS,
    SPIKES,
    STEP,
    VERSION,
    WEIGHTS,
)
from lightning_app.training.checks import say_if_ids_differ
from lightning_app.training.commit import UNKNOWN, commit
from lightning_app.training.wrapping import added, is_wrapped, wrapped_as

if TYPE_CHECKING:
    from lightning_app.training.module import LanguageModule

FORMAT = 2
OF_A_FIT = (OPTIMIZERS, SCHEDULERS, LOOPS, CALLBACKS, PRECISION)  # keys: they belong to the weights of one run


@dataclass
class Checkpoint:
    """What this project puts into a checkpoint, beside what Lightning does.

    Attributes:
        model: the description of the module (`models.registry`).
        commit: of the code that trained.
        own: what the module keeps beside tensors, see `LanguageModule.own_state`.
        log_lines: lines of log.jsonl that were written before it.
        options: what decided how the run trained, see `training.callbacks.resume_options`.
        format: of all this; 1 had the parts under keys of their own, and classes by their files.
    """

    model: Description | None = None
    commit: str = UNKNOWN
    own: dict[str, Any] = field(default_factory=dict)
    log_lines: int | None = None
    options: dict[str, Any] | None = None
    format: int = FORMAT

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Checkpoint:
        """The parts of a checkpoint as it was read, in whatever format. Options stand in its description as today.

        Raises:
            InputError: a format of later code.
        """
        if OURS not in raw:
            return _of_format_1(raw)
        if raw[OURS]["format"] > FORMAT:
            raise InputError(
                f"the checkpoint has format {raw[OURS]['format']}, and this code knows those up to {FORMAT}: update it"
            )
        return cls(**{**raw[OURS], "model": of_today(raw[OURS]["model"])})


def of_today(described: Any) -> Any:
    """A description, and those in it, with each option where it stands today; what is none stays as it is."""
    if isinstance(described, list):
        return [of_today(one) for one in described]
    if not is_description(described):
        return described
    options = {name: of_today(value) for name, value in described["options"].items()}
    own_of_before = "regularizers" in options and "extensions" not in options  # all modules had them
    part = "CausalLM" if own_of_before else described["part"]
    return {**described, "options": options_of_today(options, part)}


def put(raw: dict[str, Any], **parts: Any) -> None:
    """Add parts, by the names of `Checkpoint`'s attributes, to a checkpoint that is being written."""
    assert parts.keys() <= {f.name for f in fields(Checkpoint)}
    raw[OURS] = {**asdict(Checkpoint()), **raw.get(OURS, {}), **parts}


def tokenizer_state(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the data module that it was trained with: the tokenizer and its fingerprint."""
    return raw.get(DATA)


def without_fit(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without what belongs to the weights of one run."""
    return {name: value for name, value in raw.items() if name not in OF_A_FIT}


# Write


def write(module: LanguageModule, raw: dict[str, Any]) -> None:
    """What rebuilds the module and what it keeps beside tensors, into a checkpoint that has its weights."""
    for name in (HYPER_PARAMETERS, HPARAMS_NAME):
        raw.pop(name, None)
    put(raw, model=describe(module), commit=commit(), own=module.own_state())


# Resume


def resume(module: LanguageModule, raw: dict[str, Any]) -> None:
    """Bring a module into the shape of a checkpoint whose weights it will get, and give it what else is in there.

    Raises:
        InputError: it is another model's.
    """
    saved = Checkpoint.of(raw)
    if saved.model is not None:
        take_shape(module, saved.model)
    check_fits(module, raw[WEIGHTS], saved.model)
    module.load_own_state(saved.own, resumes=bool(raw.get(OPTIMIZERS)))


def take_shape(module: LanguageModule, model: Description) -> None:
    """Cut out of a module, and of the copies of its model, what is missing in a described one."""
    for backbone in module.backbones():
        take_layouts(backbone, layouts_in(model))


# Start from


def start_from(module: LanguageModule, raw: dict[str, Any]) -> None:
    """Take the weights of another run. An extension that the checkpoint lacks starts anew; what it holds of one
    that this module lacks stays behind; one that both have goes on. A memory is one, with all of its readers; those
    behind the checkpoint's start anew.

    Raises:
        InputError: anything else in which the two differ, such as other readers.
    """
    model = Checkpoint.of(raw).model
    if model is not None:
        take_shape(module, model)  # first: what a new extension copies has it, too
    own = module.state_dict()
    state = named_as(own, wrapped_as(module, raw[WEIGHTS]))
    ours, theirs = ({_extension_of(name) for name in names} for names in (own, state))
    kept = {name: tensor for name, tensor in state.items() if _extension_of(name) in ours}
    more = added(own, state)
    new = {name: tensor for name, tensor in own.items() if _extension_of(name) not in theirs or name in more}
    module.on_load_checkpoint({**raw, WEIGHTS: kept | new, OPTIMIZERS: []})
    module.load_state_dict(kept | new)
    for i, extension in enumerate(module.extensions):
        if f"{OF_EXTENSIONS}{i}" in ours - theirs:
            extension.attach(module.backbone.without_memory)
            rank_zero_info(f"{OF_EXTENSIONS}{i} starts anew: the checkpoint has none")
    if model is not None and (more or is_wrapped(own) != is_wrapped(raw[WEIGHTS])):
        _say_what_wraps(extensions_in(describe(module)), extensions_in(model))


def _say_what_wraps(ours: list[str], theirs: list[str]) -> None:
    new, left = ([name for name in one if name not in other] for one, other in ((ours, theirs), (theirs, ours)))
    if new:
        rank_zero_info(
            f"the checkpoint has no {', '.join(new)}, which starts anew; the model's weights are the checkpoint's"
        )
    if left:
        rank_zero_warn(f"the checkpoint's {', '.join(left)} stays behind: this model has none")


def _extension_of(tensor: str) -> str | None:
    """The "regularizers.0" at the start of a tensor's name; None: it does not belong to an extension."""
    return ".".join(tensor.split(".")[:2]) if tensor.startswith(OF_EXTENSIONS) else None


# Open for use


def read(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """What `path` holds: a checkpoint (see `read_checkpoint`), or a model in one of Hugging Face's forms, with its
    tokenizer, as a fit would have saved it.

    Raises:
        InputError: neither.
    """
    return _open_model(str(path))[0] if is_model(path) else read_checkpoint(path, mmap=mmap)


def _open_model(path: str) -> tuple[dict[str, Any], LanguageModule, Tokenizer]:
    """See `open_checkpoint`. The tensors that are read are the module's own: a second copy may not fit."""
    tokenizer = _tokenizer_beside(path)  # first: loading the weights may take minutes
    module = find_class("CausalLM")(find_class("PretrainedLM")(pretrained=path))
    raw = {WEIGHTS: module.state_dict(), STEP: 0, DATA: tokenizer.saved(), VERSION: L.__version__}
    write(module, raw)
    module.use_tokenizer(tokenizer)
    return raw, module.eval(), tokenizer


def _tokenizer_beside(path: str) -> Tokenizer:
    tokenizer, ids = load_tokenizer(path), ids_of_directory(path)
    if ids is not None and tokenizer.vocab_size > ids:
        raise InputError(
            f"the tokenizer in {path} has {tokenizer.vocab_size} ids, and the model's embedding {ids}: they do not "
            "belong together; put the model's own tokenizer.json there"
        )
    say_if_ids_differ(special_ids_of_directory(path), ids, tokenizer, source=path)
    return tokenizer


def load_module(path: str | Path) -> tuple[LanguageModule, Tokenizer]:
    """The trained module, in eval mode on the CPU, and the tokenizer that travelled with it.

    Raises:
        InputError: no such file, damaged, or not a checkpoint of this project's modules and data.
    """
    return open_checkpoint(path)[1:]


def open_checkpoint(path: str | Path) -> tuple[dict[str, Any], LanguageModule, Tokenizer]:
    """What `read` gives, and what `load_module` gives of it: a model in one of Hugging Face's forms is built once.

    Raises:
        InputError: see `load_module`.
    """
    if is_model(path):
        return _open_model(str(path))
    raw = read_checkpoint(path)
    return raw, *_module_of(raw, path)


def _module_of(raw: dict[str, Any], path: str | Path) -> tuple[LanguageModule, Tokenizer]:
    from lightning_app.data.chat_template import ChatTemplate

    module, state = module_in(raw, path), tokenizer_state(raw)
    if state is None:
        raise InputError(f"{path} holds no tokenizer: it was not trained on a TextDataModule")
    tokenizer = Tokenizer.from_state(state["tokenizer"])
    module.use_tokenizer(tokenizer)
    module.chat_template = ChatTemplate(**state["chat_template"]) if "chat_template" in state else None
    return module.eval(), tokenizer


def module_in(raw: dict[str, Any], path: str | Path) -> LanguageModule:
    """The trained module of what was read from `path`."""
    module = _built(Checkpoint.of(raw).model, path)
    module.on_load_checkpoint(raw)  # says in plain words what does not fit
    module.load_state_dict(raw[WEIGHTS])
    return module


def _built(model: Description | None, path: str | Path) -> LanguageModule:
    if model is None:
        raise InputError(f"{path} does not say which module it holds: it is not a checkpoint of this project")
    try:
        cls = find_class(model["part"])
    except InputError as error:
        raise InputError(f"{path} holds a {model['part']}, which cannot be imported here: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, L.LightningModule) and hasattr(cls, "own_state")):
        raise InputError(f"{path} holds a {model['part']}, which is not a LanguageModule")
    return build(model)


# Format 1


def _of_format_1(raw: Mapping[str, Any]) -> Checkpoint:
    before = {SPIKES: SPIKES, FORMER_DOCUMENTS: DOCUMENTS}
    own = {ours: raw[theirs] for theirs, ours in before.items() if theirs in raw}
    return Checkpoint(
        model=of_today(_described_before(raw)),
        commit=raw.get(FORMER_COMMIT, UNKNOWN),
        own=own,
        log_lines=raw.get(FORMER_LOG_LINES),
        options=raw.get(FORMER_OPTIONS),
        format=1,
    )


def _described_before(raw: Mapping[str, Any]) -> Description | None:
    """The module by its arguments, and what was cut out apart from them."""
    options = dict(raw.get(HYPER_PARAMETERS) or {})
    path = options.pop(CLASS_PATH, None)
    options.pop(INSTANTIATOR, None)
    if path is None:
        return None
    parts = {name: from_former(value) for name, value in options.items()}
    model = {"part": former_name(path), "version": 1, "options": parts}
    cut = {kind: layout for kind, layout in raw.get(FORMER_UNITS, {}).items() if _is_cut(layout)}
    if cut:
        set_layouts(model, cut)
    return model


def _is_cut(layout: Mapping[str, Any]) -> bool:
    return any(layout["masked"]) or any(len(present) < layout["shape"][1] for present in layout["present"])
