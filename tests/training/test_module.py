"""LanguageModule without a Trainer, and with one where it needs one."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.training.checkpoint import start_from
from lightning_app.training.compositions import ArticleGPT
from tests.advice import SHORT, advised


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"vocab_size": 257, "block_size": 16, "embedding_dim": 16, "layers": 2, "heads": 2, **options})


def batch() -> Batch:
    return Batch.of_texts(torch.arange(64).view(4, 16) % 250)


class PullToZero(Regularizer):
    """The mean square of a layer's states; counts what it has learned from."""

    learned: Tensor

    def __init__(self) -> None:
        super().__init__(weight=0.5, layers=(0,))
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"zero": outputs.states.layers[0].square().mean()}

    def config(self) -> dict[str, Any]:
        return {}

    def learn(self, outputs: Outputs) -> None:
        assert not torch.is_grad_enabled()
        self.learned += 1


def test_cross_entropy_is_that_of_the_next_token():
    module = ArticleGPT(decoder()).eval()
    found = module.loss_terms(module.outputs(batch()))["ce"][1]
    log_p = module(batch().input_ids).log_softmax(-1)
    by_hand = -log_p[:, :15].gather(2, batch().targets[:, :15, None]).mean()
    assert torch.allclose(found, by_hand, atol=1e-6)


def test_a_loader_of_other_batches_is_refused():
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    loader = DataLoader([vars(batch())], batch_size=None)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(InputError, match=r"the loader gives a dict where a Batch is needed: .*Batch\.of\(ids\)"):
        L.Trainer(**quiet).validate(ArticleGPT(decoder()), loader, verbose=False)
    with pytest.raises(InputError, match="the loader gives a dict"):
        L.Trainer(**quiet, max_steps=200, accumulate_grad_batches=2, num_sanity_val_steps=0).fit(
            ArticleGPT(decoder()), loader, loader
        )
    whole = DataLoader([batch()], batch_size=None)  # type: ignore[arg-type, var-annotated]
    (found,) = L.Trainer(**quiet).validate(ArticleGPT(decoder()), whole, verbose=False)
    assert found["val/ce"] > 0


def test_token_noise_replaces_that_share_of_the_inputs_in_training_only():
    module = ArticleGPT(decoder(), token_noise=0.25)
    ids = torch.full((100, 100), 7)
    share = (module._add_noise(ids) != ids).double().mean().item()
    assert share == pytest.approx(0.25 * 256 / 257, abs=0.02)
    seen: list[Tensor] = []
    module.backbone.embed = lambda ids: seen.append(ids) or Decoder.embed(module.backbone, ids)  # type: ignore[method-assign]
    module.train().outputs(batch())
    module.eval().outputs(batch())
    assert not torch.equal(seen[0], batch().input_ids)
    assert torch.equal(seen[1], batch().input_ids)
    with pytest.raises(InputError, match="token_noise is 1"):
        ArticleGPT(decoder(), token_noise=1.0)


def test_a_regularizer_adds_its_weighted_terms_with_a_gradient():
    module = ArticleGPT(decoder(), extensions=[PullToZero()]).eval()
    outputs = module.outputs(batch())
    terms = module.loss_terms(outputs)
    assert {name: weight for name, (weight, _) in terms.items()} == {"ce": 1.0, "zero": 0.5}
    (gradient,) = torch.autograd.grad(terms["zero"][1], module.backbone.transformer["wte"].weight)
    assert gradient.abs().sum() > 0


@pytest.fixture
def data(folder: object) -> TextDataModule:
    return TextDataModule(
        train={"path": "train.txt"}, val={"path": "val.txt"}, block_size=16, dataloader={"batch_size": 4}
    )


Fit = Callable[..., L.Trainer]


@pytest.fixture
def fit(data: TextDataModule) -> Fit:
    def run(module: ArticleGPT, **options: Any) -> L.Trainer:
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **{"max_steps": 4, "limit_val_batches": 0, **options},
        )
        with advised(SHORT):
            trainer.fit(module, datamodule=data)
        return trainer

    return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_regularizers_learn_once_per_batch_after_the_step_and_never_in_validation(fit: Fit, accumulate: int):
    regularizer = PullToZero()
    fit(ArticleGPT(decoder(), extensions=[regularizer]), accumulate_grad_batches=accumulate)
    assert regularizer.learned == 4 * accumulate


