"""The wheel, installed alone into a venv that sees the packages of this one, trains and generates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lightning_app import __version__

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def run(*words: object, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as building leaves a folder, and without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lightning_app", folder / "source/lightning_app", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source", folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The venv's folder of programs."""
    venv = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, folder=wheel.parent)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(venv / "bin/python", "-c", code, folder=wheel.parent).strip())
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(*PIP, "--python", venv / "bin/python", "install", "--no-deps", wheel, folder=wheel.parent)
    return venv / "bin"


def test_each_file_of_the_package_is_in_the_wheel(wheel: Path):
    package = ROOT / "lightning_app"
    files = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert "lightning_app/serving/page.html" in files
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files


def test_the_program_trains_and_generates_in_another_folder(installed: Path, folder: Path):
    where = "import lightning_app; print(lightning_app.__file__, lightning_app.__version__)"
    file, version = run(installed / "python", "-c", where, folder=folder).split()
    assert Path(file).is_relative_to(installed.parent)
    assert version == __version__
    program = installed / "lightning-app"
    assert "best checkpoint" in run(program, "fit", "--config", "tiny.yaml", folder=folder)
    best = folder / "runs/tiny/version_0/checkpoints/best.ckpt"
    said = run(program, "generate", "--ckpt_path", best, "--prompt", "the", "--max_new_tokens", 5, folder=folder)
    assert said.startswith("the")
