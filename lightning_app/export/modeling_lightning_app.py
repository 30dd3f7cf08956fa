"""A `Backbone` as a model of the Hugging Face library: the file that an exported directory names in its `auto_map`.

`export` copies it, and the files it needs, into the directory, which then works without this project.
Shapes: B batch, T new positions, P cached ones, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from lightning_app.export.modeling_parts import find, shape
from lightning_app.models.attention import KVCache
from lightning_app.models.backbone import Backbone
from lightning_app.models.registry import build

OUTPUTS = {field.name for field in fields(CausalLMOutputWithPast)}
CACHE = "cache" if "cache" in OUTPUTS else "past_key_values"  # the library's name of it, until its 5.24 the latter

PASSED = ("logits_to_keep", "output_hidden_states", "output_attentions")  # from `generate` to `forward`
OF_THE_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")


class LightningAppConfig(PretrainedConfig):
    """What rebuilds the model.

    Args:
        backbone: the description of the backbone (`models.registry`).
        tied_weights: names of parameters that are another one, whose name stands beside.
        kwargs: sizes and special ids, as other families have them.
    """

    model_type = "lightning_app"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        tied_weights: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone, self.tied_weights = backbone or {}, tied_weights or {}
        super().__init__(**kwargs)


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
        self.backbone = build(config.backbone, find, shape) if backbone is None else backbone
        for module in self.modules():  # all of them lie in the file: loading leaves others without values
            module._non_persistent_buffers_set.clear()
        self._tied_weights_keys = config.tied_weights
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The backbone's own constructor has done it."""

    def get_input_embeddings(self) -> nn.Module:
        return next(module for module in self.modules() if isinstance(module, nn.Embedding))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), and the loss of `labels` (B, T), which are the ids themselves, -100 where none counts.

        Args:
            attention_mask: (B, P + T), 0 on padding, on the left.
            cache: of what came before; `past_key_values` is its other name, and older versions of the library's own.
            use_cache: also of what follows `cache`.
            output_hidden_states: also the input of each block, and the state that the logits are computed from.
            logits_to_keep: of the last positions alone, or of these positions; 0: all.
            kwargs: of the loss, and `return_dict`.

        Raises:
            ValueError: an argument that this model does not have, both names of the cache, or no ids.
        """
        _check_known(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            inputs_embeds = self.backbone.embed(input_ids)
        assert inputs_embeds is not None
        cache = _one_of(cache, past_key_values)
        past = self._past(cache) if use_cache or cache is not None else None
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with self._inputs_of_blocks(bool(wanted)) as inputs:
            last = self.backbone.hidden(inputs_embeds, mask=_mask(attention_mask), cache=self._cache(past)).last
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.backbone.logits(last[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.backbone.vocab_size, **kwargs)
        returned: dict[str, Any] = {CACHE: past, "hidden_states": (*inputs.values(), last) if wanted else None}
        return CausalLMOutputWithPast(loss=loss, logits=logits, **returned)

    @contextmanager
    def _inputs_of_blocks(self, wanted: bool) -> Iterator[dict[int, Tensor]]:
        """What goes into each block; filled by a forward."""
        inputs: dict[int, Tensor] = {}

        def keep(i: int) -> Any:
            def hook(_block: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
                inputs[i] = arguments[0] if arguments else named["hidden_states"]

            return hook

        blocks = enumerate(self.backbone.blocks if wanted else ())
        hooks = [block.register_forward_pre_hook(keep(i), with_kwargs=True) for i, block in blocks]
        try:
            yield inputs
        finally:
            for hook in hooks:
                hook.remove()

    def _past(self, given: DynamicCache | None) -> DynamicCache:
        """An empty one is made anew, as families with sliding windows need one of their own config."""
        if given is not None and given.get_seq_length():
            return given
        model = getattr(self.backbone.core, "model", None)
        return DynamicCache(config=model.config) if isinstance(model, PreTrainedModel) else DynamicCache()

    def _cache(self, past: DynamicCache | None) -> Any:
        """In the form that the backbone knows."""
        if past is None:
            return None
        own = self.backbone.core.new_cache(0)
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
        others = {CACHE: cache, "use_cache": use_cache} | {name: kwargs[name] for name in PASSED if name in kwargs}
        if inputs_embeds is not None and not past:
            return {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, **others}
        new = (next_sequence_length or input_ids.shape[1]) if past else input_ids.shape[1]
        longest = self.backbone.max_length
        if longest is not None and past + new > longest:
            new = max(1, longest // 2) if past else longest
            past, others[CACHE] = 0, None
        mask = None if attention_mask is None else attention_mask[:, -(past + new) :]
        return {"input_ids": input_ids[:, -new:].contiguous(), "attention_mask": mask, **others}


def _check_known(kwargs: dict[str, Any]) -> None:
    """What would be dropped without a word is refused; None and False ask for nothing."""
    for name, value in kwargs.items():
        if name not in OF_THE_LOSS and value is not None and value is not False:
            raise ValueError(f"{name} is not an argument of this model; leave it out")


def _one_of(cache: DynamicCache | None, past_key_values: DynamicCache | None) -> DynamicCache | None:
    """The cache, by whichever of its names it was given."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are one argument: give cache alone")
    return past_key_values if cache is None else cache


def _mask(attention_mask: Tensor | None) -> Tensor | None:
    """As bools; None where nothing is masked."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
