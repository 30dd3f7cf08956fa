"""LightningModules: what is trained."""

from lightning_app.modules.art_gpt2 import ARTGPT2, ARTRegularizer
from lightning_app.modules.article_gpt import ArticleGPT
from lightning_app.modules.base import LanguageModule, Outputs, Regularizer
from lightning_app.modules.causal_lm import CausalLM
from lightning_app.modules.varda_gpt import VardaGPT

__all__ = [
    "ARTGPT2",
    "ARTRegularizer",
    "ArticleGPT",
    "CausalLM",
    "LanguageModule",
    "Outputs",
    "Regularizer",
    "VardaGPT",
]
