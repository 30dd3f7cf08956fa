"""Every shipped config and overlay for 20 steps, by the code and the configs of the tree that is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CONFIGS = [
    *("art_gpt2", "art_gpt2_offline", "article_gpt", "article_gpt_162m", "article_gpt_seed"),
    *("gpt2", "gpt2_offline", "smollm2", "smollm2_art", "smollm2_varda", "varda_gpt", "varda_gpt_offline"),
]
OVERLAYS = {  # what each changes
    "art": "article_gpt",
    "art_varda": "varda_gpt_offline",
    "controller": "article_gpt",
    "csv_logger": "article_gpt",
    "debug": "article_gpt",
    "gradient_checkpointing": "article_gpt",
    "lora": "gpt2_offline",
    "plasticity": "article_gpt",
    "plasticity_dynamic": "article_gpt",
    "plasticity_quick": "article_gpt",
    "plasticity_smollm2": "smollm2",
    "streaming": "article_gpt",
    "weight_averaging": "gpt2_offline",
}
# Several processes or devices (see tests/test_ddp.py, tests/test_model_parallel.py), a package of its own (wandb), or
# nothing that a fit does otherwise (adapting).
LEFT_OUT = {"adapting", "ddp", "deepspeed", "fsdp", "model_parallel", "multi_node", "wandb"}
FRESH = {"pretrained": None, "architecture": "gpt2", "options": {"n_layer": 2, "n_embd": 32, "n_head": 2}}
OF_A_DOWNLOAD = {"model": {"init_args": {"backbone": {"init_args": FRESH}}}}
GROUPED = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
LLAMA = {"pretrained": None, "architecture": "llama", "options": {**GROUPED, "intermediate_size": 160}}
SMALL = {"embedding_dim": 32, "layers": 2, "heads": 2, "head_size": 16}
SHORT_SEGMENTS = {"model": {"init_args": {"segment_length": 8}}}
CHANGES: dict[str, list[dict[str, Any]]] = {  # laid over shipped.yaml: stand-ins for what is downloaded or large
    "art_gpt2": [OF_A_DOWNLOAD],
    "article_gpt_162m": [{"model": {"init_args": {"backbone": SMALL}}}],
    "gpt2": [OF_A_DOWNLOAD],
    "plasticity_smollm2": [{"model": {"init_args": {"backbone": {"init_args": LLAMA}}}}],
    "smollm2": [OF_A_DOWNLOAD],
    "smollm2_art": [OF_A_DOWNLOAD],
    "smollm2_varda": [OF_A_DOWNLOAD, SHORT_SEGMENTS],
    "streaming": [{"data": {"train": {"path": "hf:text:data/articles/train/*.txt"}}}],
    "varda_gpt": [OF_A_DOWNLOAD, SHORT_SEGMENTS],
}
SCHEDULES = {  # within 20 steps
    "controller": {"warmup_steps": 4, "controller_update_freq": 4, "steps": 16},
    "plasticity": {"cycles": 2, "training_steps": 4, "warmup_steps": 2, "finetuning_steps": 4},
    "plasticity_dynamic": {"cycles": 2, "training_steps": 4, "warmup_steps": 2, "finetuning_steps": 4},
    "plasticity_quick": {"training_steps": 4, "warmup_steps": 2, "finetuning_steps": 4},
    "plasticity_smollm2": {"finetuning_steps": 12},
}
NAMES = sorted([*CONFIGS, *OVERLAYS])


def words(name: str, folder: Path) -> list[str]:
    """The command line of a fit in a folder, in which texts and configs are laid."""
    origin = importlib.util.find_spec("lightning_app").origin  # type: ignore[union-attr]
    tree = Path(str(origin)).parent.parent
    for part in ("configs", "data"):
        (folder / part).symlink_to(tree / part)
    configs = [f"configs/{OVERLAYS.get(name, name)}.yaml"]
    if name in OVERLAYS:
        overlay = yaml.safe_load((tree / "configs" / "overlays" / f"{name}.yaml").read_text(encoding="utf-8"))
        _write(folder / "overlay.yaml", within_20_steps(overlay, name))
        configs.append("overlay.yaml")
    configs.append(str(HERE / "shipped.yaml"))
    for i, change in enumerate(CHANGES.get(name, [])):
        _write(folder / f"change_{i}.yaml", change)
        configs.append(f"change_{i}.yaml")
    return ["fit", *(word for config in configs for word in ("--config", config)), "--name", name]


def within_20_steps(overlay: dict[str, Any], name: str) -> dict[str, Any]:
    if name in SCHEDULES:
        options = overlay["trainer"]["callbacks+"][0]["init_args"]
        rare = options.get("advanced", {})
        for key, value in SCHEDULES[name].items():
            (rare if key in rare else options)[key] = value
    return overlay


def _write(path: Path, config: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
