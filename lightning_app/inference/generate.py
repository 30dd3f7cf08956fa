"""`python main.py generate`: continue a prompt, streaming to the terminal, or a file of prompts, in batches."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lightning_app.errors import InputError
from lightning_app.inference import arguments
from lightning_app.inference.batching import Batcher, Job
from lightning_app.inference.streaming import TextStream
from lightning_app.models.generation import GenerationOptions
from lightning_app.modules.base import LanguageModule
from lightning_app.text.files import writing_into
from lightning_app.text.tokenizer import Tokenizer
from lightning_app.utf8 import as_text, decode

# What a line of a file of prompts may say beside its prompt: options of its own.
OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def continue_text(
    prompt: str,
    module: LanguageModule,
    tokenizer: Tokenizer,
    options: GenerationOptions | None = None,
    *,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yield the continuation of `prompt` piece by piece, each as soon as its characters are whole.

    Args:
        prompt: an empty one stands for the beginning of a document.
        stop: the text ends before the first of these.
    """
    options = options or GenerationOptions()
    stream = TextStream(tokenizer, max_new_tokens=options.max_new_tokens, stop=stop)
    ids = torch.tensor([prompt_ids(prompt, tokenizer)], device=module.device)
    for token in module.generate(ids, options, eot=tokenizer.eot):
        if piece := stream.push(int(token)):
            yield piece
        if stream.finish_reason:
            return


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """At least one token: an empty prompt stands for the beginning of a document."""
    return tokenizer.encode(prompt) or [tokenizer.eot]


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts of a file: each line of a text, or the objects with a `prompt` of a `.jsonl` file.

    Raises:
        InputError: no such file, none in it, or a line that is no such object.
    """
    try:
        content = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} is no readable file of prompts: {error}") from None
    lines = content.replace("\r\n", "\n").split("\n")  # splitlines knows further ends, which JSON may hold
    if path.suffix.lower() != ".jsonl":
        rows = [{"prompt": line} for line in lines if line.strip()]
    else:
        rows = [_row(line, f"{path}, line {i + 1}") for i, line in enumerate(lines) if line.strip()]
    if not rows:
        raise InputError(f"{path} holds no prompt: give one in each line")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from None
    if not (isinstance(row, dict) and isinstance(row.get("prompt"), str)):
        raise InputError(f'{where} must be an object such as {{"prompt": "..."}}, not {line[:40]!r}')
    return row


def continue_all(
    rows: Sequence[dict[str, Any]],
    module: LanguageModule,
    tokenizer: Tokenizer,
    options: GenerationOptions,
    *,
    stop: Sequence[str] = (),
    num_samples: int = 1,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Each row, `num_samples` times, with `text`, `finish_reason`, `tokens`, `seed`; in their order, as they end.

    Sample i draws with seed + i, each prompt with the same seeds: a text is that of `continue_text`.

    Raises:
        InputError: an option of a row that makes no sense.
    """
    batcher = Batcher(module, tokenizer, batch_size=batch_size)
    results = [(row, _options(row, options, i), _Result()) for row in rows for i in range(num_samples)]
    for row, own, result in results:
        batcher.waiting.append(Job(prompt_ids(row["prompt"], tokenizer), own, stop, result.add))
    for row, own, result in results:
        while result.finish_reason is None:
            batcher.admit()
            batcher.step()
        said = {"text": result.text, "finish_reason": result.finish_reason, "tokens": result.tokens, "seed": own.seed}
        yield {**row, **said}


def _options(row: dict[str, Any], options: GenerationOptions, sample: int) -> GenerationOptions:
    given = {name: row[name] for name in OPTIONS if name in row}
    try:
        own = replace(options, **given)
        return replace(own, seed=own.seed + sample)
    except TypeError as error:
        raise InputError(f"the options {given} of the prompt {row['prompt'][:40]!r} are no numbers: {error}") from None


class _Result:
    """Collects what a job says."""

    def __init__(self) -> None:
        self.text, self.tokens = "", 0
        self.finish_reason: str | None = None

    def add(self, piece: str, finish_reason: str | None) -> None:
        self.text += piece
        self.tokens += 1
        self.finish_reason = finish_reason


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
    options, stop = arguments.sampling(args)
    if args.num_samples < 1 or args.batch_size < 1:
        raise InputError(f"num_samples is {args.num_samples} and batch_size {args.batch_size}: at least 1 of each")
    if args.prompts is None and args.output is not None:
        raise InputError(f"output is {args.output}, but there are no prompts: give a file of them (--prompts)")
    if args.prompts is not None and args.prompt:
        raise InputError(f"prompt is {args.prompt!r} and prompts {args.prompts}: give one of them")
    rows = read_prompts(Path(args.prompts)) if args.prompts is not None else []
    _, module, tokenizer = arguments.load(args)
    if rows:
        answers = continue_all(
            rows, module, tokenizer, options, stop=stop, num_samples=args.num_samples, batch_size=args.batch_size
        )
        _write(answers, args.output)
        return
    for i in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {i + 1}, seed {args.seed + i}")
        print(args.prompt, end="", flush=True)
        own = replace(options, seed=options.seed + i)
        for piece in continue_text(args.prompt, module, tokenizer, own, stop=stop):
            print(piece, end="", flush=True)
        print()


def _write(answers: Iterator[dict[str, Any]], output: str | None) -> None:
    """A line each, as they come: what was written stays if the rest is interrupted."""
    if output is None:
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
        return
    path = Path(output)
    # half of a surrogate pair is written as JSON's escape
    with writing_into(path.parent, needed=2**20), path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()
    print(f"answers: {path}")
