"""The plain forward as ONNX: `input_ids` (batch, length) -> `logits` (batch, length, V), without a cache."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import CausalSelfAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE_NAME = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # relative to the largest logit, where that is above 1
SHAPES = ((2, 5), (1, 9))  # batches and lengths that the written graph is run with


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def check_onnx(model: nn.Module) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        InputError: a package is missing, or the model is not a graph.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if reasons := [one.no_graph for one in model.modules() if isinstance(one, Backbone) and one.no_graph]:
        raise InputError(f"--onnx cannot write this model: {reasons[0]}; leave --onnx out")


def write_onnx(model: PreTrainedModel, folder: Path) -> float:
    """Write `model.onnx`, run it, and return the largest difference of a logit.

    Raises:
        InputError: a family that PyTorch cannot write, or a graph that computes something else.
    """
    plain = _Logits(model.eval())
    ids = torch.zeros(2, 7, dtype=torch.int64)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _plain_attention(model), _quiet():
        try:
            program = torch.onnx.export(
                plain,
                (ids,),
                dynamo=True,
                dynamic_shapes={"input_ids": dynamic},
                input_names=["input_ids"],
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause = " ".join(str(error.__cause__ or error).split())[:200]
            raise InputError(f"this model cannot be written as ONNX ({cause}): leave --onnx out") from error
    assert program is not None
    program.save(str(folder / FILE_NAME))
    return _checked(plain, folder / FILE_NAME)


@torch.no_grad()
def _checked(plain: _Logits, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for shape in SHAPES:
        ids = torch.arange(shape[0] * shape[1]).view(shape) % plain.model.config.vocab_size
        expected = plain(ids).float()
        found = torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(f"{FILE_NAME} computes other logits (they differ by {difference:.3g}): leave --onnx out")
        largest = max(largest, difference)
    return largest


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Matmul and softmax in our own attention: the exporter cannot trace its choice of SDPA's causal mask."""
    modules = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    before = [module.kernel for module in modules]
    for module in modules:
        module.kernel = "matmul"
    try:
        yield
    finally:
        for module, kernel in zip(modules, before, strict=True):
            module.kernel = kernel


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
