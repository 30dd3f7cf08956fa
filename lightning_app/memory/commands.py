"""`python main.py memory {build,add,list,search,delete,check}`: their options, before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lightning_app.errors import InputError
from lightning_app.memory.build_options import BuildOptions
from lightning_app.training.command_options import CheckpointOptions, ModelOptions, Text

K = Parameter(name="-k")
USUAL = BuildOptions()


def build(*, model: ModelOptions, memory: BuildOptions = USUAL) -> None:
    """Fill a memory with a text, tune it, and write a new checkpoint that has it. Nothing is trained."""
    from lightning_app.memory.tools import command

    command.build(model, memory)


def add(*, model: ModelOptions, text: str, output: Path | None = None, stride: int | None = None) -> None:
    """Store further documents; those that are there already are left as they are. The memory grows if it must.

    Args:
        text: file, folder, pattern, JSONL file or hf:name.
        output: where the result goes; the same file without it.
        stride: tokens between two windows; half of the block without it.
    """
    from lightning_app.memory.tools import command

    command.add(model, text, output=output, stride=stride)


def list_documents(*, model: CheckpointOptions, documents: int = 30) -> None:
    """Print options, size and documents of every memory of a checkpoint.

    Args:
        documents: how many are shown.
    """
    from lightning_app.memory.tools import command

    command.list_documents(model, documents=documents)


def search(*, model: CheckpointOptions, query: Text, k: Annotated[int, K] = 5) -> None:
    """Print the stored neighbours of what comes behind a text.

    Args:
        query: the text whose continuation is looked for.
        k: neighbours.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least 1 neighbour")
    from lightning_app.memory.tools import command

    command.search_text(model, query, k=k)


def delete(*, model: CheckpointOptions, document: list[str], output: Path | None = None) -> None:
    """Remove all entries of source documents.

    Args:
        document: as `memory list` names it, or the end of its path; may be given several times.
        output: where the result goes; the same file without it.
    """
    from lightning_app.memory.tools import command

    command.delete(model, document, output=output)


def check(*, model: CheckpointOptions, k: Annotated[int | None, K] = None) -> None:
    """Compare the index with brute force, and look for damage.

    Args:
        k: results compared; those of a search without it.
    """
    from lightning_app.memory.tools import command

    command.check(model, k=k)
