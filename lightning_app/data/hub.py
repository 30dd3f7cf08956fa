"""Rows of a Hugging Face dataset, from the hub or from local files, as a whole or streamed."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from lightning_app.errors import InputError, first_line

BUILDERS = ("json", "text", "parquet", "csv")  # of `datasets`, which read local files


def load_rows(spec: str) -> Iterable[Mapping[str, Any]]:
    """The rows of "name[:config[:split]]" or "builder:path", without the "hf:".

    Raises:
        InputError: `datasets` finds or reaches no such dataset.
    """
    return _load(spec, streaming=False)


class StreamedRows:
    """The rows of one of `shares` disjoint parts, read while they are needed.

    Raises:
        InputError: as `load_rows` does.
    """

    def __init__(self, spec: str, share: int, shares: int) -> None:
        from datasets.distributed import split_dataset_by_node

        self.spec = spec
        self._rows = split_dataset_by_node(_load(spec, streaming=True), share, shares)

    def place(self) -> dict[str, Any]:
        """Behind the last row, in plain types."""
        return self._rows.state_dict()

    def read(self, place: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        """The rows behind a place.

        By batches of one, because iterating over rows would be split a second time in torch's worker processes.

        Raises:
            InputError: the network fails, or a file is damaged.
        """
        if place is not None:
            self._rows.load_state_dict(place)
        try:
            for batch in self._rows.iter(batch_size=1):
                yield {name: values[0] for name, values in batch.items()}
        except _reading_errors() as error:
            raise InputError(
                f"the stream {self.spec!r} broke off ({type(error).__name__}: {first_line(error)}); check the network "
                "(or the files) and go on from the last checkpoint with --ckpt_path last"
            ) from error


def _reading_errors() -> tuple[type[Exception], ...]:
    """What reading rows may raise; the hub's and fsspec's HTTP clients depend on their versions."""
    import datasets
    from huggingface_hub.errors import HTTPError

    errors = [OSError, ValueError, datasets.exceptions.DatasetsError, HTTPError]
    with suppress(ImportError):
        errors.append(importlib.import_module("aiohttp").ClientError)
    return tuple(errors)


def _load(spec: str, *, streaming: bool) -> Any:
    import datasets

    name, _, rest = spec.partition(":")
    config, _, split = rest.partition(":")
    # StopIteration: of an empty file; LookupError: of an empty name
    refusals: tuple[type[Exception], ...] = (*_reading_errors(), StopIteration, LookupError)
    try:
        if name in BUILDERS and rest:
            # a text may be "NA" or "null"; the values that pandas would take for missing stay what they are
            options: dict[str, Any] = {"keep_default_na": False} if name == "csv" else {}
            return datasets.load_dataset(name, data_files=rest, split="train", streaming=streaming, **options)
        return datasets.load_dataset(name, config or None, split=split or "train", streaming=streaming)
    except RuntimeError as error:  # "Dataset scripts are no longer supported"
        raise InputError(
            f"cannot load the dataset {spec!r} ({first_line(error)}); its code is never run here: give its files as "
            "hf:json:FILES, hf:parquet:FILES, hf:csv:FILES or hf:text:FILES"
        ) from error
    except refusals as error:
        raise InputError(
            f"cannot load the dataset {spec!r} ({type(error).__name__}: {first_line(error)}); if it is a local file, "
            "check its path; a dataset of the hub needs its exact name and a network, or an earlier download and "
            "HF_HUB_OFFLINE=1; without either give local text files, or hf:json:file.jsonl"
        ) from error
