"""The options that commands around a trained model share, for `command_line`. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from lightning_app.errors import InputError
from lightning_app.models.generation_options import SAMPLING, GenerationOptions
from lightning_app.utf8 import as_text

TOP_K = 50  # what a command samples among if nothing is said: small models have long, poor tails
DEFAULTS = GenerationOptions()


def _as_text(kind: Any, tokens: Sequence[Token]) -> Any:
    words = [as_text(token.value) for token in tokens]
    return words[0] if kind is str else words


# Text that may begin with a hyphen, and may hold bytes that are not UTF-8.
Text = Annotated[str, Parameter(converter=_as_text, allow_leading_hyphen=True)]
Texts = Annotated[list[str], Parameter(converter=_as_text, allow_leading_hyphen=True)]


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class CheckpointOptions:
    """Which model.

    Args:
        ckpt_path: a checkpoint of a fit, or a Hugging Face directory; best or last: of the newest run below RUNS_DIR.
        runs_dir: where best and last are looked for.
    """

    ckpt_path: str
    runs_dir: Path = Path("runs")


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class ModelOptions(CheckpointOptions):
    """Which model, and where it runs.

    Args:
        device: cpu, cuda or mps.
    """

    device: str = "cpu"


@Parameter(name="*", group="Sampling")
@dataclass(frozen=True)
class SamplingOptions:
    """How a text is continued. What is not given is as the model's source says, else as it stands here.

    Args:
        max_new_tokens: at most so many are added.
        temperature: 0 is greedy; without it as the model's source says, else 0.8.
        top_k: only among the k most likely tokens, 0: all; without it as the model's source says, else 50.
        top_p: only among the likeliest tokens that together have this probability; without it as the model's source
            says, else 1.
        min_p: only tokens with this share of the likeliest's probability; without it as the model's source says, else
            0.
        repetition_penalty: above 1: what was said is less likely; without it as the model's source says, else 1.
        seed: of the draws.
        stop: end before this text; may be given several times.
    """

    max_new_tokens: int = DEFAULTS.max_new_tokens
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = DEFAULTS.seed
    stop: Annotated[Texts, Parameter(show_default=False)] = field(default_factory=list)

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise InputError(f"stop is {list(self.stop)}: an empty text would end every answer at once")
        self.over({})

    def over(self, own: Mapping[str, Any]) -> GenerationOptions:
        """All of them, where `own` is what the model's source says.

        Raises:
            InputError: a value that makes no sense.
        """
        given = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        said = {"top_k": TOP_K, **own, **given}
        said["top_k"] = said["top_k"] or None
        return GenerationOptions(max_new_tokens=self.max_new_tokens, seed=self.seed, **said)
