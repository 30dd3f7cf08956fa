"""This project's trained model, as it adapts to the text that it reads: `main.py test` with the overlay for it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from benchmarks.peers.contestant import Job
from benchmarks.peers.ours import checkpoint, options_of_config
from benchmarks.speedrun.clock import run_timed
from benchmarks.speedrun.plan import short_sha256
from lightning_app.errors import InputError
from lightning_app.training.checkpoint import load_module

OVERLAY = "configs/overlays/adapting.yaml"
COUNTING = [{"class_path": "NGramReader", "init_args": {"order": 5, "writes": "evaluation"}}]
BATCH_SIZE = 1  # windows that are scored before a step
BPB = re.compile(r"test/bpb[^\d\n]+([\d.]+)")


def options() -> dict[str, Any]:
    """All that decides how it adapts."""
    return {"overlay_sha256": short_sha256(OVERLAY), "extensions": COUNTING, "windows_a_step": BATCH_SIZE}


def bits_per_byte(job: Job, test: Path) -> tuple[float, float]:
    """Of a text that is scored once and then learned, batch by batch; and the CPU seconds that it took.

    Raises:
        InputError: the command failed.
    """
    block = load_module(checkpoint(job))[0].backbone.max_length or 128
    own = {
        **options_of_config(job),
        "ckpt_path": str(checkpoint(job)),
        "data.test": {"path": str(test), "stride": block // 2},
        "data.dataloader.batch_size": BATCH_SIZE,
        "model.init_args.extensions": COUNTING,
    }
    given = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in own.items()]
    words = ["benchmarks.peers.ours", "test", f"--config={job.options['config']}", f"--config={OVERLAY}", *given]
    ended = run_timed(words, Path(job.folder, "said_adapting.txt"), threads=job.threads)
    found = BPB.search(ended.said)
    if ended.code or found is None:
        raise InputError(f"reading {test} while adapting failed ({ended.code}):\n{ended.said[-2000:]}")
    return _with_first(float(found[1]), job, test), ended.cpu_seconds


def _with_first(bpb: float, job: Job, test: Path) -> float:
    """`test` does not score the first token: it costs as much here as in the other table."""
    module, tokenizer = load_module(checkpoint(job))
    text = test.read_bytes()
    first = len(tokenizer.decode_bytes(tokenizer.encode(text[:200].decode(errors="ignore"))[:1]))
    return (bpb * (len(text) - first) + math.log2(module.backbone.vocab_size)) / len(text)
