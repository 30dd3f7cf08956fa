"""From a trained backbone to a model of the Hugging Face library: one of its own where the match is exact, else ours.

Shapes: L layers, N units (heads or neurons) of a layer, D width, H heads, K head size, M neurons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Block, Decoder
from lightning_app.models.lora import merged
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import describe, is_description

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel


# Adapters, heads and neurons


def merge_adapters(backbone: Backbone) -> Backbone:
    """The model with its adapters, where there are any, within its matrices."""
    core = backbone.core
    return _with_core(backbone, merged(core)) if isinstance(core, PretrainedLM) and core.lora is not None else backbone


def _with_core(backbone: Backbone, core: Backbone) -> Backbone:
    """Put another language model into what wraps the one that is there."""
    before = backbone.core
    for wrapper in backbone.modules():
        for name, child in wrapper.named_children():
            if child is before:
                setattr(wrapper, name, core)
    return core if backbone is before else backbone


def fold_masks(backbone: Backbone) -> None:
    """Write zeros for what is masked, so that nothing has to be multiplied by 0 any more."""
    for units in backbone.core.units.values():
        units.fold_mask()


def fill_removed(backbone: Backbone) -> None:
    """Bring back, as zeros, what was removed: the model computes what it did, in the shape that it had at first."""
    for units in backbone.core.units.values():
        units.fill_removed()


def removed_units(backbone: Backbone) -> dict[str, int]:
    """How many units are gone, by kind, where some are."""
    return {kind: units.removed for kind, units in backbone.core.units.items() if units.removed}


# Families of the library


def plain_model(backbone: Backbone) -> PreTrainedModel | None:
    """The backbone's weights in a family of the library; None where no family computes exactly the same."""
    if isinstance(backbone, PretrainedLM):
        return None if removed_units(backbone) else backbone.model
    if not isinstance(backbone, Decoder) or backbone.config()["head_gates"]:
        return None
    config = gpt2_config(backbone) or llama_config(backbone)
    if config is None:
        return None
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=backbone.lm_head.weight.dtype).eval()
    weights = _gpt2_weights(backbone) if config.model_type == "gpt2" else _llama_weights(backbone)
    report = model.load_state_dict(weights, strict=False)
    assert not report.unexpected_keys, report
    assert set(report.missing_keys) <= {"lm_head.weight"}, report  # where it is tied
    return model


def uneven_model(backbone: Backbone) -> PreTrainedModel | None:
    """A LLaMA of the library whose layers have lost heads or neurons: their matrices say how many are left, and the
    library could not load it. None for another model."""
    if isinstance(backbone, PretrainedLM) and backbone.model.config.model_type in ("llama", "mistral"):
        return backbone.model
    return None


def gpt2_config(decoder: Decoder) -> Any:
    """The config of a GPT-2 (Radford et al. 2019) that computes the same; None where there is none."""
    options, blocks = decoder.config(), _blocks(decoder)
    as_gpt2 = (options["positions"], options["norm"], options["activation"]) == ("learned", "layernorm", "gelu")
    neurons = {block.mlp.c_fc.out_features for block in blocks}
    heads = {block.attn.heads for block in blocks}
    fits = heads == {options["heads"]} and options["heads"] * options["head_size"] == decoder.width
    if not as_gpt2 or not fits or len(neurons) > 1:
        return None
    from transformers import GPT2Config

    dropout = options["dropout"]
    return GPT2Config(
        **_sizes(options),
        n_positions=decoder.max_length,
        n_embd=decoder.width,
        n_layer=options["layers"],
        n_head=options["heads"],
        n_inner=neurons.pop(),
        activation_function="gelu_new",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )


def llama_config(decoder: Decoder) -> Any:
    """The config of a LLaMA (Touvron et al. 2023, arXiv:2302.13971) that computes the same, if there is one."""
    options, blocks = decoder.config(), _blocks(decoder)
    as_llama = (options["positions"], options["norm"], options["activation"]) == ("rotary", "rmsnorm", "swiglu")
    neurons = {block.mlp.c_proj.in_features for block in blocks}
    heads = {block.attn.heads for block in blocks}
    if not as_llama or len(neurons) > 1 or len(heads) > 1:
        return None
    from transformers import LlamaConfig

    heads_left = heads.pop()
    return LlamaConfig(
        **_sizes(options),
        max_position_embeddings=decoder.max_length,
        hidden_size=decoder.width,
        intermediate_size=neurons.pop(),
        num_hidden_layers=options["layers"],
        num_attention_heads=heads_left,
        num_key_value_heads=heads_left,
        head_dim=options["head_size"],
        hidden_act="silu",
        rms_norm_eps=1e-6,
        attention_bias=options["bias"],
        mlp_bias=options["bias"],
        attention_dropout=options["dropout"],
    )


