"""A mistake in a config or a command line is one line with the nearest right one, before anything is imported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lightning_app.errors import InputError
from lightning_app.schema import find
from lightning_app.schema.find import check_config, check_words
from lightning_app.yaml_file import read_yaml

CONFIGS = Path(__file__).parents[2] / "configs"
MAIN = CONFIGS / "article_gpt.yaml"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_shipped_has_no_mistake(path: Path):
    check_config(read_yaml(path), path)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The main config with another value, or one more key."""
    tree: dict[str, Any] = copy.deepcopy(read_yaml(MAIN))
    *parts, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    inner: Any = tree
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return tree


OPTIMIZER = "model.init_args.optimizer.1"
PRETRAINED = {"class_path": "PretrainedLM", "init_args": {"pretrained": None, "options": {"n_layer": 2}}}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.max_step", 1, "no option trainer.max_step: did you mean trainer.max_steps?"),
        ("trainer.max_steps", "many", "trainer.max_steps is 'many'; it must be a whole number"),
        ("trainer.max_steps", [1], "trainer.max_steps is [1]; it must be a whole number"),
        ("trainer.max_steps", -3, "trainer.max_steps is -3; it must be at least -1"),
        ("dataloader", {"batch_size": 1}, "no option dataloader: did you mean data.dataloader?"),
        ("data.train", {"pth": "x"}, "no option data.train.pth: did you mean data.train.path?"),
        ("data.batch_size", 3, "no option data.batch_size: did you mean data.dataloader.batch_size?"),
        ("model.class_path", "ArticleGPTT", "'ArticleGPTT', which is no class here: did you mean ArticleGPT?"),
        ("model.init_args.lr", 1, "no option model.init_args.lr: did you mean model.optimizer.lr?"),
        ("model.init_args.backbone.n_layer", 3, "backbone.n_layer: did you mean model.backbone.layers?"),
        (f"{OPTIMIZER}.class_path", "torch.optim.AdamWW", "which is no class here: did you mean AdamW?"),
        (f"{OPTIMIZER}.clas_path", "SGD", f"{OPTIMIZER}.clas_path: did you mean model.optimizer.1.class_path?"),
        (f"{OPTIMIZER}.init_args.lr", "big", f"{OPTIMIZER}.init_args.lr is 'big'; it must be a number"),
        (f"{OPTIMIZER}.init_args.etas", 1, "did you mean model.optimizer.1.betas?"),
        ("trainer.callbacks.0.init_args.patience", "3x", "callbacks.0.init_args.patience is '3x'; it must be a whole"),
        ("model.init_args.scheduler.init_args.min_ratio", "many", "min_ratio is 'many'; it must be a number"),
        ("trainer.callbacks.0.class_path", "EarlyStoping", "did you mean EarlyStopping?"),
    ],
)
def test_the_nearest_right_one_is_named(key: str, value: Any, said: str):
    with pytest.raises(InputError) as refused:
        check_config(changed(key, value), MAIN)
    assert said in str(refused.value)
    assert str(refused.value).endswith(f" (in {MAIN})")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.class_path", "mine.MyModel"),  # which is imported later
        ("model.class_path", "UnigramBaseline"),  # of an idea of the user's
        ("model.class_path", "lightning_app.modules.ArticleGPT"),  # where it stood before
        ("trainer.max_steps", "300"),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.callbacks+", {"class_path": "Samples", "init_args": {"prompts": ["a"]}}),
        (f"{OPTIMIZER}.init_args.lr", "4e-3"),
        ("data.vocab_size", None),
        ("model", {"class_path": "CausalLM", "init_args": {"backbone": PRETRAINED}}),
    ],
)
def test_what_a_run_takes_is_not_refused(key: str, value: Any):
    check_config(changed(key, value), MAIN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--max_steps 3", "no option --max_steps: did you mean trainer.max_steps?"),
        ("--trainer.max_step=3", "no option --trainer.max_step: did you mean trainer.max_steps?"),
        ("--trainer.max_steps many", "--trainer.max_steps is 'many'; it must be a whole number"),
        ("--model.lr 3", "no option --model.lr: did you mean model.optimizer.lr?"),
        ("--model.backbone.n_layer 3", "did you mean model.backbone.layers?"),
    ],
)
def test_a_command_line_is_looked_at_too(words: str, said: str):
    with pytest.raises(InputError, match=r"there is no option|it must be") as refused:
        check_words(words.split())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        "--trainer.max_steps 3 --model.optimizer.lr=1e-3 --config a.yaml --print_config",
        "--model.init_args.backbone.init_args.layers 3 --model.backbone.options.n_layer 2",
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.patience 3 --trainer.callbacks.0.patience 3",
        "--trainer trainer.yaml --model.help ArticleGPT --trainer.logger false --data.test null",
        "--model.extensions+ NGramReader --model.extensions.order 4",
    ],
)
def test_a_command_line_that_a_run_takes(words: str):
    check_words(words.split())


def test_nothing_is_known_of_options_of_a_users_class():
    check_words(["--model.backbone.width", "3"], {"model.backbone": "Mine"})
    check_words(["--model=mine.Model", "--model.width=3", "--model.init_args.width", "3"])
    check_words(["--model.optimizer", "mine.Optimizer", "--model.optimizer.speed", "3"])
    with pytest.raises(InputError, match=r"no option --model\.width"):
        check_words(["--model.width", "3"], {"model.backbone": "Mine"})


def test_without_the_schema_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(find, "schema", lambda: None)
    check_config({"trainer": {"max_step": 3}}, MAIN)
    check_words(["--max_steps", "3"])
