"""Greedy generation with the cache of keys and values, against HF's `generate` with its own cache and against none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main
from benchmarks.same_weights import huggingface_gpt2, seeded_decoder
from benchmarks.train_step import SMALL, TINY, WIDE, Shape
from lightning_app.models.decoder import Decoder
from lightning_app.models.generation import generate, use_column_major_weights
from lightning_app.models.generation_options import GenerationOptions

PROMPT = 32  # tokens
NEW = 160  # tokens; with the prompt fewer than a block, so that no side has to move its window
SHARPER = 5  # times the weights: at the initial ones a model repeats its last token, and equal ids would say little


def sharp_decoder(shape: Shape) -> Decoder:
    model = seeded_decoder(**shape.decoder_options()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(SHARPER)
    return model


def prompts(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape.vocab_size, (shape.batch_size, PROMPT), generator=generator)


# The sides. A run is one generation and returns its new tokens, row by row.


def ours(shape: Shape, new: int, use_cache: bool = True, laid_out: bool = True) -> Run:
    model, ids = sharp_decoder(shape), prompts(shape)
    if laid_out:
        use_column_major_weights(model)
    options = GenerationOptions(max_new_tokens=new, temperature=0, use_cache=use_cache)
    return lambda: torch.stack(list(generate(model, ids, options)), dim=1).tolist()


def huggingface(shape: Shape, new: int) -> Run:
    model, ids = huggingface_gpt2(sharp_decoder(shape), dropout=0.0).eval(), prompts(shape)
    model.generation_config.eos_token_id = None  # no text ends early
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    return lambda: model.generate(ids, attention_mask=mask, **options)[:, PROMPT:].tolist()


# The comparisons


def contest(shape: Shape, *, new: int, rounds: int, uncached: bool) -> Timings:
    """All sides that write the same tokens, which is checked."""
    options = {"shape": shape, "new": new}
    contestants = [
        Contestant("ours", ours, options),
        Contestant("as trained", ours, {**options, "laid_out": False}),
        Contestant("hf", huggingface, options),
    ]
    if uncached:
        contestants.append(Contestant("no cache", ours, {**options, "use_cache": False}))
    timings = compare(contestants, rounds=rounds, warmup=1)
    check_same_tokens(shape.name, timings)
    return timings


def check_same_tokens(what: str, timings: Timings) -> None:
    """Raises: AssertionError where two sides wrote different tokens, or where all wrote one token over and over."""
    expected = timings.results["ours"][0]
    assert min(len(set(row)) for row in expected) > len(expected[0]) // 10, f"{what}: a row repeats itself"
    for side, rounds in timings.results.items():
        assert all(found == expected for found in rounds), f"{what}: {side} wrote other tokens than ours"


def shape_rows(shape: Shape, *, new: int, rounds: int, uncached: bool) -> list[Row]:
    timings = contest(shape, new=new, rounds=rounds, uncached=uncached)
    name = f"{shape.name}, batch {shape.batch_size}"
    rows = [timings.row(f"{name}: ours / HF", "ours", "hf", at_least=1.1)]
    rows.append(timings.row(f"{name}: ours as trained / HF", "as trained", "hf"))
    if uncached:
        rows.append(timings.row(f"{name}: with the cache / without", "ours", "no cache"))
    tokens = shape.batch_size * new
    return [*rows, Row(f"{name}: tokens/s", f"{tokens / timings.median('ours'):,.0f}")]


NOTES = f"""Tokens per second of {NEW} new tokens after a prompt of {PROMPT}, greedy, fp32, one thread; the prompt's own
forward counts. HF is GPT2LMHeadModel.generate with the same weights and its default cache. All sides write the same
tokens, which differ along each row. Ours is laid out for generation (`use_column_major_weights`); "as trained" is not.
Without the cache each token costs a forward over all positions before it."""


def tables(quick: bool = False) -> list[Table]:
    rows = []
    for shape in (TINY,) if quick else (SMALL, WIDE):
        for batch_size in (1, 8):
            sized = replace(shape, batch_size=batch_size, block_size=max(shape.block_size, PROMPT + 16))
            new = 16 if quick else NEW
            uncached = batch_size == 1 and shape is not WIDE  # half a minute each
            rows += shape_rows(sized, new=new, rounds=1 if quick else 5, uncached=uncached)
    return [Table("Generation", rows, NOTES)]


if __name__ == "__main__":
    main(tables)
