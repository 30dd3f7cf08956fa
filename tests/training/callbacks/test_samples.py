from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.training.callbacks.samples import Samples

CLASS = "Samples"


def test_samples_change_nothing_and_compare_over_time(main: Callable, config: Callable):
    with_samples = {
        "callbacks": [{"class_path": CLASS, "init_args": {"prompts": ["the", "a"], "every_n_validations": 2}}]
    }
    for name, trainer in (("with", with_samples), ("without", {})):
        main("fit", "--config", config({"name": name, "trainer": {**trainer, "val_check_interval": 1}}))
    paths = sorted(Path("runs/with/version_0/samples").glob("step_*.txt"))
    assert [path.name for path in paths] == ["step_000002.txt", "step_000004.txt", "step_000006.txt"]
    for path in paths:
        one, two = path.read_text().split("\n\n---\n\n")
        assert one.startswith("the")
        assert two.startswith("a")
    one, two = (
        torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("with", "without")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("prompts", [[], [""]])
def test_it_needs_prompts(prompts: list[str]):
    with pytest.raises(InputError, match="prompts"):
        Samples(prompts)
