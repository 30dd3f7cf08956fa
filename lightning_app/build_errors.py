"""What Lightning, torch and jsonargparse raise while a run is built, as one line with its key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

import lightning as L
import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader
from lightning.fabric.utilities.enums import LightningEnum
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app.errors import InputError, is_full
from lightning_app.former import with_names_of_today, with_options_of_today
from lightning_app.optimizer_list import with_parts
from lightning_app.yaml_file import leaves, why_unreadable

# All that a constructor raises which is given what it cannot take; `--debug` shows where.
BUILD_ERRORS = (
    MisconfigurationException,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    ImportError,
    OSError,
    AssertionError,
)
# jsonargparse tries all types that an option may have, and tells of each: these lines help nobody.
NOISE = re.compile(
    r"Does not validate against any|Subtypes: |Errors:$|Given value( type)?: |Expected a <class 'NoneType'>|"
    r"Not a valid subclass|Subclass types expect|an? (class path|dict )|Expected a path but|Expected a dot import path"
)
HEADS = re.compile(r"(Parser key \"[^\"]*\"|Problem with given class_path '[^']*'|Type .* callable class):\s*")
TYPES = re.compile(r"<class '([\w.]+)'>|typing\.")
# A default that is an enum where words are meant (Timer's interval) is written as its word.
yaml.SafeDumper.add_multi_representer(LightningEnum, lambda dumper, word: dumper.represent_str(word.value))
TRAINER_OPTIONS = set(inspect.signature(L.Trainer).parameters)


class Parser(LightningArgumentParser):
    """Lightning's, which says what is wrong in one line rather than below its whole usage. Reads configs of before."""

    _checked: str | None = None  # how keys begin whose values are checked already

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        return super()._load_config_parser_mode(_of_today(content), *args, **kwargs)

    def _parse_common(self, cfg: Any, env: Any, defaults: bool, *args: Any, **kwargs: Any) -> Any:
        """A command's options get the defaults of their classes by the parser of all commands, which adds them to the
        whole config: that its own parser does so before takes a third of the time of parsing."""
        return super()._parse_common(cfg, env, defaults and not hasattr(self, "subcommand"), *args, **kwargs)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """A command's parser checks its options; the parser of all commands would check each of them again after that,
        which takes a quarter of the time of parsing."""
        self._checked = f"{namespace.get('subcommand')}." if self._subcommands_action else None
        try:
            super().validate(namespace, *args, **kwargs)
        finally:
            self._checked = None

    def _check_value_key(self, action: Any, value: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        if self._checked and key.startswith(self._checked):
            return value
        return super()._check_value_key(action, value, key, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # that of a part, whose parser adds its key
            super().error(message, ex)
        self.exit(2, f"error: {condensed(message)}\n")


def _of_today(content: str) -> str:
    text = with_names_of_today(content)
    try:
        tree = yaml.load(text, Loader=get_yaml_default_loader())  # which reads 1e-3 as a number
    except yaml.YAMLError as error:  # it is stricter than the loader that has read the configs before
        raise InputError(f"a config is not readable YAML: {why_unreadable(error)}") from None
    today = with_parts(with_options_of_today(tree))
    return text if today == tree else yaml.safe_dump(today, sort_keys=False)


def condensed(message: str) -> str:
    """The key, the reasons and the value of a message of jsonargparse; of any other its lines, joined."""
    keys = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    lines = [HEADS.sub("", line.strip().removeprefix("- ")) for line in message.splitlines()]
    told = [re.sub(r"\. Got value: \w+\(.*", "", line) for line in lines if not NOISE.match(line)]
    reasons = [TYPES.sub(r"\1", line).strip() for line in dict.fromkeys(told) if line.strip()]
    values = re.findall(r"Given value: (?!\[?Namespace|NestedArg)(.*?)(?:\. Got value:|$)", message, flags=re.MULTILINE)
    if not reasons:
        reasons = ["no class or function of that name"] if "dot import path" in message else ["not a valid value"]
    return ": ".join(part for part in (keys, "; ".join(reasons), *values[:1]) if part)


@contextmanager
def as_input_errors(options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a constructor raises into an InputError that begins with the key of what was built.

    Args:
        options: the parsed config.
    """
    try:
        yield
    except BUILD_ERRORS as error:
        if any(isinstance(cause, InputError) or is_full(cause) for cause in _causes(error)):
            raise
        raise InputError(f"{_key(error, options)}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    text = condensed(str(error))
    clear = isinstance(error, ValueError | RuntimeError | MisconfigurationException) and text
    return text if clear else f"{type(error).__name__}: {text}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _key(error: BaseException, options: Mapping[str, Any]) -> str:
    """The key of the innermost part of the config in whose constructor the error was raised."""
    keys = {"TextDataModule": "data", "Trainer": "trainer"} | {
        str(value).rpartition(".")[2]: key.removesuffix(".class_path")
        for key, value in leaves(options, lists="numbers")
        if key.endswith(".class_path")
    }
    built = [name for cause in _causes(error) for name in _constructed(cause.__traceback__) if name in keys]
    key = keys[built[-1]] if built else "the config"
    named = [word for word in re.findall(r"\w+", str(error)) if word in TRAINER_OPTIONS]
    return f"trainer.{named[0]}" if key == "trainer" and named else key


def _constructed(traceback: TracebackType | None) -> Iterator[str]:
    """Names of the classes in whose `__init__` an error was raised, outermost first."""
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
            yield type(frame.f_locals["self"]).__name__
