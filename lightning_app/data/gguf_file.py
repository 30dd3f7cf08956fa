"""A GGUF file (llama.cpp's format): what it says of itself, and whether it is whole, before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.errors import InputError

if TYPE_CHECKING:
    from gguf.gguf_reader import ReaderTensor

MAGIC = b"GGUF"
ENDING = ".gguf"
DAMAGED = (ValueError, IndexError, KeyError, OverflowError, MemoryError)  # what the reader meets in a damaged file


@dataclass(frozen=True)
class GGUFFile:
    """What a file holds; the weights stay on the disk.

    Attributes:
        metadata: by the format's names, such as "llama.block_count" and "tokenizer.ggml.pre", in plain types.
        tensors: by the format's names, such as "blk.0.attn_q.weight", quantised as they are.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, ReaderTensor]

    @property
    def architecture(self) -> str:
        """Its family, such as "llama"."""
        return str(self.metadata["general.architecture"])

    def about(self, name: str) -> Any:
        """A setting of its family, such as "attention.head_count"; None where it has none."""
        return self.metadata.get(f"{self.architecture}.{name}")


def package() -> Any:
    """The package `gguf`. What an exported directory carries of this project has it only where it is installed."""
    try:
        import gguf
    except ImportError as error:
        raise InputError("a GGUF file needs the package gguf: pip install gguf") from error
    return gguf


def is_named_gguf(name: str | Path) -> bool:
    """Whether a path's ending says so, in any case."""
    return str(name).lower().endswith(ENDING)


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files in a folder, sorted."""
    return sorted(path for path in folder.glob("*") if is_named_gguf(path) and path.is_file())


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_gguf(path: str | Path) -> GGUFFile:
    """Read all but the weights (3 s at 49,152 ids; the file that was read last is not read again).

    Raises:
        InputError: no GGUF file, a truncated one, a part of several, one without a family, or with tensors of a
            quantisation that the package `gguf` cannot undo.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: give a GGUF file")
    if not is_gguf(path):
        raise InputError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
    stat = path.stat()
    return _checked(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)  # a command asks for its sizes, its tokenizer and its weights apart
def _checked(path: Path, _time: int, _size: int) -> GGUFFile:
    read = _read(path)
    if "general.architecture" not in read.metadata:
        raise InputError(f"{path} does not say which family its model is of (general.architecture): give another file")
    if (parts := read.metadata.get("split.count", 1)) > 1:
        raise InputError(f"{path} is one of {parts} parts: join them with `llama-gguf-split --merge`")
    _check_quantisation(read)
    return read


def _read(path: Path) -> GGUFFile:
    gguf = package()
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except DAMAGED as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is truncated ({path.stat().st_size:,} bytes) "
            "or newer than the package gguf; download it again"
        ) from error
    return GGUFFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def _check_quantisation(file: GGUFFile) -> None:
    """Undo that of one row of each kind."""
    gguf = package()
    kinds = {tensor.tensor_type: tensor for tensor in file.tensors.values()}
    for kind, tensor in kinds.items():
        try:
            gguf.dequantize(tensor.data[:1], kind)
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{file.path}: {tensor.name} is stored as {kind.name}, which cannot be read here; give a file in "
                "another quantisation, such as Q8_0"
            ) from error
