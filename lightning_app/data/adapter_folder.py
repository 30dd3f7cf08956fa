"""A folder of peft's: adapters alone, which name the model that they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_app.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"


def is_adapter(path: str | Path) -> bool:
    """Whether a folder has adapters and not a whole model."""
    return (Path(path) / CONFIG).is_file() and not (Path(path) / "config.json").is_file()


def base_of(folder: str | Path) -> Path:
    """The directory of the model that a folder's adapters belong to: as it is named, or seen from the folder.

    Raises:
        InputError: it is not on this disk, or nobody says which it is.
    """
    file = Path(folder) / CONFIG
    try:
        name: Any = json.loads(file.read_bytes()).get(BASE)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged: it is not a JSON object ({error}); save the adapters again") from error
    places = [Path(name), Path(folder) / name] if isinstance(name, str) and name else []
    for place in places:
        if place.is_dir() and not is_adapter(place):
            return place
    raise InputError(
        f"{folder} has adapters of peft for {name!r}, which is not a directory here: write where that model lies as "
        f"{BASE} into {file}, or merge them where it is (merge_and_unload, save_pretrained)"
    )


def with_model(folder: str | Path) -> Path:
    """Where the model of a directory lies: for adapters that of their base."""
    return base_of(folder) if is_adapter(folder) else Path(folder)
