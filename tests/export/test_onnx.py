"""model.onnx gives the logits of the model, at any batch and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.export import onnx as export_onnx
from lightning_app.export.models import own_model, plain_model
from lightning_app.export.onnx import check_onnx, write_onnx
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 60, "block_size": 24, "embedding_dim": 16, "layers": 2, "heads": 4}
    plain = plain_model(Decoder(**sizes))
    options = {"n_layer": 2, "n_embd": 16, "n_head": 4}
    family = PretrainedLM(architecture="gpt2", options=options, vocab_size=60, block_size=24)
    return {"gpt2": plain, "own": own_model(Decoder(**sizes, positions="rotary")), "family": plain_model(family)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "own", "family"])
def test_onnxruntime_computes_the_logits(tmp_path: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = models()[name].eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    assert write_onnx(model, tmp_path) < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for shape in ((1, 2), (3, 17), (2, 24)):
        ids = torch.randint(60, shape)
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        found = torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])
        assert expected.std() > 0.3
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_memory_is_refused(reading: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "NEEDED", ())
    with pytest.raises(InputError, match="a search by FAISS cannot be written as a graph"):
        check_onnx(reading("knn", "some text")[0].backbone)


def test_a_missing_package_is_named(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "NEEDED", ("onnx_of_nobody",))
    with pytest.raises(InputError, match="pip install onnx_of_nobody"):
        check_onnx(plain[0].backbone)
