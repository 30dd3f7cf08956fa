"""An optimizer named in YAML has its own class's defaults; one that is not named keeps this project's."""

from typing import Any

import pytest
from jsonargparse import ArgumentParser, Namespace

from lightning_app.class_defaults import take_own_defaults
from lightning_app.training.compositions import ArticleGPT

KEY = "model.init_args.optimizer"


def parsed(*words: str) -> Namespace:
    """The options after parsing, the defaults of named classes taken."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ArticleGPT, "model")
    model = ["--model", "ArticleGPT", "--model.init_args.backbone.vocab_size=9"]
    options = parser.parse_args([*model, *(f"--{KEY}{word}" for word in words)])
    given: dict[str, Any] = {f"{KEY}{word}".partition("=")[0]: None for word in words}
    take_own_defaults(options, given)
    return options[KEY].init_args


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), {"lr": 1e-3, "weight_decay": 0.1, "fused": True}),
        ((".init_args.lr=3e-4",), {"lr": 3e-4, "weight_decay": 0.1, "fused": True}),
        (("=torch.optim.Adam",), {"lr": 1e-3, "weight_decay": 0, "fused": None}),
        ((".class_path=torch.optim.Adam", ".init_args.weight_decay=0.2"), {"lr": 1e-3, "weight_decay": 0.2}),
        (("=torch.optim.AdamW", ".init_args.lr=3e-4"), {"lr": 3e-4, "weight_decay": 0.01, "fused": None}),
        (("=torch.optim.RMSprop",), {"lr": 1e-2, "weight_decay": 0, "momentum": 0}),
    ],
)
def test_defaults_of_the_optimizer(words: tuple[str, ...], wanted: dict[str, Any]):
    found = parsed(*words)
    assert {name: found[name] for name in wanted} == wanted
