"""`fit --help` tells the options of the config's classes first, and all others behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app import cli
from lightning_app.cli import main

ROOT = Path(__file__).parents[2]
SECTIONS = ["the run", "data", "trainer, of Lightning's"]


def sections(text: str) -> dict[str, str]:
    return {part.split("\n", 1)[0]: part for part in text.strip().split("\n\n")}


def test_the_models_options_come_first_with_defaults(capsys: pytest.CaptureFixture[str]):
    main(["fit", "--help"])
    text = capsys.readouterr().out
    assert list(sections(text))[2:] == ["model: ArticleGPT", "model.backbone: Decoder", *SECTIONS]
    assert "--model.backbone.layers                   number of blocks (default 3)" in text
    assert "--data.dataloader.batch_size " in sections(text)["data"]
    assert "--trainer.max_steps " in sections(text)["trainer, of Lightning's"]
    assert max(map(len, text.splitlines())) <= 118


def test_the_classes_are_those_of_the_config(capsys: pytest.CaptureFixture[str]):
    main(["fit", "--config", str(ROOT / "configs" / "varda_gpt_offline.yaml"), "-h"])
    found = sections(capsys.readouterr().out)
    assert list(found)[2:5] == ["model: VardaGPT", "model.backbone: Decoder", "model.readers: CacheReader"]
    assert "--model.readers.lam " in found["model.readers: CacheReader"]


def test_without_the_schema_lightning_helps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """As where configs/ is not installed."""
    monkeypatch.setattr(cli, "schema", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    assert "--trainer.max_steps" in capsys.readouterr().out


def test_nothing_heavy_is_imported_for_it():
    code = "import sys; from lightning_app.cli import main; main(['test', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("python main.py test --config FILE")
    assert done.stdout.endswith("\nFalse\n")
