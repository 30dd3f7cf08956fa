"""`python main.py generate`: continue a prompt, streaming to the terminal, or a file of prompts, in batches."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.generation import GenerationOptions
from lightning_app.serving.before import Before
from lightning_app.serving.prompts import answers_as_completed, in_order, read_prompts, write_answers
from lightning_app.serving.streaming import TextStream
from lightning_app.training import arguments
from lightning_app.training.module import LanguageModule
from lightning_app.utf8 import as_text


def continue_text(
    prompt: str | Sequence[int],
    module: LanguageModule,
    tokenizer: Tokenizer,
    options: GenerationOptions | None = None,
    *,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the continuation of `prompt` piece by piece, each as soon as its characters are whole.

    Args:
        prompt: its text, or its ids; an empty text stands for the beginning of a document.
        stop: the text ends before the first of these.
    """
    options = options or GenerationOptions()
    given = tokenizer.prompt(prompt) if isinstance(prompt, str) else list(prompt)
    stream = TextStream(
        tokenizer,
        max_new_tokens=options.max_new_tokens,
        stop=stop,
        ends=module.end_ids,
        continues=tokenizer.goes_on(given),
    )
    ids = torch.tensor([given], device=module.device)
    for token in module.generate(ids, options, eot=module.end_ids):
        if piece := stream.push(int(token)):
            yield piece
        if stream.finish_reason:
            return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py generate", description=__doc__, allow_abbrev=False)
    arguments.add_model(parser)
    parser.add_argument("--prompt", type=as_text, default="", help="the text to continue; empty: a new document")
    parser.add_argument(
        "--prompts", help="a file of prompts instead: one in each line, or .jsonl with `prompt` and options of its own"
    )
    parser.add_argument(
        "--output", help="where the answers to a file of prompts go, as .jsonl; the terminal without it"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="prompts of a file that are continued at once")
    parser.add_argument("--num_samples", type=int, default=1, help="of each prompt; sample i draws with SEED + i")
    arguments.add_sampling(parser)
    return parser


def command(argv: Sequence[str]) -> None:
    """Parse the arguments and print the samples as they are drawn."""
    args = _parser().parse_args(argv)
    arguments.sampling(args)  # a value that makes no sense is said before the model is read
    if args.num_samples < 1 or args.batch_size < 1:
        raise InputError(f"num_samples is {args.num_samples} and batch_size {args.batch_size}: at least 1 of each")
    if args.prompts is None and args.output is not None:
        raise InputError(f"output is {args.output}, but there are no prompts: give a file of them (--prompts)")
    if args.prompts is not None and args.prompt:
        raise InputError(f"prompt is {args.prompt!r} and prompts {args.prompts}: give one of them")
    rows = read_prompts(Path(args.prompts)) if args.prompts is not None else []
    _, module, tokenizer = arguments.load(args)
    options, stop = arguments.sampling(args, module.backbone)
    if rows:
        answers = answers_as_completed(
            rows, module, tokenizer, options, stop=stop, num_samples=args.num_samples, batch_size=args.batch_size
        )
        if args.output is not None:
            write_answers(answers, Path(args.output))
            print(f"answers: {args.output}")
            return
        for answer in in_order(answers):
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    before = Before.prompt(args.prompt, module, tokenizer)
    for i in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {i + 1}, seed {args.seed + i}")
        print(args.prompt, end="", flush=True)
        own = replace(options, seed=options.seed + i)
        for piece in continue_text(before.put(args.prompt), module, tokenizer, own, stop=stop):
            print(piece, end="", flush=True)
        print()
    if before.documents:
        print(f"found in {', '.join(before.documents)}", file=sys.stderr)
