"""ModelCopy: the moving average of a model, which follows it through surgery."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_app.models.backbone import Backbone
from lightning_app.models.registry import follow_shape


class ModelCopy(AveragedModel):
    """torch's average of the weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, arXiv:1703.01780).

    Of a backbone, or of a module that has one. Buffers are not averaged: they count and store. As a part of a module it
    moves with that between devices, and is in its checkpoints. The formula is given, as torch's two differ in rounding.
    """

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Take the shape that the model has now: its heads, neurons and buffers. What comes back has its weights."""
        for ours, theirs in zip(cores(self.module), cores(model), strict=True):
            follow_shape(ours, theirs)
        own = dict(self.module.named_buffers())
        for name, buffer in model.named_buffers():
            if name not in own or own[name].shape != buffer.shape:
                parent, _, leaf = name.rpartition(".")
                self.module.get_submodule(parent)._buffers[leaf] = buffer.detach().clone()

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """Follow it, and take all that is not averaged: what is not trained, and buffers."""
        self.follow(model)
        trained, own = trained_in(model), self.module.state_dict(keep_vars=True)
        for name, x in model.state_dict(keep_vars=True).items():
            if name not in trained and isinstance(x, torch.Tensor):
                own[name].data.copy_(x.data)


def cores(module: nn.Module) -> list[Backbone]:
    """The innermost backbones in a module: its model, then the copies of it that extensions keep."""
    return [part for part in module.modules() if isinstance(part, Backbone) and part.core is part]


def trained_in(module: nn.Module) -> set[str]:
    """Names of trained parameters; one that is tied has several."""
    return {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
