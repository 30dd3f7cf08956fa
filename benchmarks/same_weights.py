"""The scratch Decoder's weights in other libraries' models, so that all sides compute the same."""

from __future__ import annotations

import torch
from torch import nn

from lightning_app.models.decoder import Decoder

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # HF's Conv1D


def huggingface_gpt2(decoder: Decoder, *, dropout: float) -> nn.Module:
    """GPT2LMHeadModel with the Decoder's weights; everything else is HF's default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = decoder.config()
    config = GPT2Config(
        vocab_size=c["vocab_size"],
        n_positions=c["block_size"],
        n_embd=c["embedding_dim"],
        n_layer=c["layers"],
        n_head=c["heads"],
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    model.load_state_dict({n: t.T if n.endswith(TRANSPOSED) else t for n, t in decoder.state_dict().items()})
    return model


def litgpt_gpt(decoder: Decoder) -> nn.Module:
    """litgpt's GPT with the weights of a Decoder that has rotary positions and an output matrix of its own."""
    from litgpt.config import Config
    from litgpt.model import GPT

    c = decoder.config()
    config = Config(
        block_size=c["block_size"],
        vocab_size=c["vocab_size"],
        padded_vocab_size=c["vocab_size"],
        n_layer=c["layers"],
        n_head=c["heads"],
        n_embd=c["embedding_dim"],
        rotary_percentage=1.0,
        parallel_residual=False,
        gelu_approximate="tanh",
    )
    model = GPT(config)
    model.load_state_dict({_litgpt_name(n): t for n, t in decoder.state_dict().items()})
    return model


def _litgpt_name(name: str) -> str:
    renamed = {"ln_1": "norm_1", "ln_2": "norm_2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.proj"}
    renamed |= {"mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
    for ours, theirs in renamed.items():
        name = name.replace(ours, theirs)
    return name


def seeded_decoder(seed: int = 0, **options: object) -> Decoder:
    """The same weights in every process."""
    torch.manual_seed(seed)
    return Decoder(**options)  # type: ignore[arg-type]
