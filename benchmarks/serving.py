"""Requests that share batches, which they join and leave, against one request after the other."""

from __future__ import annotations

import random
from functools import partial

from benchmarks.common import Contestant, Row, Run, Table, compare, main
from benchmarks.same_weights import seeded_decoder
from benchmarks.train_step import SMALL, TINY, Shape
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.models.generation import use_column_major_weights
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.batching import Batcher, Job
from lightning_app.training.compositions import ArticleGPT

REQUESTS = 64
AT_ONCE = (8, 32)
STEP = 4  # a request comes after so many steps of the first batch


def requests(shape: Shape, n: int) -> list[tuple[list[int], GenerationOptions]]:
    """Prompts of 4 to a quarter block, 16 to a half block new tokens."""
    draw = random.Random(1)
    prompts = [[draw.randrange(256) for _ in range(draw.randint(4, shape.block_size // 4))] for _ in range(n)]
    return [
        (prompt, GenerationOptions(draw.randint(16, max(16, shape.block_size // 2)), temperature=1.0, seed=i))
        for i, prompt in enumerate(prompts)
    ]


def served(shape: Shape, n: int, batch_size: int) -> Run:
    """A run answers all requests, of which `batch_size` wait at first, and one more comes every few steps."""
    module = ArticleGPT(seeded_decoder(**shape.decoder_options())).eval()
    tokenizer = load_tokenizer("bytes")
    module.use_tokenizer(tokenizer)
    use_column_major_weights(module.backbone)

    def run() -> list[str]:
        texts = [""] * n
        batcher = Batcher(module, tokenizer, batch_size=batch_size)

        def keep(i: int, piece: str, finish_reason: str | None) -> None:
            texts[i] += piece

        todo = [Job(ids, options, on_text=partial(keep, i)) for i, (ids, options) in enumerate(requests(shape, n))]
        todo.reverse()
        steps = 0
        while todo or batcher.busy:
            while todo and (steps == 0 or steps % STEP == 0 or not batcher.busy):
                batcher.waiting.append(todo.pop())
                if steps or len(batcher.waiting) == batch_size:
                    break
            batcher.admit()
            batcher.step()
            steps += 1
        return texts

    return run


def shape_rows(shape: Shape, *, n: int, rounds: int) -> list[Row]:
    sides = [Contestant(f"{b} at once", served, {"shape": shape, "n": n, "batch_size": b}) for b in (1, *AT_ONCE)]
    timings = compare(sides, rounds=rounds, warmup=1)
    expected = timings.results["1 at once"][0]
    assert all(found == expected for side in timings.results.values() for found in side), "other texts in a batch"
    rows = [timings.row(f"{shape.name}: {b} at once / 1", f"{b} at once", "1 at once") for b in AT_ONCE]
    tokens = sum(options.max_new_tokens for _, options in requests(shape, n))
    speed = " and ".join(f"{tokens / timings.median(side.name):,.0f}" for side in sides)
    return [*rows, Row(f"{shape.name}: tokens/s at 1, {' and '.join(map(str, AT_ONCE))} at once", speed)]


NOTES = f"""{REQUESTS} requests with prompts of 4 tokens to a quarter of the block and 16 tokens to half a block to add,
sampled, fp32, one thread: a first batch, then one more every {STEP} steps. What a batch of requests
that come and go costs (padding, caches put together) is in the ratio. The texts are the same at every batch size."""


def tables(quick: bool = False) -> list[Table]:
    rows = shape_rows(TINY, n=6, rounds=1) if quick else shape_rows(SMALL, n=REQUESTS, rounds=3)
    return [Table("Serving", rows, NOTES)]


if __name__ == "__main__":
    main(tables)
