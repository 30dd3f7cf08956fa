"""`python main.py generate`: continue a prompt, streaming to the terminal, or a file of prompts, in batches."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.before import Before
from lightning_app.serving.prompts import answers_as_completed, in_order, read_prompts, write_answers
from lightning_app.serving.streaming import TextStream
from lightning_app.training.command_options import ModelOptions, SamplingOptions
from lightning_app.training.loading import load
from lightning_app.training.module import LanguageModule


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


def continue_file(
    prompts: Path,
    model: ModelOptions,
    sampling: SamplingOptions,
    *,
    output: Path | None,
    num_samples: int,
    batch_size: int,
) -> None:
    """Print the answers to a file of prompts, or write them. The options: see `commands.generate`."""
    rows = read_prompts(prompts)
    _, module, tokenizer = load(model)
    options = sampling.over(module.backbone.core.sampling)
    answers = answers_as_completed(
        rows, module, tokenizer, options, stop=sampling.stop, num_samples=num_samples, batch_size=batch_size
    )
    if output is not None:
        write_answers(answers, output)
        print(f"answers: {output}")
        return
    for answer in in_order(answers):
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def continue_prompt(prompt: str, model: ModelOptions, sampling: SamplingOptions, *, num_samples: int) -> None:
    """Print the samples as they are drawn. The options: see `commands.generate`."""
    _, module, tokenizer = load(model)
    options = sampling.over(module.backbone.core.sampling)
    before = Before.prompt(prompt, module, tokenizer)
    for i in range(num_samples):
        if num_samples > 1:
            print(f"--- sample {i + 1}, seed {options.seed + i}")
        print(prompt, end="", flush=True)
        own = replace(options, seed=options.seed + i)
        for piece in continue_text(before.put(prompt), module, tokenizer, own, stop=sampling.stop):
            print(piece, end="", flush=True)
        print()
    if before.documents:
        print(f"found in {', '.join(before.documents)}", file=sys.stderr)
