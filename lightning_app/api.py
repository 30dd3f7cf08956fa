"""From Python, as in a notebook: `lightning_app.fit("article_gpt")`, `lightning_app.load(path).generate(prompt)`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from lightning_app.cli import main
from lightning_app.cli_checks import given_options, read_configs
from lightning_app.data.datamodule import TextDataModule, adopting_tokenizer
from lightning_app.data.sources import Dataloader, Source
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.reports.run_folder import RunFolder, runs_below
from lightning_app.serving.generate import continue_text
from lightning_app.shipped import with_configs
from lightning_app.training.command_options import ModelOptions, SamplingOptions
from lightning_app.training.loading import load as load_model
from lightning_app.training.module import LanguageModule

UNKNOWN_BLOCK = 512  # tokens at once of a model without a limit, or with a far larger one


@dataclass(frozen=True)
class Model:
    """A trained model with its tokenizer.

    Attributes:
        path: the checkpoint that it was read from.
        module: in eval mode.
    """

    path: Path
    module: LanguageModule
    tokenizer: Tokenizer

    def generate(self, prompt: str = "", **options: Any) -> str:
        """The continuation of a prompt, without it.

        Args:
            prompt: empty: a new document.
            options: `max_new_tokens`, `temperature` and so on, see `SamplingOptions`.

        Raises:
            InputError: a value that makes no sense.
        """
        sampling = SamplingOptions(**options)
        own = sampling.over(self.module.backbone.core.sampling)
        return "".join(continue_text(prompt, self.module, self.tokenizer, own, stop=sampling.stop))

    def bits_per_byte(self, text: str) -> float:
        """Cross-entropy on a text, as one document, in bits per byte, as `test` measures it."""
        longest = self.module.longest_block
        block = UNKNOWN_BLOCK if longest is None else min(UNKNOWN_BLOCK, longest)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "text.txt")
            path.write_text(text, encoding="utf-8")
            with adopting_tokenizer(self.tokenizer.saved()):
                data = TextDataModule(
                    test=Source(str(path)),
                    tokenizer=self.tokenizer.name,
                    special_tokens=self.tokenizer.special_text,
                    block_size=block,
                    dataloader=Dataloader(batch_size=1, num_workers=0),
                    cache_dir=folder,
                    clean=False,
                )
            trainer = L.Trainer(
                accelerator=self.module.device.type,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            (found,) = trainer.test(self.module, datamodule=data, verbose=False)
        return float(found["test/bpb"])


def load(path: str | Path | RunFolder, *, runs_dir: str | Path = "runs", device: str = "cpu") -> Model:
    """A model from a checkpoint, the folder of a run (its best one), a Hugging Face directory or a GGUF file.

    Args:
        path: or "best" or "last", of the newest run below `runs_dir`.

    Raises:
        InputError: there is none, or it is damaged, or no such device.
    """
    place = path.path if isinstance(path, RunFolder) else Path(path)
    best = RunFolder(place).checkpoint("best")
    return Model(*load_model(ModelOptions(str(best if best.exists() else place), Path(runs_dir), device)))


def fit(config: str | Path, **options: Any) -> RunFolder:
    """Train, as `main.py fit --config CONFIG` does, and return the folder of the run.

    Args:
        config: a YAML file, or the name of one that is shipped: "article_gpt".
        options: what is given behind a config: `trainer={"max_steps": 100}, name="mine"`, or by a key with dots,
            `**{"trainer.max_steps": 100}`.

    Raises:
        InputError: a mistake in the config or an option.
    """
    words = with_configs(["fit", "--config", str(config), *_words(options)])
    given = given_options(words, read_configs(words)) | options
    runs = Path(str(given.get("runs_dir", "runs")), str(given["name"]))
    before = {run.path for run in runs_below(runs)}
    main([*words, "--debug"])
    found = runs_below(runs)
    new = [run for run in found if run.path not in before]
    return (new or sorted(found, key=lambda run: run.log_file.stat().st_mtime))[-1]


def _words(options: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping) and "class_path" not in value:
            yield from _words(value, f"{before}{key}.")
        else:
            yield f"--{before}{key}={value if isinstance(value, str | Path) else json.dumps(value)}"
