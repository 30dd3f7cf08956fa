"""`python main.py compress` and `decompress`: a file as a short archive, by any trained model, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

from lightning_app.compression.archive import Archived, compress, decompress
from lightning_app.errors import InputError
from lightning_app.io import write_atomic
from lightning_app.training import arguments
from lightning_app.training.adapting import AdaptationOptions

ENDING = ".lmz"


def _parser(name: str, *, what: str, output: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"main.py {name}", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", type=Path, help=what)
    arguments.add_checkpoint(parser)
    parser.add_argument("--output", type=Path, help=output)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.set_defaults(device="cpu")  # the one kind whose sums do not depend on chance
    return parser


def compress_command(argv: Sequence[str]) -> None:
    """Write the archive of a file, and print its size."""
    usual = AdaptationOptions()
    parser = _parser("compress", what="any file", output=f"FILE{ENDING} without it")
    add: Any = parser.add_argument
    add("--adapt", action="store_true", help="learn from what has been written: slower, and shorter for a long file")
    add("--lr", type=float, help=f"of --adapt: how far a weight goes in a step; default {usual.lr:g}")
    add("--decay", type=float, help=f"of --adapt: the way back; default {usual.decay:g}")
    args = parser.parse_args(argv)
    given = {name: value for name in ("lr", "decay") if (value := getattr(args, name)) is not None}
    if given and not args.adapt:
        raise InputError(f"--{next(iter(given))} says how a model adapts: give --adapt, too, or leave it out")
    adapts = AdaptationOptions(**given) if args.adapt else None
    output = args.output or args.file.with_name(f"{args.file.name}{ENDING}")
    data = _read(args.file)
    _check(output, overwrite=args.overwrite)
    path, module, tokenizer = arguments.load(args)
    began = process_time()
    done = compress(data, module, tokenizer, adapts)
    write_atomic(output, done.data)
    print("\n".join(_lines(done, args.file, output, path, seconds=process_time() - began)))


def decompress_command(argv: Sequence[str]) -> None:
    """Write the file that is in an archive."""
    args = _parser("decompress", what="an archive", output=f"FILE without {ENDING} if not given").parse_args(argv)
    if args.output is None and args.file.suffix != ENDING:
        raise InputError(f"{args.file} does not end in {ENDING}: say where the file goes (--output)")
    output = args.output or args.file.with_suffix("")
    archive = _read(args.file)
    _check(output, overwrite=args.overwrite)
    _, module, tokenizer = arguments.load(args)
    data = decompress(archive, module, tokenizer)
    write_atomic(output, data)
    print(f"{output}: {len(data):,} bytes")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _check(output: Path, *, overwrite: bool) -> None:
    """Before anything is computed."""
    if output.exists() and not (overwrite and output.is_file()):
        raise InputError(f"{output} exists: choose another --output, or --overwrite it")


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
