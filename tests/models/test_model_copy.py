"""ModelCopy: by the formula, and in the shape that the model has."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_app.art.extension import ARTRegularizer
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import KNNReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.model_copy import ModelCopy, cores, trained_in
from lightning_app.plasticity.kinds import units_of

IDS = torch.arange(8)[None]


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocab_size=50, embedding_dim=16, layers=2, heads=4, block_size=8).eval()


def test_weights_are_averaged_after_the_first_update():
    model = decoder()
    copied = ModelCopy(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    before = model.lm_head.weight.detach().clone()
    for _ in range(2):  # the first one takes the weights themselves
        copied.update_parameters(model)
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
    torch.testing.assert_close(copied.module.lm_head.weight, before + 0.25)


def test_it_follows_removed_and_regrown_heads():
    model = decoder()
    copied, heads = ModelCopy(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)), units_of(model, "heads")
    dead = torch.zeros(heads.shape, dtype=torch.bool)
    dead[0, 1:3] = True
    heads.remove(dead, keep=True)
    copied.follow(model)
    assert torch.equal(copied.module(IDS), model(IDS))
    assert copied.module.transformer.h[0].attn.heads == 2
    heads.regrow(0, 1, "undo", None)
    copied.follow(model)
    assert copied.module.transformer.h[0].attn.heads == 3
    assert torch.equal(copied.module(IDS), model(IDS))


def test_it_takes_over_buffers_of_any_size_and_frozen_weights_but_no_trained_ones():
    model = decoder()
    model.register_buffer("seen", torch.zeros(1))
    copied = ModelCopy(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    model.seen = torch.ones(3)
    model.transformer.wpe.requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    trained = trained_in(model)
    assert "lm_head.weight" in trained
    assert "transformer.wpe.weight" not in trained
    copied.take_over(model)
    for name, x in model.state_dict().items():
        assert torch.equal(copied.module.state_dict()[name], x) == (name not in trained), name


def test_the_cores_of_a_module_are_its_model_and_then_each_copy():
    arts = [ARTRegularizer(rehearsal=0.1, name=name) for name in ("a", "b")]
    module = VardaGPT(decoder(), [KNNReader(memory_size=8)], extensions=list(arts))
    copies = [art.average.module.core for art in arts if art.average is not None]
    assert cores(module) == [module.backbone.backbone, *copies]
    assert module.backbones() == cores(module)
