"""LightningModules: what is trained."""

from lightning_app.modules.article_gpt import ArticleGPT
from lightning_app.modules.base import LanguageModule, Outputs, Regularizer

__all__ = ["ArticleGPT", "LanguageModule", "Outputs", "Regularizer"]
