from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.generate import continue_text
from lightning_app.training.callbacks.samples import Samples, continued
from lightning_app.training.compositions import ArticleGPT

CLASS = "Samples"


@pytest.mark.slow
def test_samples_change_nothing_and_compare_over_time(main: Callable, config: Callable):
    with_samples = {
        "callbacks": [{"class_path": CLASS, "init_args": {"prompts": ["the", "a"], "every_n_validations": 2}}]
    }
    for name, trainer in (("with", with_samples), ("without", {})):
        main(
            "fit",
            "--config",
            config({"name": name, "trainer": {**trainer, "val_check_interval": 1, "limit_val_batches": 1}}),
        )
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


def test_a_sample_ends_where_a_text_of_generate_does():
    """Also at the other tokens that end a text of the model, such as a turn's end."""
    torch.manual_seed(0)
    module, data = ArticleGPT(Decoder(vocab_size=257, block_size=64, embedding_dim=8, heads=2)), TextDataModule()
    module.use_tokenizer(data.tokenizer)
    module.eval()
    options = GenerationOptions(40)
    whole = continued("the", module, data, options)
    drawn = [int(token) for token in module.generate(torch.tensor([list(b"the")]), options)]
    module.end_ids |= {drawn[9]}
    assert drawn.index(drawn[9]) > 2
    found = continued("the", module, data, options)
    assert found == data.tokenizer.decode(drawn[: drawn.index(drawn[9])])
    assert len(found) < len(whole)
    assert "".join(continue_text("the", module, data.tokenizer, options)) == found


@pytest.mark.parametrize("prompts", [[], [""]])
def test_it_needs_prompts(prompts: list[str]):
    with pytest.raises(InputError, match="prompts"):
        Samples(prompts)