def _sizes(options: dict[str, Any]) -> dict[str, Any]:
    sizes = {"vocab_size": options["vocab_size"], "tie_word_embeddings": options["tie_weights"]}
    return sizes | {"bos_token_id": None, "eos_token_id": None}  # the families' own lie outside of a small vocabulary


def _blocks(decoder: Decoder) -> list[Block]:
    return [module for module in decoder.modules() if isinstance(module, Block)]


def _gpt2_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Our names are GPT-2's; its matrices are (inputs, outputs), and biases that we leave out are 0."""
    weights = {}
    for name, module in decoder.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and name != "lm_head":
            weight = module.weight.detach()
            weights[f"{name}.weight"] = weight.t().contiguous() if isinstance(module, nn.Linear) else weight
            size = module.weight.shape[0]
            weights[f"{name}.bias"] = weight.new_zeros(size) if module.bias is None else module.bias.detach()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            weights[f"{name}.weight"] = module.weight.detach()
    return weights


def _llama_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Queries, keys and values have a matrix each, and so have gates and values of the feed-forward layer."""
    weights = {
        "model.embed_tokens.weight": decoder.get_parameter("transformer.wte.weight"),
        "model.norm.weight": decoder.get_parameter("transformer.ln_f.weight"),
        "lm_head.weight": decoder.lm_head.weight,
    }
    for i, block in enumerate(_blocks(decoder)):
        at = f"model.layers.{i}"
        weights[f"{at}.input_layernorm.weight"] = block.get_parameter("ln_1.weight")
        weights[f"{at}.post_attention_layernorm.weight"] = block.get_parameter("ln_2.weight")
        weights |= _pieces(block.attn.c_attn, [f"{at}.self_attn.{x}_proj" for x in "qkv"])
        weights |= _pieces(block.attn.c_proj, [f"{at}.self_attn.o_proj"])
        weights |= _pieces(block.mlp.c_fc, [f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"])
        weights |= _pieces(block.mlp.c_proj, [f"{at}.mlp.down_proj"])
    return {name: tensor.detach() for name, tensor in weights.items()}


def _pieces(matrix: nn.Linear, names: list[str]) -> dict[str, Tensor]:
    """A fused matrix cut by its outputs."""
    pieces: dict[str, Tensor] = {}
    for kind, parameter in matrix.named_parameters():
        cut = parameter.chunk(len(names))
        pieces |= {f"{name}.{kind}": piece.contiguous() for name, piece in zip(names, cut, strict=True)}
    return pieces


# Our own


def own_model(backbone: Backbone) -> PreTrainedModel:
    """The backbone as it is, in the class whose source goes into the directory."""
    from lightning_app.export.modeling_lightning_app import LightningAppConfig, LightningAppForCausalLM

    ties = {f"backbone.{name}": f"backbone.{other}" for name, other in tied(backbone).items()}
    config = LightningAppConfig(
        backbone=described(backbone),
        tied_weights=ties,
        vocab_size=backbone.vocab_size,
        hidden_size=backbone.width,
        num_hidden_layers=_layers(backbone.core),
        max_position_embeddings=backbone.max_length,
        tie_word_embeddings=bool(ties),
    )
    return LightningAppForCausalLM(config, backbone).eval()


def tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are another one, whose name stands beside."""
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    every = model.named_parameters(remove_duplicate=False)
    return {name: names[id(p)] for name, p in every if names[id(p)] != name}


def described(backbone: Backbone) -> dict[str, Any]:
    """`describe`, without what belongs to the machine that it was trained on."""
    return _without_machine(describe(backbone))


def _without_machine(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_machine(one) for one in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _without_machine(one) for key, one in value.items()}
    if is_description(changed):
        here = {"path": None, "gradient_checkpointing": False}  # vectors in a file of one's own; training alone
        options = changed["options"]
        changed["options"] = options | {key: off for key, off in here.items() if key in options}
    return changed


def _layers(backbone: Backbone) -> int:
    if isinstance(backbone, PretrainedLM):
        return int(backbone.model.config.get_text_config(decoder=True).num_hidden_layers)
    return int(backbone.config()["layers"])
