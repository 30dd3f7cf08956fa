"""Every command block of README.md and docs/ runs, as it is written, in a folder where everything is small.

What cannot run here stands in LINES, with the reason; each of them must be on a page.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import page_server, small_folder
from tests.pages import ROOT, Block, blocks, commands, pages, shell

PAGES = pages()
NEEDS_A_NETWORK = "downloads"
DRIVE = "/content/drive/MyDrive"  # of a notebook: a folder here
LINES = {  # the beginning of a line, in any block
    "pip install": NEEDS_A_NETWORK,
    "git clone": NEEDS_A_NETWORK,
    "cd lightning_app": "goes with `git clone`",
    "hf auth login": "asks for a token",
    "python main.py export --ckpt_path best --output exported/article_gpt --push_to_hub": "uploads",
    "wandb sync": "uploads",
    "lm_eval run": "tests/export/test_tools.py runs the task; the other one asks a server of the page",
    "curl": "asks the server of the block before; tests/serving/server does",
    "make": "a target is a command of main.py, or of python -m, that is tested by itself",
    "python3 -m venv": "makes the environment in which this test runs",
    "source .venv": "the same",
    "torchrun": "several machines; tests/test_ddp.py starts two of one process each",
    "CONFIG=configs/gpt2.yaml sbatch": "the same as the line before",
    "sbatch": "needs SLURM; the script's syntax is checked below",
    "TIKTOKEN_CACHE_DIR=vocabularies python": NEEDS_A_NETWORK,
    ".venv/bin/python -m pytest": "these are tests themselves",
    "python -m experiments.": "minutes to hours; tests/test_experiments_*.py run them small",
    "python main.py export --ckpt_path best --format gguf": "the model is not pruned here; tests/export/test_gguf.py",
    "python main.py export --ckpt_path best --runs_dir runs/gpt2_offline --format gguf": "the same",
    "python main.py fit --config configs/article_gpt_162m.yaml --config configs/overlays": "GPUs; tests/test_ddp.py",
    "python -m lightning.fabric.utilities.consolidate_checkpoint": "goes with the shards of the line before",
    "python main.py generate --ckpt_path best.ckpt": "the same",
    "python main.py fit --config configs/article_gpt.yaml --config configs/overlays/ddp.yaml": "tests/test_ddp.py",
    "for node in 0 1; do": "tests/test_ddp.py starts two nodes",
    "done; wait": "the end of that",
    "zip": "a program of the system's",
}
PYTHON = {  # a word of a block in Python, and why it is not run
    "OpenAI(": "asks the server of another block; tests/serving/server has the same client",
    "exported/varda": "tests/export/test_command.py loads such a directory",
    'AutoTokenizer.from_pretrained("models/smollm2")': "lines for another block; tests/art/test_hf_trainer.py",
    "convert_gguf": "needs a GGUF file; tests/models/test_gguf_directory.py",
}
FOLLOWS = {  # what a page expects to have been run, or saved from another page, as its text says
    "docs/compare.md": "python main.py fit --config configs/gpt2_offline.yaml",
}
SCRIPT = "block.py"  # of one that the page saves nowhere
SAVED = {"docs/models.md": "docs/how-to/categories.md"}


def lines(code: str) -> list[str]:
    """A shell's code line by line, a command that goes on in one."""
    return code.replace("\\\n", "").splitlines()


def left_out(line: str) -> str | None:
    words = " ".join(line.split())
    return next((beginning for beginning in LINES if words.startswith(beginning)), None)


def runs(block: Block) -> str:
    """What of it is run here."""
    return "\n".join(line for line in lines(shell(block)) if left_out(line) is None)


def of_page(page: Path) -> str:
    """A script with all of a page's blocks: files are written, commands run, and a failure says which."""
    name = str(page.relative_to(ROOT))
    parts = ["set -e", FOLLOWS.get(name, "")]
    if other := SAVED.get(name):
        parts += [written(block) for block in blocks(ROOT / other) if block.file]
    for block in blocks(page):
        if block.file:
            parts.append(written(block))
        elif block.language == "python" and not any(word in block.code for word in PYTHON):
            parts.append(f"{written(replace(block, file=SCRIPT))}\npython {SCRIPT}")
        elif code := runs(block).strip():
            parts.append(f"echo {shlex.quote(block.name)}\n{code}")
    return "\n".join(parts).replace(DRIVE, "drive")


def written(block: Block) -> str:
    """A shell's command that saves it where its page says."""
    return f"cat {'>>' if block.appends else '>'} {block.file} <<'END_OF_FILE'\n{shorter(block.code)}END_OF_FILE"


def shorter(code: str) -> str:
    """A page's own config or script, in fewer steps."""
    code = re.sub(r"(max_steps[:=] ?)\d+", r"\g<1>4", code).replace('"max_steps": 200', '"max_steps": 4')
    code = re.sub(r"((?:training|warmup|finetuning)_steps: )[1-9]\d*", r"\g<1>1", code)
    return re.sub(r"(val_check_interval[:=] ?)\d+", r"\g<1>2", code)


def test_the_script_for_slurm_has_no_mistake_of_syntax():
    assert subprocess.run(["bash", "-n", ROOT / "docs" / "slurm.sh"], check=False).returncode == 0


RUN = [page for page in PAGES if any(runs(block).strip() or block.language == "python" for block in blocks(page))]


def test_what_is_left_out_is_on_a_page_and_most_is_not():
    every = [line for page in PAGES for block in blocks(page) for line in lines(shell(block)) if commands(line)]
    assert len(every) > 100
    assert sum(left_out(line) is None for line in every) > 0.8 * len(every)
    there = {left_out(line) for page in PAGES for block in blocks(page) for line in lines(shell(block))}
    assert [beginning for beginning in LINES if beginning not in there] == []
    code = [block.code for page in PAGES for block in blocks(page) if block.language == "python"]
    assert [word for word in PYTHON if not any(word in one for one in code)] == []


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a program `python` that starts at once."""
    folder = tmp_path_factory.mktemp("python")
    place = folder / "socket"
    words = [sys.executable, "-m", "tests.page_server", str(place)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        page_server.shim(place, folder)
        yield folder
        server.terminate()


def bash(script: str, folder: Path, python: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{python}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3_000:]}\n{done.stderr[-3_000:]}"


@pytest.fixture(scope="module")
def trained(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after `make train`."""
    folder = tmp_path_factory.mktemp("pages")
    small_folder.make(folder)
    bash("python main.py fit --config configs/article_gpt.yaml", folder, python)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, trained: Path, python: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(trained, folder, symlinks=True)
    bash(of_page(page), folder, python)
