"""Rows of a Hugging Face dataset, from the hub or from local files."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_app.errors import InputError

BUILDERS = ("json", "text", "parquet", "csv")  # of `datasets`, which read local files


def load_rows(spec: str) -> Iterable[Mapping[str, Any]]:
    """The rows of "name[:config[:split]]" or "builder:path", without the "hf:".

    Raises:
        InputError: `datasets` finds or reaches no such dataset.
    """
    import datasets

    name, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    try:
        if name in BUILDERS and rest:
            return datasets.load_dataset(name, data_files=rest, split="train")
        return datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"cannot load the dataset {spec!r} ({type(error).__name__}: {_first_line(error)}); if it is a local file, "
            "check its path; a dataset of the hub needs its exact name and a network, or an earlier download and "
            "HF_HUB_OFFLINE=1; without either give local text files, or hf:json:file.jsonl"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