def test_a_regularizer_of_weight_zero_changes_nothing(fit: Fit):
    plain, other = ArticleGPT(decoder(dropout=0.1)), ArticleGPT(decoder(dropout=0.1), extensions=[PullToZero()])
    other.regularizers[0].weight = 0.0
    for module in (plain, other):
        torch.manual_seed(1)
        fit(module)
    for one, two in zip(plain.backbone.parameters(), other.backbone.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_matrices_decay(fit: Fit):
    module = ArticleGPT(decoder())
    groups = fit(module, max_steps=1).optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"])
    assert all(p.dim() < 2 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": -1, "max_epochs": 2}, 2 * 37),
        ({"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": 3}, 2 * 13),
        ({"max_steps": -1, "max_epochs": 2, "limit_train_batches": 5}, 10),
        ({"max_steps": 3, "max_epochs": 2}, 3),
    ],
)
def test_the_schedule_is_as_long_as_the_run(fit: Fit, data: TextDataModule, options: dict[str, Any], steps: int):
    data.setup("fit")
    assert data.batches_per_epoch("train") == 37
    module = ArticleGPT(decoder())
    trainer = fit(module, **options)
    assert trainer.global_step == steps == module.optimizer_steps()


def test_the_gradient_norm_is_that_before_clipping(fit: Fit):
    module = ArticleGPT(decoder())
    fit(module, max_steps=1, gradient_clip_val=1e-3, log_every_n_steps=1)
    after = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    assert module.grad_norm is not None
    assert module.grad_norm > 0.1 > 2e-3 > after


def test_weights_of_another_shape_or_config_are_refused_with_both():
    module = ArticleGPT(decoder())
    with pytest.raises(InputError, match=r"\(257, 32\), this model's \(257, 16\)"):
        module.on_load_checkpoint({"state_dict": ArticleGPT(decoder(embedding_dim=32)).state_dict()})
    with pytest.raises(InputError, match="the checkpoint lacks"):
        module.on_load_checkpoint({"state_dict": ArticleGPT(decoder(layers=1)).state_dict()})
    with pytest.raises(InputError, match="the model lacks"):
        module.on_load_checkpoint({"state_dict": ArticleGPT(decoder(layers=3)).state_dict()})


def test_a_start_takes_weights_and_the_regularizers_that_both_have():
    """One that the checkpoint lacks starts anew, one that the module lacks stays behind."""

    def module(n: int, learned: int, seed: int) -> ArticleGPT:
        module = ArticleGPT(decoder(), extensions=[PullToZero() for _ in range(n)])
        torch.nn.init.constant_(module.backbone.lm_head.weight, seed)
        for regularizer in module.regularizers:
            regularizer.learned.fill_(learned)
        return module

    for n, m, expected in ((0, 2, [9, 9]), (1, 2, [5, 9]), (2, 1, [5]), (2, 0, [])):
        one, other = module(n, 5, seed=1), module(m, 9, seed=2)
        start_from(other, {"state_dict": one.state_dict()})
        assert [regularizer.learned.item() for regularizer in other.regularizers] == expected
        assert torch.equal(other.backbone.lm_head.weight, one.backbone.lm_head.weight)
    state = module(2, 5, seed=1).state_dict()
    del state["backbone.lm_head.weight"]
    with pytest.raises(InputError, match="the checkpoint lacks 1 tensors, such as backbone"):
        start_from(module(0, 9, seed=2), {"state_dict": state})


def test_sizes_that_the_data_contradicts_are_refused_with_both(fit: Fit):
    with pytest.raises(InputError, match=r"data\.vocab_size is 257, but the backbone has 300"):
        fit(ArticleGPT(decoder(vocab_size=300)))
    with pytest.raises(InputError, match=r"data\.block_size is 16, but the backbone holds at most 8"):
        fit(ArticleGPT(decoder(block_size=8)))


def test_a_checkpoint_rebuilds_the_module_in_plain_types(fit: Fit, tmp_path: Any):
    module = ArticleGPT(decoder(head_size=6, norm="rmsnorm", bias=False), token_noise=0.1)
    fit(module).save_checkpoint(tmp_path / "m.ckpt", weights_only=False)
    again = ArticleGPT.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert again.token_noise == 0.1
    assert again.backbone.config() == module.backbone.config()
    ids = batch().input_ids
    assert torch.equal(again.eval()(ids), module.eval()(ids))


def test_a_copy_is_a_module_of_its_own():
    module = ArticleGPT(decoder()).eval()
    twin = copy.deepcopy(module)
    with torch.no_grad():
        module.backbone.lm_head.weight.zero_()
    assert twin(batch().input_ids).abs().sum() > 0


@pytest.mark.slow
def test_compiled_equals_eager(fit: Fit):
    losses = []
    for compiled in (False, True):
        torch.manual_seed(1)
        module = ArticleGPT(decoder(), compile=compiled)
        losses.append(fit(module).callback_metrics["train/loss"])
    assert torch.allclose(losses[0], losses[1], atol=1e-4)
