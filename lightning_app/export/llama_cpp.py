"""What llama.cpp itself computes from a GGUF file, by the package cyllama.

It runs in a process of its own, since llama.cpp ends its process where it meets an error.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = "cyllama"
ROOT = Path(__file__).parents[2]
F32 = 0  # of keys and values: llama.cpp's default, f16, is 1e-3 off
OFF = 0  # flash attention: likewise


class LlamaError(RuntimeError):
    """llama.cpp refuses a file, or ended; with its own last words."""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def logits(path: Path, ids: Sequence[int]) -> list[list[float]]:
    """The logits of each position, (T, V).

    Raises:
        LlamaError: the file cannot be loaded or run.
    """
    return _asked(path, {"ids": list(ids)})


def token_ids(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, in which special tokens are ordinary text and none are added.

    Raises:
        LlamaError: the file cannot be loaded.
    """
    return _asked(path, {"texts": list(texts)})


def _asked(path: Path, question: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", __name__, str(path.absolute())]
    done = subprocess.run(
        command, input=json.dumps(question).encode(), capture_output=True, check=False, cwd=ROOT, timeout=600
    )
    if done.returncode:
        words = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line.lower()]
        raise LlamaError(f"llama.cpp cannot run {path}: {'; '.join(words[:3]) or f'it ended with {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


# In the process of its own


def _answer(path: str, question: dict[str, Any]) -> Any:
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):  # cyllama 0.2.18 asks it for n_vocab, which it lacks
        n_vocab = property(lambda self: self.get_vocab().n_vocab)

    llama_cpp.llama_backend_init()
    settings = llama_cpp.LlamaModelParams()
    settings.n_gpu_layers = 0
    model = Model(path_model=path, params=settings, verbose=False)
    if "texts" in question:
        return [model.get_vocab().tokenize(text, False, False) for text in question["texts"]]
    return _logits(llama_cpp, model, question["ids"])


def _logits(llama_cpp: Any, model: Any, ids: list[int]) -> list[list[float]]:
    settings = llama_cpp.LlamaContextParams()
    settings.n_ctx = settings.n_batch = max(64, len(ids))
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type, settings.type_k, settings.type_v = OFF, F32, F32
    context = llama_cpp.LlamaContext(model=model, params=settings, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for position, token in enumerate(ids):
        batch.add(token, position, [0], True)
    context.decode(batch)
    return [[float(x) for x in context.get_logits_ith(i)] for i in range(len(ids))]


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], json.load(sys.stdin))))
