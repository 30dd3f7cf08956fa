"""What a command line and its configs say, and the mistakes in it that need no import to be seen."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

import yaml

from lightning_app.data.places import is_dataset, missing
from lightning_app.errors import InputError
from lightning_app.former import with_options_of_today
from lightning_app.models.hugging_face import is_model, model_near
from lightning_app.program import program
from lightning_app.shipped import here_or_shipped
from lightning_app.yaml_file import LINKED, leaves, read_yaml

PACKAGES = {
    "DeepSpeedStrategy": "deepspeed",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
}  # which not everyone needs
CONFIG_FILES = (".yaml", ".yml", ".json")
ITEM = re.compile(r"\.init_args|\+?\.\d+\b")  # of a key: what the command line leaves out


Config = dict[str, Any]


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse, of `given_options`, what the parser would accept and then overwrite without a word.

    Raises:
        InputError: a top-level `dataloader`, a size given for the model that `data` lacks, a class whose package is
            not installed, an option of an optimizer where there are several.
    """
    _check_packages(given)
    _check_list_of_optimizers(given)
    for key, value in given.items():
        name = key.rsplit(".", 1)[-1]
        if "\0" in key or (isinstance(value, str) and "\0" in value):
            raise InputError(f"{key!r} holds a zero byte, which no name of a file may have: {value!r}")
        if key.startswith("dataloader."):
            raise InputError(
                "a config has a top-level `dataloader`: here it is `data.dataloader`, so indent it under `data:`"
            )
        if key.startswith("model.") and name in LINKED and value != given.get(f"data.{name}"):
            raise InputError(
                f"{key} is {value}, but data.{name} is {given.get(f'data.{name}', 'not given')}: "
                f"give data.{name} alone, the model takes it from there"
            )


TEXTS = {"fit": ("train", "val"), "prepare": ("train", "val", "test"), "validate": ("val",), "test": ("test",)}


def check_texts(command: str, given: Mapping[str, Any]) -> None:
    """Refuse a text of the command's that is not there.

    Raises:
        InputError: with the folder that its path counts from.
    """
    for part in TEXTS.get(command, ()):
        sources = given.get(f"data.{part}")
        paths = [one.get("path") for one in sources if isinstance(one, Mapping)] if isinstance(sources, list) else []
        for path in [*paths, given.get(f"data.{part}.path")]:
            if (
                isinstance(path, str)
                and path
                and not (is_dataset(path) or has_magic(path) or Path(here_or_shipped(path)).exists())
            ):
                raise missing(path)


def _check_list_of_optimizers(given: Mapping[str, Any]) -> None:
    """Refuse an option of the optimizer where there is a list of them."""
    plain = {key.replace(".init_args", ""): key for key in given}
    lists = isinstance(given.get(plain.get("model.optimizer", "")), list)
    if lists and "model.optimizer.class_path" not in plain:
        for short, key in plain.items():
            if short.startswith("model.optimizer."):
                raise InputError(
                    f"{key} is given, and the config has a list of optimizers: give one for all of them before it "
                    "(--model.init_args.optimizer AdamW), or the list in an overlay"
                )


