"""Any Hugging Face causal language model behind the Backbone contract, with its weights or fresh.

Shapes: B batch, T new positions, P cached ones, D width, V vocabulary.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from lightning_app.data.adapter_folder import base_of, is_adapter, with_model
from lightning_app.data.gguf_file import is_named_gguf, read_gguf
from lightning_app.errors import InputError, did_you_mean
from lightning_app.models.adapters import check_adapters, with_adapters
from lightning_app.models.backbone import Backbone, Cache, HiddenStates
from lightning_app.models.generation_options import SAMPLING
from lightning_app.models.gguf import gguf_config, gguf_of, load_gguf, vocabulary_of
from lightning_app.models.gguf_directory import stop_tokens
from lightning_app.models.hugging_face import CONFIG, GENERATION_CONFIG, without_bars
from lightning_app.models.lora import LoRA, add_adapters
from lightning_app.models.weight_files import check_weights

if TYPE_CHECKING:  # importing transformers takes seconds, so it waits until a model is made
    from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")  # what families call the most positions
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
OF_THE_FILE = ("_name_or_path", "transformers_version", "architectures", "dtype")  # no properties of the model
NOT_OFFERED = ("typical_p", "no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens")
# What a checkpoint keeps of a source's generation config; its `eos_token_id` goes into the config.
GENERATION = (*SAMPLING, *NOT_OFFERED, "do_sample", "bos_token_id", "pad_token_id")
WITHOUT_CODE = {"trust_remote_code": False}  # None would ask on the terminal
# In the names of its settings that a training may change, or that a tensor's shape shows.
FREE = ("drop", "token_id", "position", "vocab", "use_cache", "initializer", "output_", "implementation")
PROBE = 8  # positions of the comparison with the family's own forward
WHOLE = "give the model in full precision (float32, bfloat16, float16), or as a GGUF file"
LOUD = 100.0  # standard deviation of its logits, at which every softcap shows
TOLERANCE = {torch.float32: 1e-3 * LOUD}  # products of other shapes round differently; half precision: see below
HALF_TOLERANCE = 0.25 * LOUD


@dataclass(frozen=True)
class PretrainedCache:
    """Keys and values in Hugging Face's own container, which knows sliding windows."""

    past: DynamicCache

    @property
    def length(self) -> int:
        return int(self.past.get_seq_length())

    def kept(self, rows: Sequence[int]) -> PretrainedCache | None:
        """See `models.backbone.Cache`, as is `joined`. Layers with a window or a state of their own cannot."""
        if not _plain(self.past):
            return None
        layers: Any = self.past.layers
        self.past.batch_select_indices(torch.tensor(rows, device=layers[0].keys.device))
        return self

    def joined(self, other: PretrainedCache) -> PretrainedCache | None:
        if not (_plain(self.past) and _plain(other.past)):
            return None
        length = max(self.length, other.length)

        def together(ours: Tensor, theirs: Tensor) -> Tensor:
            padded = [nn.functional.pad(x, (0, 0, length - x.shape[-2], 0)) for x in (ours, theirs)]
            return torch.cat(padded)

        layers: Any = zip(self.past.layers, other.past.layers, strict=True)
        for ours, theirs in layers:
            ours.keys, ours.values = together(ours.keys, theirs.keys), together(ours.values, theirs.values)
        return self


