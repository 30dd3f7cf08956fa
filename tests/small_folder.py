"""A folder in which the commands of README.md and docs/ run in a second each: small configs, texts and models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests import families
from tests.conftest import merged
from tests.golden.shipped import SCHEDULES, SMALL, within_20_steps
from tests.pages import ROOT

BLOCK = 32
LETTERS = 2_500  # of each article
TRAINER = {"accelerator": "cpu", "precision": "32-true", "max_steps": 4, "max_time": None, "val_check_interval": 2}
TRAINER |= {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0, "max_epochs": None, "log_every_n_steps": 1}
TRAINER |= {f"limit_{stage}_batches": 2 for stage in ("val", "test", "predict")}
DOWNLOADED = {"gpt2": "my_gpt2"}  # a model of a hub, and a directory that stands for it
TEXTS = (
    "train.txt",
    "heldout.txt",
    "other.txt",
    "kept.txt",
    "my_val.txt",
    "my_test.txt",
    "test.txt",
    "plays.txt",
    "code.txt",
)
NEWER = "runs/experiment_newer/0/texts"  # what experiments.newer leaves
FOLDERS = (
    *(f"{NEWER}/{part}" for part in ("stored", "tuned", "scored")),
    "drive/my_articles",
    "my_articles",
    "my_corpus",
    "my_notes",
)
LINKS = ("main.py", "lightning_app", "experiments", "examples", "docs")


def make(folder: Path) -> None:
    """All that pages speak of as there, but runs."""
    for name in LINKS:
        (folder / name).symlink_to(ROOT / name)
    articles = {path: path.read_text(encoding="utf-8")[:LETTERS] for path in (ROOT / "data").rglob("*.txt")}
    for path, text in articles.items():
        _write(folder / path.relative_to(ROOT), text)
    some = list(articles.items())
    for i, name in enumerate((*TEXTS, "diners-dilemma.txt")):
        _write(folder / name, some[i][1])
    for i, name in enumerate(FOLDERS):
        for path, text in some[2 * i : 2 * i + 15]:
            _write(folder / name / path.name, text)
    _write(folder / "drive" / "my_val.txt", some[0][1])
    _write(folder / "my_notes" / "bruvmere.txt", "Bruvmere is small enough to be crossed on foot in ten minutes.")
    _write(folder / "prompts.txt", "A neural network\nThe diner\n")
    families.save("GPT-2", folder / "my_gpt2")
    families.save("LLaMA", folder / "models" / "smollm2")
    for path in (ROOT / "configs").rglob("*.yaml"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        is_overlay = path.parent.name == "overlays"
        made = overlay(config, path.stem) if is_overlay else small(config)
        _write(folder / path.relative_to(ROOT), yaml.safe_dump(made, sort_keys=False))
    shutil.copy(ROOT / "configs" / "schema.json", folder / "configs")


def small(config: dict[str, Any]) -> dict[str, Any]:
    """A whole run, in four steps of a small model."""
    made = merged(config, {"trainer": TRAINER, "data": {"block_size": BLOCK, "dataloader": {"batch_size": 4}}})
    made.pop("fit_in", None)
    data, options = made["data"], made["model"]["init_args"]
    for split in ("train", "val", "test"):
        if "hf:" in str((data.get(split) or {}).get("path")):
            data[split]["path"] = f"data/articles/{'train' if split == 'train' else 'val'}"
        if "stride" in (data.get(split) or {}):
            data[split]["stride"] = BLOCK // 2
    if "segment_length" in options:
        options["segment_length"] = BLOCK // 4
    for reader in options.get("readers", []):
        if "streams" in reader.get("init_args", {}):
            reader["init_args"]["streams"] = data["dataloader"]["batch_size"]
    backbone = options["backbone"]
    inner = backbone.get("init_args", backbone)
    if backbone.get("class_path") == "PretrainedLM":
        if data["tokenizer"] in ("gpt2", "r50k_base"):
            data["tokenizer"] = "model"
        if "pretrained" in inner:
            inner["pretrained"] = DOWNLOADED.get(inner["pretrained"], inner["pretrained"])
        else:
            inner["options"] = merged(inner["options"], {"n_layer": 2, "n_embd": 32, "n_head": 2})
    else:
        inner.update(SMALL)
        if data["tokenizer"] == "r50k_base":  # downloaded
            data["tokenizer"], data["vocab_size"] = "bytes", None
    return made


def overlay(config: dict[str, Any], name: str) -> dict[str, Any]:
    """What it changes, within the steps of a small run; schedules of pruning need twenty."""
    if name in SCHEDULES:
        config = merged(within_20_steps(config, name), {"trainer": {"max_steps": 20}})
    elif "max_steps" in config.get("trainer", {}):
        config["trainer"]["max_steps"] = 4
    if name == "streaming":
        config["data"]["train"]["path"] = "hf:text:data/articles/train/*.txt"
        config["data"]["val"]["stride"] = BLOCK // 2
    return config


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
