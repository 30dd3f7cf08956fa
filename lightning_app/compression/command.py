"""What `python main.py compress` and `decompress` do; their options: see `commands`."""

from __future__ import annotations

from pathlib import Path
from time import process_time

from lightning_app.compression.archive import Archived, compress, decompress
from lightning_app.io import write_atomic
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.training.command_options import CheckpointOptions, ModelOptions
from lightning_app.training.loading import load


def write_archive(
    data: bytes, model: CheckpointOptions, options: AdaptationOptions | None, *, source: Path, output: Path
) -> None:
    """Write the archive of a file's bytes, and print its size."""
    path, module, tokenizer = load(_on_cpu(model))
    began = process_time()
    done = compress(data, module, tokenizer, options)
    write_atomic(output, done.data)
    print("\n".join(_lines(done, source, output, path, seconds=process_time() - began)))


def write_original(archive: bytes, model: CheckpointOptions, *, output: Path) -> None:
    """Write what is in an archive, and print its size."""
    _, module, tokenizer = load(_on_cpu(model))
    data = decompress(archive, module, tokenizer)
    write_atomic(output, data)
    print(f"{output}: {len(data):,} bytes")


def _on_cpu(model: CheckpointOptions) -> ModelOptions:
    """The one kind of device whose sums do not depend on chance."""
    return ModelOptions(model.ckpt_path, model.runs_dir)


def _lines(done: Archived, source: Path, output: Path, model: Path, *, seconds: float) -> list[str]:
    size, symbols = len(done.data), done.passed.symbols
    escaped = sum(symbol < 0 for symbol in symbols)
    return [
        f"compressed        {source} ({done.original:,} bytes)",
        f"by                {model}",
        f"to                {output} ({size:,} bytes, {8 * size / max(1, done.original):.3f} bits per byte)",
        f"cross-entropy     {done.bits / 8:,.1f} bytes: {len(symbols) - escaped:,} tokens, {escaped:,} single bytes",
        f"read again        the same bytes, in another pass of the same model ({seconds:.0f} s of CPU time for both)",
    ]
