"""What must be equal for equal probabilities, to the last bit: the model, the CPU's instructions, the libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.registry import describe
from lightning_app.training.module import LanguageModule

CPUS = ("DEFAULT", "AVX2", "AVX512", "NO AVX", "NEON", "SVE", "SVE128", "SVE256", "VSX", "ZVECTOR", "Z VECTOR")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LIBRARIES = ("faiss-cpu", "numpy", "tiktoken", "tokenizers", "transformers")  # besides torch


@dataclass(frozen=True)
class Setting:
    """What who reads an archive must have in common with who wrote it.

    Attributes:
        model: 4 bytes of a hash of the weights, of what else decides their model, and of its tokenizer.
        cpu: the instructions that torch uses.
        dtype: of the weights.
        threads: of each computation.
        torch: its version.
        libraries: 2 bytes of a hash of the versions of `LIBRARIES`.
    """

    model: bytes
    cpu: str
    dtype: torch.dtype
    threads: int
    torch: tuple[int, int, int]
    libraries: bytes

    @classmethod
    def here(cls, module: LanguageModule, tokenizer: Tokenizer) -> Setting:
        """That of this process, for this model.

        Raises:
            InputError: a kind of CPU or of weights that an archive has no number for.
        """
        cpu, dtype = torch.backends.cpu.get_cpu_capability(), next(module.backbone.parameters()).dtype
        if cpu not in CPUS or dtype not in DTYPES:
            raise InputError(f"an archive cannot name this CPU ({cpu}), or weights of {dtype}")
        return cls(model_hash(module, tokenizer)[:4], cpu, dtype, torch.get_num_threads(), _torch(), _libraries()[:2])

    def check(self, other: Setting) -> None:
        """Refuse to read an archive whose setting this is with another one.

        Raises:
            InputError: the first difference.
        """
        for name, theirs, ours in (
            ("with another model, or with another version of this one", self.model, other.model),
            (f"on a CPU with {self.cpu}; this one has {other.cpu}", self.cpu, other.cpu),
            (f"with weights of {self.dtype}; these are of {other.dtype}", self.dtype, other.dtype),
            (f"by {self.threads} threads, not {other.threads}", self.threads, other.threads),
            (f"by torch {_dotted(self.torch)}; here is {_dotted(other.torch)}", self.torch, other.torch),
            (f"by other versions of {', '.join(LIBRARIES)}", self.libraries, other.libraries),
        ):
            if theirs != ours:
                raise InputError(f"the archive was written {name}: it cannot be read here")


def model_hash(module: LanguageModule, tokenizer: Tokenizer) -> bytes:
    """A hash, 32 bytes, of all that decides the probabilities of a text."""
    found = hashlib.sha256(json.dumps(describe(module.backbone), sort_keys=True, default=str).encode())
    found.update(tokenizer.fingerprint.encode())
    for name, value in module.state_dict().items():
        found.update(name.encode())
        found.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return found.digest()


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.detach().contiguous()
    return f"{whole.dtype} {tuple(whole.shape)}".encode() + whole.view(-1).view(torch.uint8).numpy().tobytes()


def _torch() -> tuple[int, int, int]:
    major, minor, patch = torch.__version__.split("+")[0].split(".")[:3]
    return int(major), int(minor), int("".join(filter(str.isdigit, patch)) or 0)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # FAISS has other names, too
        return "none"


def _libraries() -> bytes:
    versions = [f"{name} {_version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(versions).encode()).digest()