def _plain(past: DynamicCache) -> bool:
    """Whether all that it holds are keys and values of all positions."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in past.layers)


class PretrainedLM(Backbone):
    """A causal language model of the Hugging Face library. Give one of `pretrained`, `architecture` and `config`.

    At construction it is compared with the family's own forward; one that computes its logits otherwise is refused.

    Args:
        pretrained: a local directory (`save_pretrained`), one of peft's adapters, which are merged into their model, a
            GGUF file, whose weights are dequantised, or a name on the Hugging Face hub such as "gpt2".
        gguf_file: the GGUF file of the directory `pretrained`.
        architecture: the model_type of a fresh model with random weights, such as "gpt2", "opt", "bloom", "llama".
        options: settings of the family's own config, such as {n_layer: 2, n_embd: 64, resid_pdrop: 0.0}.
        config: the whole of such a config; a checkpoint rebuilds its model from it, without the source.
        vocab_size: V; linked to `data.vocab_size`. None: the model's.
        block_size: positions needed; linked to `data.block_size`. A fresh model gets as many. None: the model's.
        resize_vocab: give a pretrained model `vocab_size` ids. Those it had stay, new ones start near their mean.
        lora: train adapters alone, see `LoRA`; the rest is frozen.
        freeze: train none of its weights; what stands on it, such as a memory's readers, learns alone.
        gradient_checkpointing: recompute the blocks in the backward: less memory, about a third more time.
        dtype: of the weights.
        generation: beside `config`: what its source's generation config said of sampling.

    Attributes:
        width: D of `embed` and `hidden`; a single layer's state has the config's hidden_size (OPT-350m's differ).
        max_length: None for families without a limit, such as BLOOM.
        lora: its adapters, if any.
        is_fresh: its weights began at random.
        source: `pretrained`, where that was given.
        generation: how its source's texts are drawn, in the names of a generation config.

    Raises:
        InputError: no such model, an unknown option, sizes that do not fit, or a family that cannot be split into
            embed, hidden and logits.
    """

    def __init__(
        self,
        *,
        pretrained: str | None = None,
        gguf_file: str | None = None,
        architecture: str | None = None,
        options: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        block_size: int | None = None,
        resize_vocab: bool = False,
        lora: LoRA | None = None,
        freeze: bool = False,
        gradient_checkpointing: bool = False,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        generation: dict[str, Any] | None = None,
    ):
        super().__init__()
        _check_one_source(pretrained=pretrained, architecture=architecture, config=config)
        if gguf_file is not None and pretrained is None:
            raise InputError(f"gguf_file is {gguf_file!r} without pretrained: give its directory as pretrained")
        if pretrained is not None and vocab_size is not None and not resize_vocab:
            _check_ids(vocab_size, ids_of_directory(pretrained), name=pretrained)  # loading may take minutes
        self.source, torch_dtype = pretrained, cast(torch.dtype, getattr(torch, dtype))
        if pretrained is not None:
            self.model = _load(pretrained, gguf_file, options or {}, torch_dtype)
        else:
            made = (
                _saved_config(config, options) if config else _new_config(architecture, options, vocab_size, block_size)
            )
            self.model = _fresh(made, torch_dtype)
        self.generation = _generation(self.model) if pretrained is not None else generation or {}
        if resize_vocab and vocab_size is not None and vocab_size != self._head.weight.shape[0]:
            self.model.resize_token_embeddings(vocab_size)
        self.is_fresh, self._dtype, self._gradient_checkpointing = (
            architecture is not None,
            dtype,
            gradient_checkpointing,
        )
        text = self.model.config.get_text_config(decoder=True)
        self.vocab_size, self.width = self._head.weight.shape[0], self._embedding.weight.shape[1]
        self.max_length, self.attention_width = _longest(text), _attention_width(text)
        # Cohere multiplies its logits, Granite divides them, Gemma-2 caps them.
        self._logit_scale = (getattr(text, "logit_scale", None) or 1.0) / getattr(text, "logits_scaling", 1.0)
        self._softcap: float | None = getattr(text, "final_logit_softcapping", None)
        takes = inspect.signature(self._base.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # until transformers 5.24
        self._check_sizes(vocab_size, block_size, pretrained or architecture or text.model_type)
        self._check_against_the_family()
        self.lora = LoRA(**lora) if isinstance(lora, dict) else lora  # a checkpoint has plain types
        self._freeze = freeze
        if freeze:
            self.model.requires_grad_(False)
        if self.lora is not None:
            add_adapters(self.model, self.lora, family=text.model_type)
        if gradient_checkpointing:
            _checkpoint_activations(self.model)
        self.model.train()  # `from_pretrained` leaves dropout off, and Lightning keeps what it finds

    @property
    def _base(self) -> PreTrainedModel:
        return cast("PreTrainedModel", self.model.base_model)

    @property
    def _embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def _head(self) -> nn.Linear:
        return cast(nn.Linear, self.model.get_output_embeddings())

    @property
    def _blocks(self) -> nn.ModuleList:
        layers = self.model.config.get_text_config(decoder=True).num_hidden_layers
        return next(m for m in self._base.modules() if isinstance(m, nn.ModuleList) and len(m) == layers)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self._blocks)

    def config(self) -> dict[str, Any]:
        saved = json.loads(self.model.config.to_json_string(use_diff=False))
        return {
            "config": {key: value for key, value in saved.items() if key not in OF_THE_FILE},
            "lora": None if self.lora is None else asdict(self.lora),
            "freeze": self._freeze,
            "gradient_checkpointing": self._gradient_checkpointing,
            "dtype": self._dtype,
            "generation": self.generation,
        }

    @property
    def end_ids(self) -> frozenset[int]:
        """The end ids of the family's config, and of the source's generation config where it has one."""
        return frozenset(_ids(self.model.config.get_text_config(decoder=True).eos_token_id))

    @property
    def sampling(self) -> dict[str, Any]:
        return {name: value for name, value in self.generation.items() if name in SAMPLING}

    @property
    def not_offered(self) -> dict[str, Any]:
        return {name: value for name, value in self.generation.items() if name in NOT_OFFERED}

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        config = options["config"].items()
        return {name: x for name, x in config if isinstance(x, int | float | str) and not any(w in name for w in FREE)}

    def special_ids(self) -> dict[str, set[int]]:
        text = self.model.config.get_text_config(decoder=True)
        given = {role: getattr(text, f"{role}_token_id", None) for role in ("bos", "eos")}
        return {role: {*ids} if isinstance(ids, list) else {ids} for role, ids in given.items() if ids is not None}

    def embed(self, ids: Tensor) -> Tensor:
        return self._embedding(ids)

    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> HiddenStates:
        assert cache is None or isinstance(cache, PretrainedCache)  # made by `new_cache`
        T, past = embeddings.shape[1], cache.length if cache is not None else 0
        if self.max_length is not None and past + T > self.max_length:
            raise InputError(f"{past + T} positions do not fit the model's {self.max_length}: shorten the text")
        arguments: dict[str, Any] = {"inputs_embeds": embeddings, "use_cache": cache is not None}
        if cache is not None:
            arguments[self._cache_name] = cache.past
        if mask is not None:
            arguments["attention_mask"] = mask.long()
            if self._takes_positions:
                arguments["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
        with self._recorded(layers) as states:
            last = self._base(**arguments).last_hidden_state
        return HiddenStates(last, states)

    @contextmanager
    def _recorded(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """The states of blocks, by hooks: `output_hidden_states` would give the last one normalised."""
        states: dict[int, Tensor] = {}
        if not layers:
            yield states
            return
        blocks = self._blocks
        if not all(0 <= layer < len(blocks) for layer in layers):
            raise InputError(
                f"layers {sorted(layers)} are asked for, but the model has the layers 0 to {len(blocks) - 1}"
            )

        def keep(layer: int) -> Any:
            def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
                states[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        hooks = [blocks[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def attention_visible(self) -> Iterator[None]:
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self._head(hidden)
        if self._logit_scale != 1.0:
            logits = logits * self._logit_scale
        return logits if self._softcap is None else (logits / self._softcap).tanh() * self._softcap

    def new_cache(self, batch_size: int) -> PretrainedCache:
        from transformers import DynamicCache

        return PretrainedCache(DynamicCache(config=self.model.config))

    def flops_per_token(self, length: int) -> int:
        """See `Backbone`; GPT-2's matrices are not nn.Linear. All experts of a mixture count, used or not. A frozen
        matrix has no gradient of its own: 4 instead of 6."""
        layers = [module for module in self.modules() if not isinstance(module, nn.Embedding)]
        matrices = [p for layer in layers for p in layer.parameters(recurse=False) if p.dim() >= 2]
        return sum((6 if p.requires_grad else 4) * p.numel() for p in matrices) + 12 * self.attention_width * length

    # Checks

    def _check_sizes(self, vocab_size: int | None, block_size: int | None, name: str) -> None:
        if vocab_size is not None:
            _check_ids(vocab_size, self.vocab_size, name=name)
        if block_size is not None and self.max_length is not None and block_size > self.max_length:
            raise InputError(
                f"data.block_size is {block_size}, but {name!r} holds at most {self.max_length} positions: lower it"
            )

    @torch.no_grad()
    def _check_against_the_family(self) -> None:
        """Compare with the model's own logits, in one go and in two pieces with a cache.

        Once a softcap's argument is small it does nothing, so the head is made loud for as long as this takes.
        """
        if self._head.weight.device.type == "meta":
            return
        self.model.eval()
        try:
            expected, found = self._probe()
        except (RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"the family {self.model.config.model_type!r} cannot be run from its embeddings "
                f"({_message_of(error)}); choose another family"
            ) from error
        tolerance = TOLERANCE.get(expected.dtype, HALF_TOLERANCE)
        for way, logits in found.items():
            difference = float((logits - expected).abs().max())
            if not difference <= tolerance:
                raise InputError(
                    f"the family {self.model.config.model_type!r} computes its logits otherwise: {way} they differ by "
                    f"{difference:.3g} at a standard deviation of {LOUD:g}; choose another family"
                )

    def _probe(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The family's logits of a few ids, and ours by the way they were made."""
        ids = torch.arange(min(PROBE, self.max_length or PROBE), device=self._head.weight.device)[None] * 7
        ids = ids % self.vocab_size
        gain = LOUD / self._head(self.hidden(self.embed(ids)).last).float().std().clamp_min(1e-6)
        hook = self._head.register_forward_hook(lambda _module, _arguments, output: output * gain)
        try:
            expected = self.model(ids, use_cache=False).logits
            return expected, {"in one go": self(ids), "with a cache": self._logits_in_pieces(ids)}
        finally:
            hook.remove()

    def _logits_in_pieces(self, ids: Tensor) -> Tensor:
        cache, pieces = self.new_cache(1), ids.tensor_split(2, dim=1)
        return torch.cat(
            [self.logits(self.hidden(self.embed(p), cache=cache).last) for p in pieces if p.numel()], dim=1
        )


def _check_one_source(**sources: Any) -> None:
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise InputError(
            f"{' and '.join(given) or 'no model'} given: give one of pretrained (a directory, or a name on the hub), "
            "architecture (a fresh model) and config"
        )


def _check_ids(given: int, own: int | None, *, name: str) -> None:
    """Whether the data has as many ids as the model; None: nobody knows how many that has."""
    if own is None or given == own:
        return
    raise InputError(
        f"data.vocab_size is {given}, but {name!r} has {own} ids: if data.tokenizer gives the model's own ids set "
        f"data.vocab_size: {own} (spare ones are never drawn), else give data.tokenizer: model, or resize_vocab: true"
    )


def ids_of_directory(name: str) -> int | None:
    """As its config says, or the shape of a GGUF file's embedding; None: it does not."""
    if is_named_gguf(name) and Path(name).is_file():
        return vocabulary_of(read_gguf(Path(name)))
    found = _json(with_model(name) / CONFIG).get("vocab_size")
    return found if isinstance(found, int) else None


def special_ids_of_directory(name: str) -> dict[str, set[int]]:
    """What its config and its generation config name, see `Backbone.special_ids`; a GGUF file's is its own."""
    folder = with_model(name)
    said = [_json(folder / file) for file in (CONFIG, GENERATION_CONFIG)]
    found = {role: set[int]().union(*(_ids(one.get(f"{role}_token_id")) for one in said)) for role in ("bos", "eos")}
    return {role: ids for role, ids in found.items() if ids}


def _json(file: Path) -> dict[str, Any]:
    """The settings of a config, those of its text among them; empty where it cannot be read: `_load` says why."""
    try:
        config = json.loads(file.read_bytes())
        return {**config.get("text_config", {}), **config}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _load(name: str, gguf_file: str | None, options: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        model, report = _read(name, gguf_file, options, dtype)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise InputError(
            f"{name!r} could not be loaded ({_why_not(name, error)}); give a directory with its config.json and "
            "weights, or download it once where there is a network and set HF_HUB_OFFLINE=1, or make a fresh model "
            "with `architecture` and `options`"
        ) from error
    for weight, has, wanted in sorted(report["mismatched_keys"]):
        raise InputError(
            f"the config.json and the weights of {name!r} do not belong together: {weight} is {tuple(has)} in the file "
            f"and {tuple(wanted)} by the config; download both again"
        )
    if lacking := report["missing_keys"]:
        raise InputError(
            f"{name!r} lacks {len(lacking)} weights of a causal language model, such as {min(lacking)}: they would "
            "start at random; give a model that has them"
        )
    _keep_ends(model)
    return model


def _read(
    name: str, gguf_file: str | None, options: dict[str, Any], dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model and the library's report of what was loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if is_adapter(name):
        check_adapters(Path(name))
        model, report = _read(str(base_of(name)), None, options, dtype)
        return with_adapters(model, Path(name)), report
    if (file := gguf_of(name, gguf_file)) is not None:
        config, unknown = gguf_config(file, **options)
        _check_known(unknown, config)
        model, report = load_gguf(file, config, dtype)
        model.generation_config = stop_tokens(file)
        return model, report
    config, unknown = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **options | WITHOUT_CODE)
    _check_known(unknown, config)
    _check_quantisation(config, name)
    check_weights(Path(name))
    read = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with without_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, config=config, **read, **WITHOUT_CODE)
    return loaded


def _check_quantisation(config: PretrainedConfig, name: str) -> None:
    """The library says only in a warning that it does not know one, and reads the rest."""
    from transformers.quantizers.auto import AutoHfQuantizer

    given = getattr(config, "quantization_config", None)
    given = given if given is None or isinstance(given, dict) else given.to_dict()
    if given and "quant_method" in given and not AutoHfQuantizer.supports_quant_method(given):
        method = given["quant_method"]
        raise InputError(
            f"the weights of {name!r} are quantised by {method!r}, which transformers cannot read; {WHOLE}"
        )


def _keep_ends(model: PreTrainedModel) -> None:
    """Into its config, which is what a checkpoint keeps, what the generation config says of a text's end."""
    text, generation = model.config.get_text_config(decoder=True), model.generation_config
    own, said = _ids(text.eos_token_id), _ids(generation.eos_token_id if generation is not None else None)
    if not said <= own:
        text.eos_token_id = sorted(own | said)


def _generation(model: PreTrainedModel) -> dict[str, Any]:
    said = {} if model.generation_config is None else model.generation_config.to_diff_dict()
    return {name: said[name] for name in GENERATION if said.get(name) is not None}


def _ids(said: int | Sequence[int] | None) -> set[int]:
    return set() if said is None else {said} if isinstance(said, int) else set(said)


def _why_not(name: str, error: Exception) -> str:
    folder = Path(name)
    if name.startswith((".", "/", "~")) and not folder.exists():
        return "there is no such directory"
    if isinstance(error, ImportError):
        return f"a package is missing: {_message_of(error)}; where that is for quantised weights, {WHOLE}"
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is never run here"
    if folder.is_dir() and not list(folder.glob("*.safetensors")) and (pickled := sorted(folder.glob("*.bin"))):
        return f"{pickled[0].name} is pickled, which may run code: save it as model.safetensors (`save_pretrained`)"
    return _message_of(error)


def _saved_config(config: dict[str, Any], options: dict[str, Any] | None) -> PretrainedConfig:
    if options:
        raise InputError("options were given beside a whole config: write them into it")
    if "model_type" not in config:
        raise InputError(f"config has no model_type among its {len(config)} keys: give a whole Hugging Face config")
    return _for_model(**config)


def _new_config(
    architecture: str | None, options: dict[str, Any] | None, vocab_size: int | None, block_size: int | None
) -> PretrainedConfig:
    """The family's defaults, the data's sizes and the options, later ones over earlier ones.

    A special id of the defaults would be one of our tokens, and a padding id's embedding would never learn.
    """
    known = _for_model(model_type=str(architecture))
    _check_known([name for name in options or {} if not hasattr(known, name)], known)
    sizes = {"vocab_size": vocab_size, **dict.fromkeys(_limit_names(known), block_size)}
    given = {known.attribute_map.get(name, name): value for name, value in (options or {}).items()}
    special = {name: None for name in SPECIAL if hasattr(known, name)}
    sizes = {known.attribute_map.get(name, name): size for name, size in sizes.items() if size is not None}
    return _for_model(**{"model_type": str(architecture), **special, **sizes, **given})


def _for_model(**config: Any) -> PretrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    architecture = config["model_type"]
    if architecture not in CONFIG_MAPPING_NAMES:
        meant = did_you_mean(difflib.get_close_matches(architecture, CONFIG_MAPPING_NAMES, n=3))
        raise InputError(f"there is no architecture {architecture!r}; {meant or 'such as gpt2, opt, llama'}")
    try:
        return AutoConfig.for_model(**config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{architecture!r} does not take these options: {_message_of(error)}") from error


def _fresh(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **WITHOUT_CODE)
    except ValueError as error:
        raise InputError(f"{config.model_type!r} gives no causal language model: {_message_of(error)}") from error


def _checkpoint_activations(model: PreTrainedModel) -> None:
    enable = (
        getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    )  # the old name
    enable({"use_reentrant": False})


def _check_known(unknown: Sequence[str] | dict[str, Any], config: PretrainedConfig) -> None:
    for name in unknown:
        meant = did_you_mean(difflib.get_close_matches(name, [*config.to_dict(), *config.attribute_map], n=3))
        raise InputError(f"{config.model_type!r} has no option {name!r}; {meant or 'see its config class'}")


def _limit_names(config: PretrainedConfig) -> list[str]:
    return [] if getattr(config, "alibi", False) else [name for name in LIMITS if hasattr(config, name)][:1]


def _longest(config: PretrainedConfig) -> int | None:
    return next((int(getattr(config, name)) for name in _limit_names(config)), None)


def _attention_width(config: PretrainedConfig) -> int:
    if not hasattr(config, "num_attention_heads"):
        raise InputError(f"{config.model_type!r} has no attention heads: its cache is of another kind; choose another")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * config.num_attention_heads * head_size


def _message_of(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 200 else f"{text[:200]}..."
