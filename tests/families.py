"""A tiny random model of each family, saved with a tokenizer of its kind. Nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import tokenizers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
WIDTH = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
USUAL = {**WIDTH, "intermediate_size": 64}
GROUPED = {**USUAL, "num_key_value_heads": 2}
POSITIONS = 96


@dataclass(frozen=True)
class Family:
    """How its models are built, which tokenizer and chat template they come with."""

    model_type: str
    tokenizer: str
    options: dict[str, Any] = field(default_factory=dict)
    template: str | None = None  # None: it comes without one


FAMILIES = {
    "GPT-2": Family("gpt2", "gpt2", {"n_layer": 2, "n_embd": 32, "n_head": 4}),
    "OPT": Family("opt", "opt", {**WIDTH, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "BLOOM": Family("bloom", "bloom", {"n_layer": 2, "hidden_size": 32, "n_head": 4}),
    "Pythia": Family("gpt_neox", "pythia", USUAL),
    "LLaMA": Family("llama", "llama", GROUPED, INST),
    "Qwen2": Family("qwen2", "qwen", GROUPED, CHATML),
    "Qwen3": Family("qwen3", "qwen", {**GROUPED, "head_dim": 12}, CHATML),
    "Mistral": Family("mistral", "mistral", {**GROUPED, "sliding_window": 64}, INST),
    "Gemma": Family("gemma", "gemma", {**GROUPED, "head_dim": 12}, TURNS),
    "Phi": Family("phi", "phi", USUAL),
}


def save(name: str, folder: Path) -> Path:
    """Its directory: config, weights, tokenizer and chat template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, tokenizer = FAMILIES[name], tokenizers.made(FAMILIES[name].tokenizer)
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eot, "pad_token_id": tokenizer.pad}
    positions = {} if name == "BLOOM" else {"max_position_embeddings": POSITIONS}
    sizes = {"vocab_size": tokenizer.vocab_size + 5, "initializer_range": 0.2, **positions, **ids}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.model_type, **{**sizes, **family.options})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if family.template is not None:
        (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    return tokenizers.save(family.tokenizer, folder)


def write_chats(path: Path, n: int) -> None:
    """Asked for a number, the assistant says a word three times."""
    words = ("memory", "model", "text", "loss", "token", "run", "head")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i % 7}"},
                {"role": "assistant", "content": " ".join([words[i % 7]] * 3)},
            ]
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
