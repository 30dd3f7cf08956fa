"""`python main.py generate`: continue a prompt, streaming to the terminal, from a checkpoint alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from lightning_app.errors import InputError
from lightning_app.inference.loading import load_module
from lightning_app.models.generation import GenerationOptions, lay_out_for_generation
from lightning_app.modules.base import LanguageModule
from lightning_app.text.tokenizer import Tokenizer
from lightning_app.training.checkpoint_io import find_checkpoint


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
    ids = torch.tensor([tokenizer.encode(prompt) or [tokenizer.eot]], device=module.device)
    decoder = tokenizer.stream_decoder()

    def pieces() -> Iterator[str]:
        for token in module.generate(ids, options, eot=tokenizer.eot):
            if int(token) != tokenizer.eot:
                yield decoder(int(token))
        yield decoder.flush()

    yield from until(pieces(), stop)


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first stop string, which may lie across them; holds back what may be a stop's beginning."""
    held, longest = "", max((len(s) for s in stop), default=0)
    for piece in pieces:
        held += piece
        found = [held.index(s) for s in stop if s in held]
        if found:
            yield held[: min(found)]
            return
        ready = len(held) - max(0, longest - 1)
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    yield held


def _parser() -> argparse.ArgumentParser:
    defaults = GenerationOptions()
    parser = argparse.ArgumentParser(prog="main.py generate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--ckpt_path", required=True, help="a checkpoint of a fit; best or last: the newest in RUNS_DIR"
    )
    parser.add_argument("--runs_dir", default="runs", help="where best and last are looked for, in all folders below")
    parser.add_argument("--prompt", default="", help="the text to continue; empty: a new document")
    parser.add_argument("--max_new_tokens", type=int, default=defaults.max_new_tokens)
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is greedy")
    parser.add_argument("--top_k", type=int, default=50, help="only among the k most likely tokens; 0: all")
    parser.add_argument("--top_p", type=float, default=defaults.top_p, help="nucleus sampling")
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="sample i draws with seed + i")
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be given several times")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    return parser


def command(argv: Sequence[str]) -> None:
    """Parse the arguments and print the samples as they are drawn."""
    args = _parser().parse_args(argv)
    if args.num_samples < 1 or "" in args.stop:
        raise InputError(f"num_samples is {args.num_samples} and stop {args.stop}: at least 1 sample, no empty stop")
    module, tokenizer = load_module(find_checkpoint(args.ckpt_path, Path(args.runs_dir)))
    try:
        module.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {args.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    lay_out_for_generation(module.backbone)
    for i in range(args.num_samples):
        if args.num_samples > 1:
            print(f"--- sample {i + 1}, seed {args.seed + i}")
        options = GenerationOptions(
            args.max_new_tokens, args.temperature, args.top_k or None, args.top_p, args.seed + i
        )
        print(args.prompt, end="", flush=True)
        for piece in continue_text(args.prompt, module, tokenizer, options, stop=args.stop):
            print(piece, end="", flush=True)
        print()
