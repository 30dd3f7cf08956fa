"""Configs and articles that come with the package are found by name, from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightning_app.cli_checks import check_texts
from lightning_app.data.corpus import read_documents
from lightning_app.errors import InputError
from lightning_app.shipped import here_or_shipped, shipped, with_configs

ROOT = Path(__file__).parents[1]


def test_a_config_is_found_by_its_name_or_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", "article_gpt", "-c=debug", "--config=configs/gpt2.yaml", "--name", "article_gpt"]
    config = ROOT / "configs"
    found = [str(config / "article_gpt.yaml"), f"-c={config}/overlays/debug.yaml", f"--config={config}/gpt2.yaml"]
    assert with_configs(words) == ["fit", "--config", *found, "--name", "article_gpt"]
    Path("article_gpt").write_text("mine")
    Path("configs").mkdir()
    Path("configs/debug.yaml").write_text("mine")
    assert with_configs(words)[2:4] == ["article_gpt", "-c=configs/debug.yaml"]  # what is here comes first
    assert with_configs(["fit", "--config", "nothing", "-c", "no.yaml"]) == [
        "fit",
        "--config",
        "nothing",
        "-c",
        "no.yaml",
    ]


def test_the_text_of_a_shipped_config_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert len(list(read_documents("data/articles/val"))) == 2
    check_texts("fit", {"data.train.path": "data/articles/train", "data.val.path": "data/articles/val"})
    with pytest.raises(InputError, match="no such file: data/articles/vall"):
        check_texts("fit", {"data.train.path": "data/articles/vall"})
    Path("data/articles/val").mkdir(parents=True)
    Path("data/articles/val/one.txt").write_text("one")
    assert [document.name for document in read_documents("data/articles/val")] == ["data/articles/val/one.txt"]
    assert here_or_shipped("/nowhere") == "/nowhere"
    assert shipped(tmp_path) is None


@pytest.mark.slow
def test_a_wheel_carries_them_and_its_command_finds_them(tmp_path: Path):
    """In an environment that has everything but this project, from an empty folder."""
    source = tmp_path / "source"  # setuptools builds where the source lies
    for part in ("lightning_app", "configs", "data"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*build, str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.partition("share/lightning_app/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    kept = [path for folder in ("configs", "data/articles") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert names - {""} == {str(path.relative_to(ROOT)) for path in kept}
    place, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(pytest.__file__).parents[1]))
    install = [str(place / "bin/python"), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    steps = [
        "--trainer.max_steps",
        "2",
        "--fit_in",
        "null",
        "--trainer.limit_val_batches",
        "1",
        "--data.vocab_size",
        "300",
    ]
    words = [str(place / "bin/lightning-app"), "fit", "--config", "article_gpt", *steps]
    done = subprocess.run(
        [*words, "--data.tokenizer", "t.tiktoken"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "runs/article_gpt/version_0/checkpoints/best.ckpt").is_file()
    helped = subprocess.run(
        [words[0], "fit", "--config", "article_gpt", "--help"], cwd=folder, capture_output=True, text=True
    )
    assert "--model.backbone.layers" in helped.stdout  # by the schema
