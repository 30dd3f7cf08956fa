"""Ways of computing that last for a while."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_app.models import modes
from lightning_app.models.modes import evaluated, full_precision, uncompiled


def test_evaluated_for_a_while():
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval())
    with evaluated(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_full_precision_for_a_while():
    before = torch.get_float32_matmul_precision()
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(x.device):
        assert (x @ x).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_uncompiled_for_a_while():
    """Within it the compiled function runs as it is written, for other shapes and flags too."""
    compiled_graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        compiled_graphs.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with uncompiled():
        assert double(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(KeyError), uncompiled():
        raise KeyError
    assert compiled_graphs == []
    assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert len(compiled_graphs) == 1


def test_the_stance_is_set_in_one_file():
    package = Path(modes.__file__).parents[1]
    sources = {path: path.read_text() for path in package.rglob("*.py")}
    assert [path.name for path, source in sources.items() if "set_stance" in source] == ["modes.py"]
