"""What could not be read back is refused when it is written, with its place; all else is not."""

import enum
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_app.training.plain_types import check_plain

Pair = namedtuple("Pair", "a b")
Kind = enum.Enum("Kind", "one two")
OWN = """
import numpy
import lightning as L
class Scores(L.Callback):
    def state_dict(self): return {"best": [1.0, numpy.float64(2.0)]}
"""


@pytest.mark.parametrize(
    "value",
    [Path("x"), np.float64(1.0), np.int64(1), np.zeros(2), Pair(1, 2), Kind.one, lambda: 0, object(), np.float32],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_with_their_place(value: object):
    for checkpoint, words in (
        ({"callbacks": {"Mine": {"a": [0, {"b": value}]}}}, "the callback Mine puts a .* at a.1.b, and it could not"),
        ({"hyper_parameters": {"x": (value,)}}, "the run puts a .* at hyper_parameters.x.0, and"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            check_plain(checkpoint)
        assert type(value).__qualname__ in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_counts_too():
    with pytest.raises(InputError, match=r"the callback Mine puts a pathlib.PosixPath .* at x, and"):
        check_plain({"callbacks": {"Mine": {Path("x"): 1}}})


def test_all_that_torch_reads_is_written(tmp_path: Path):
    tensor = torch.nn.Parameter(torch.ones(2))
    plain = {"a": OrderedDict(x=(1, 2.0, None, "s", b"b", True, 1j)), "t": [tensor, tensor.detach()], 3: {1, 2}}
    torches = {"size": tensor.shape, "dtype": torch.float16, "device": torch.device("cpu")}
    AtomicCheckpointIO().save_checkpoint({**plain, **torches}, tmp_path / "x.ckpt")
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert found["a"] == plain["a"]
    assert found["dtype"] == torch.float16


def test_a_callback_that_cannot_be_saved_stops_the_fit_at_its_first_save(
    folder: Path, config: Callable[..., str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    (folder / "own_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    name = config({"trainer": {"callbacks": [{"class_path": "own_scores.Scores"}]}})
    error = fails("fit", "--config", name)
    assert "the callback Scores puts a numpy.float64 into the checkpoint at best.1, and it could not" in error
    assert not list(Path("runs").rglob("*.ckpt"))
