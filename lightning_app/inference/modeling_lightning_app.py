"""A `Backbone` as a model of the Hugging Face library: the file that an exported directory names in its `auto_map`.

`export` copies it, and the files it needs, into the directory, which then works without this project.
Shapes: B batch, T new positions, P cached ones, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lightning_app.inference.modeling_parts import PARTS
from lightning_app.models.attention import KVCache
from lightning_app.models.backbone import Backbone
from lightning_app.models.heads import Kind, units_of
from lightning_app.models.heads.attention_heads import innermost

OUTPUTS = {field.name for field in fields(CausalLMOutputWithPast)}
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"  # the library's name of it, until its 5.24 the latter


class LightningAppConfig(PretrainedConfig):
    """What rebuilds the model.

    Args:
        backbone: class and arguments of the backbone, nested where one holds another.
        layouts: which heads and neurons are left, by kind.
        tied_weights: names of parameters that are another one, whose name stands beside.
        kwargs: sizes and special ids, as other families have them.
    """

    model_type = "lightning_app"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        layouts: dict[Kind, Any] | None = None,
        tied_weights: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone, self.layouts, self.tied_weights = backbone or {}, layouts or {}, tied_weights or {}
        super().__init__(**kwargs)


def rebuilt(described: Any) -> Any:
    """The inverse of `rebuilt_by`: what a class and its arguments in plain types describe; all else as it is."""
    if isinstance(described, list):
        return [rebuilt(one) for one in described]
    if isinstance(described, Mapping) and described.keys() == {"class_path", "init_args"}:
        arguments = {name: rebuilt(value) for name, value in described["init_args"].items()}
        return PARTS[described["class_path"]](**arguments)
    return described


class SharedCache(KVCache):
    """Hugging Face's cache where ours is expected, so that beam search may reorder it."""

    def __init__(self, past: DynamicCache):
        self.past, self.length = past, int(past.get_seq_length())

    def extend(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        return self.past.update(k_BHTK, v_BHTK, layer)


class LightningAppForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with whatever backbone the config describes.

    Args:
        config: see `LightningAppConfig`.
        backbone: already made and loaded; None: made anew from the config.
    """

    config_class = LightningAppConfig

    def __init__(self, config: LightningAppConfig, backbone: Backbone | None = None):
        super().__init__(config)
        self.backbone = rebuilt(config.backbone) if backbone is None else backbone
        with torch.device("cpu"):  # which units there are must be known while the weights are still without values
            for kind, layout in config.layouts.items():
                units_of(self.backbone, kind).set_layout(layout)
        for module in self.modules():  # all of them lie in the file: loading leaves others without values
            module._non_persistent_buffers_set.clear()
        self._tied_weights_keys = config.tied_weights
        self._keep_in_fp32_modules_strict = ["bank"]  # stored vectors are searched in float32
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone's own constructor has done it."""

    def get_input_embeddings(self) -> nn.Module:
        return next(module for module in self.modules() if isinstance(module, nn.Embedding))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the loss of `labels` (B, T), which are the ids themselves, -100 where none counts.

        Args:
            attention_mask: (B, P + T), 0 on padding.
            cache: of what came before; `past_key_values` is its other name, and older versions of the library's own.
            use_cache: also of what follows `cache`.
            logits_to_keep: of the last positions alone; 0: all.
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.backbone.embed(input_ids)
        cache = _one_of(cache, past_key_values)
        past = self._past(cache) if use_cache or cache is not None else None
        states = self.backbone.hidden(inputs_embeds, mask=_mask(attention_mask), cache=self._cache(past))
        logits = self.backbone.logits(states.last[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.backbone.vocab_size, **kwargs)
        returned: dict[str, Any] = {CACHE: past}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **returned)

    def _past(self, given: DynamicCache | None) -> DynamicCache:
        """An empty one is made anew, as families with sliding windows need one of their own config."""
        if given is not None and given.get_seq_length():
            return given
        model = getattr(innermost(self.backbone), "model", None)
        return DynamicCache(config=model.config) if isinstance(model, PreTrainedModel) else DynamicCache()

    def _cache(self, past: DynamicCache | None) -> Any:
        """In the form that the backbone knows."""
        if past is None:
            return None
        own = innermost(self.backbone).new_cache(0)
        return SharedCache(past) if isinstance(own, KVCache) else type(own)(past)  # type: ignore[call-arg]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: DynamicCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The new tokens. A text that has outgrown the model goes on from its newer half, with an empty cache."""
        cache = _one_of(cache, past_key_values)
        past = int(cache.get_seq_length()) if cache is not None else 0
        others = {CACHE: cache, "use_cache": use_cache}
        if inputs_embeds is not None and not past:
            return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, **others}
        new = (next_sequence_length or input_ids.shape[1]) if past else input_ids.shape[1]
        longest = self.backbone.max_length
        if longest is not None and past + new > longest:
            new = max(1, longest // 2) if past else longest
            past, others[CACHE] = 0, None
        mask = None if attention_mask is None else attention_mask[:, -(past + new) :]
        return {"input_ids": input_ids[:, -new:].contiguous(), "attention_mask": mask, **others}


def _one_of(cache: DynamicCache | None, past_key_values: DynamicCache | None) -> DynamicCache | None:
    """The cache, by whichever of its names it was given."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are one argument: give cache alone")
    return past_key_values if cache is None else cache


def _mask(attention_mask: Tensor | None) -> Tensor | None:
    """As bools; None where nothing is masked."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
