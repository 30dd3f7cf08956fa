"""Attention heads and neurons of any backbone: gates, masks, removal, regrowth."""

from lightning_app.models.heads.attention_heads import AttentionHeads, Neurons, cut_units, units_of
from lightning_app.models.heads.units import Kind, Units

__all__ = ["AttentionHeads", "Kind", "Neurons", "Units", "cut_units", "units_of"]