def _check_packages(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if not key.startswith("trainer."):
            continue
        for name, package in PACKAGES.items():
            if name in str(value) and importlib.util.find_spec(package) is None:
                raise InputError(f"{key} has a {name}, which needs a package that is not here: pip install {package}")


def read_configs(argv: Sequence[str]) -> list[Config]:
    """What --config and -c name, in order, with each option where it stands today.

    Raises:
        InputError: an unreadable config.
    """
    return [_load(path) for path in config_paths(argv)]


def given_options(argv: Sequence[str], configs: Sequence[Config]) -> dict[str, Any]:
    """Value by dotted key of all that the configs and the command line say, later ones over earlier ones."""
    given: dict[str, Any] = {}
    for new in [*(dict(leaves(config)) for config in configs), dict(command_line_options(argv))]:
        replaced = tuple(f"{key}." for key, value in new.items() if _is_whole(value))
        given = {key: value for key, value in given.items() if not key.startswith(replaced)} | new
    return given


def _is_whole(value: Any) -> bool:
    """Whether it replaces all that stood under its key: a list, or a class with its options in one word."""
    return isinstance(value, list) or (isinstance(value, Mapping) and "class_path" in value)


def named_classes(configs: Sequence[Config]) -> dict[str, str]:
    """By key the class that the configs name; of a list that of its last item, which the command line changes."""
    found: dict[str, str] = {}
    for config in configs:
        for key, value in leaves(config, lists="numbers"):
            if key.endswith(".class_path"):
                found[ITEM.sub("", key.removesuffix(".class_path"))] = str(value).rpartition(".")[2]
    return found


def without_effect(given: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Given options that the parsed config does not have: those of a class that a later config replaced by another."""

    def plain(key: str) -> str:
        return key.replace(".init_args", "").replace(".dict_kwargs", "").removesuffix("+")

    keys = [plain(key).split(".") for key, _ in leaves(config)]
    known = {".".join(key[:n]) for key in keys for n in range(1, len(key) + 1)}  # a class's short form names a branch
    # what is below a list is an option of its last item: --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor
    parents = {plain(key) for key, value in leaves(config) if value is None or isinstance(value, list)}
    lost = [key for key in given if plain(key) not in known and key.rsplit(".", 1)[-1] not in LINKED]
    return [key for key in lost if not any(plain(key).startswith(f"{parent}.") for parent in parents)]


def config_paths(argv: Sequence[str]) -> list[Path]:
    """The values of --config and -c, in order."""
    paths = [value for key, value in _pairs(argv) if key in ("--config", "-c")]
    return [Path(path) for path in paths if Path(path).suffix in CONFIG_FILES]


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(--key, value) for `--key value` and `--key=value`."""
    for i, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            yield key, value
        elif word.startswith("-") and i + 1 < len(argv):
            yield word, argv[i + 1]


def option(argv: Sequence[str], name: str, config: Any = None) -> Any:
    """What the command line says of an option without a dot, the last time that it does, else what a config says."""
    said = next((value for key, value in reversed([*_pairs(argv)]) if key == f"--{name}"), config)
    return None if said == "null" else said


def command_line_options(argv: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Dotted options of the command line, with values read as YAML does."""
    for key, value in _pairs(argv):
        if key.startswith("--") and "." in key:
            try:
                yield key[2:], yaml.safe_load(value)
            except yaml.YAMLError:
                yield key[2:], value


def with_own_model(argv: Sequence[str]) -> list[str]:
    """An evaluation of a Hugging Face directory needs no config: model and tokenizer are those of the directory.

    Raises:
        InputError: an evaluation of something else without a config.
    """
    pairs = list(_pairs(argv))
    path = option(argv, "ckpt_path")
    named = any(key in ("--config", "-c") or key.startswith("--model") for key, _ in pairs)
    if argv[:1] not in (["validate"], ["test"], ["predict"]) or path is None or named or {"-h", "--help"} & {*argv}:
        return list(argv)
    if not is_model(path):
        raise _without_config(path)
    model = ("--model", "CausalLM", "--model.backbone", "PretrainedLM", "--model.backbone.pretrained", path)
    rest = [word for i, word in enumerate(argv[1:], 1) if "--ckpt_path" not in (word, argv[i - 1])]
    rest = [word for word in rest if not word.startswith("--ckpt_path=")]
    return [argv[0], *model, "--data.tokenizer", "model", *rest]


def check_config_is_given(argv: Sequence[str]) -> None:
    """Refuse a run of nothing: neither a config, nor a model, nor a checkpoint that says what it is.

    Raises:
        InputError: it names a config to begin with.
    """
    words = [word.partition("=")[0] for word in argv]
    if not any(word in ("--config", "-c", "--ckpt_path") or word.startswith("--model") for word in words):
        raise InputError(f"{argv[0]} needs a config: {program()} {argv[0]} --config article_gpt")


def _without_config(path: str) -> InputError:
    if path in ("last", "best"):
        return InputError(f"--ckpt_path {path} is that of a run: give the run's config, too (--config)")
    if not Path(path).exists():
        return InputError(
            f"there is no {path}: give a Hugging Face directory, a GGUF file, or a checkpoint with --config"
        )
    what = model_near(Path(path)) or "not a Hugging Face directory or GGUF file: give its run's config, too (--config)"
    return InputError(f"{path} is {what}")


def _load(path: Path) -> Config:
    try:
        config = read_yaml(path)
    except FileNotFoundError:
        raise InputError(f"there is no config {path}; those at hand: {_configs()}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a mapping such as `model: ...`, not {type(config).__name__}")
    return dict(with_options_of_today(config))


def _configs() -> str:
    return ", ".join(str(p) for p in sorted(Path("configs").rglob("*.yaml"))) or "none in ./configs"
