"""`python main.py categories`: what an ART network has sorted its inputs into, as a table and as a page."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.network import ART
from lightning_app.art.pages import Category, Network, draw_page, format_categories
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.io import write_atomic
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.checkpoint import load_module
from lightning_app.training.command_options import CheckpointOptions
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.module import LanguageModule

COMPARED = 1000  # prototypes with all others at once


def networks_of(module: LanguageModule, tokenizer: Tokenizer) -> list[Network]:
    """The networks of all ARTRegularizers of a module."""
    found = [regularizer for regularizer in module.extensions if isinstance(regularizer, ARTRegularizer)]
    return [Network(one.name, one.art.vigilance, int(one.art.seen), categories_of(one.art, tokenizer)) for one in found]


def categories_of(art: ART, tokenizer: Tokenizer) -> list[Category]:
    """All of a network, the largest first."""
    n, seen = len(art), int(art.seen)
    ids, counts, born, used = (x[:n].tolist() for x in (art.ids, art.counts, art.born, art.used))
    others, overlaps = (x.tolist() for x in _nearest(art))
    categories = [
        Category(
            id=ids[slot],
            inputs=counts[slot],
            share=counts[slot] / seen,
            age=seen - born[slot],
            unused=seen - 1 - used[slot],
            nearest=(ids[others[slot]], overlaps[slot]) if n > 1 else None,
            texts=[tokenizer.decode(text) for text in art.typical(slot)],
        )
        for slot in range(n)
    ]
    return sorted(categories, key=lambda category: (-category.inputs, category.id))


@torch.no_grad()
def _nearest(art: ART) -> tuple[Tensor, Tensor]:
    """Slot of the other category that each is most alike, (C,), and how much, (C,)."""
    n = len(art)
    others, overlaps = torch.zeros(n, dtype=torch.int64), torch.zeros(n)
    for start in range(0, n, COMPARED):
        slots = torch.arange(start, min(start + COMPARED, n))
        overlap = art.rule.overlap(art.prototypes[slots], art.prototypes[:n], vigilance=-torch.inf).cpu()
        overlap[torch.arange(len(slots)), slots] = -torch.inf  # with itself
        overlaps[slots], others[slots] = overlap.max(-1)
    return others, overlaps


def write_page(networks: Sequence[Network], path: Path, *, of: str) -> None:
    """The page of these networks; `of` says where they come from."""
    write_atomic(path, draw_page(networks, title=f"Categories of {of}").encode("utf-8", errors="replace"))


def close(module: LanguageModule, tokenizer: Tokenizer, folder: RunFolder, *, step: int) -> None:
    """Draw the page of a run as its categories are at the last step, where there are any."""
    if networks := networks_of(module, tokenizer):
        write_page(networks, folder.categories, of=f"{folder.title}, step {step}")


def show(model: CheckpointOptions, *, output: Path | None, limit: int) -> None:
    """Print the tables, and write the page where one is asked for."""
    path = find_checkpoint(model.ckpt_path, model.runs_dir)
    module, tokenizer = load_module(path)
    networks = networks_of(module, tokenizer)
    if not networks:
        raise InputError(
            f"{path} holds a {type(module).__name__} without an ARTRegularizer, so there are no categories: train with "
            "one under model.init_args.extensions, as `--config configs/overlays/art.yaml` adds it to any run"
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n".join(format_categories(network, limit=limit, width=width) for network in networks))
    if output:
        write_page(networks, output, of=path)
        print(f"\npage: {output}")
