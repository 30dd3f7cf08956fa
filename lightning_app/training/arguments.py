"""The arguments that the commands around a trained model share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.generation import SAMPLING, GenerationOptions, use_column_major_weights
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checks import say_what_draws_otherwise
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.module import LanguageModule
from lightning_app.utf8 import as_text

TOP_K = 50  # what a command samples among if nothing is said: small models have long, poor tails


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    parser.add_argument(
        "--ckpt_path", required=True, help="a checkpoint of a fit; best or last: the newest in RUNS_DIR"
    )
    parser.add_argument("--runs_dir", default="runs", help="where best and last are looked for, in all folders below")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and where it runs."""
    add_checkpoint(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")


def add_chat_template(parser: argparse.ArgumentParser) -> None:
    """How conversations are written."""
    parser.add_argument(
        "--chat_template", help="a file in Jinja; without it that of the model's training, or of its tokenizer"
    )


def chat_template(args: argparse.Namespace) -> ChatTemplate | None:
    """The one that is given. Raises InputError where it cannot be read: before a model is."""
    return ChatTemplate.read(args.chat_template) if args.chat_template else None


def load(args: argparse.Namespace) -> tuple[Path, LanguageModule, Tokenizer]:
    """The checkpoint that is meant, its module on the device, ready to generate, and its tokenizer.

    Raises:
        InputError: no such checkpoint or device.
    """
    path = find_checkpoint(args.ckpt_path, Path(args.runs_dir))
    module, tokenizer = load_module(path)
    try:
        module.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {args.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    use_column_major_weights(module.backbone)
    say_what_draws_otherwise(module.backbone.core, tokenizer)
    return Path(path), module, tokenizer


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a text is continued; the defaults are the model's own, else those of `GenerationOptions`, but for `TOP_K`."""
    defaults, own = GenerationOptions(), "; without it as the model's source says, else"
    add: Any = parser.add_argument
    add("--max_new_tokens", type=int, default=defaults.max_new_tokens)
    add("--temperature", type=float, help=f"0 is greedy{own} {defaults.temperature}")
    add("--top_k", type=int, help=f"only among the k most likely tokens; 0: all{own} {TOP_K}")
    add("--top_p", type=float, help=f"nucleus sampling{own} {defaults.top_p}")
    add("--min_p", type=float, help=f"only tokens with this share of the likeliest's probability{own} {defaults.min_p}")
    add(
        "--repetition_penalty",
        type=float,
        help=f"above 1: what was said is less likely{own} {defaults.repetition_penalty}",
    )
    add("--seed", type=int, default=defaults.seed, help="of the draws")
    add("--stop", type=as_text, action="append", default=[], help="end before this text; may be given several times")


def sampling(args: argparse.Namespace, backbone: Backbone | None = None) -> tuple[GenerationOptions, list[str]]:
    """The options and the stop strings.

    Args:
        backbone: what its source says of sampling stands in for what is not given.

    Raises:
        InputError: a value that makes no sense.
    """
    if "" in args.stop:
        raise InputError(f"stop is {args.stop}: an empty text would end every answer at once")
    own = {} if backbone is None else backbone.core.sampling
    given = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    said = {"top_k": TOP_K, **own, **given}
    said["top_k"] = said["top_k"] or None
    return GenerationOptions(max_new_tokens=args.max_new_tokens, seed=args.seed, **said), args.stop
