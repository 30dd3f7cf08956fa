"""Several optimizers as one: who takes what, one step, one state; from YAML through a resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.matrices import Kind, roles_of
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.groups import Groups
from lightning_app.training.muon import Muon
from lightning_app.training.optim import matrices_of, trained_parameters
from lightning_app.training.optimizer_parts import Entry, OptimizerByParts, optimizer_class, shared_out
from tests.advice import SHORT, advised
from tests.sameness import checkpoint, differences

KINDS: dict[str, Kind] = {
    "wte.weight": "embeddings",
    "h.0.c_attn.weight": "matrices",
    "h.0.c_attn.bias": "vectors",
    "h.1.c_fc.weight": "matrices",
    "head.weight": "others",
}


@pytest.mark.parametrize(
    ("matches", "taken"),
    [
        ([None], [[*KINDS]]),
        (
            ["matrices", None],
            [["h.0.c_attn.weight", "h.1.c_fc.weight"], ["wte.weight", "h.0.c_attn.bias", "head.weight"]],
        ),
        (
            [None, "c_attn"],
            [["wte.weight", "h.1.c_fc.weight", "head.weight"], ["h.0.c_attn.weight", "h.0.c_attn.bias"]],
        ),
        (
            [r"bias$", "matrices", r"^(wte|head)\."],
            [["h.0.c_attn.bias"], ["h.0.c_attn.weight", "h.1.c_fc.weight"], ["wte.weight", "head.weight"]],
        ),
        (
            ["c_fc", "matrices", None],
            [["h.1.c_fc.weight"], ["h.0.c_attn.weight"], ["wte.weight", "h.0.c_attn.bias", "head.weight"]],
        ),
    ],
)
def test_the_first_entry_that_fits_takes_a_parameter(matches: list[str | None], taken: list[list[str]]):
    assert shared_out(matches, KINDS) == taken


@pytest.mark.parametrize(
    ("matches", "words"),
    [
        ([], r"optimizer is an empty list"),
        (["matrices"], r"no entry takes wte\.weight, h\.0\.c_attn\.bias, head\.weight; add an entry without match"),
        (
            ["nope", None],
            r"optimizer\.0 matches 'nope', which fits no trained parameter; there are wte\.weight, .* and 2 more",
        ),
        (["c_attn", "h.0", None], r"optimizer\.1 matches 'h\.0', and entries before it take h\.0\.c_attn\.weight, h"),
        ([".", None], r"optimizer\.1 has no match, and the other entries take all parameters"),
        ([None, "wte", None], r"optimizer\.0 and model\.init_args\.optimizer\.2 have no match"),
        (["(", None], r"optimizer\.0 has the match '\(', which is not a regular expression"),
    ],
)
def test_a_list_that_does_not_share_out_all_is_refused(matches: list[str | None], words: str):
    with pytest.raises(InputError, match=words):
        shared_out(matches, KINDS)


# The optimizer


def model() -> ArticleGPT:
    torch.manual_seed(0)
    return ArticleGPT(Decoder(vocab_size=31, block_size=8, embedding_dim=16, layers=2, heads=2))


def groups(module: ArticleGPT, **options: Any) -> Groups:
    roles = roles_of(module, module.backbone.blocks)
    return Groups(trained_parameters(module), matrices_of(module), roles, **options)


MUON = partial(Muon, lr=0.02, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True)


def by_parts(module: ArticleGPT, **options: Any) -> OptimizerByParts:
    return OptimizerByParts(groups(module, **options), [Entry(MUON, "matrices"), Entry(ADAMW)])


def learn(module: ArticleGPT, optimizer: torch.optim.Optimizer, seeds: range) -> list[torch.Tensor]:
    for seed in seeds:
        ids = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(ids).logsumexp(-1).mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_steps_as_its_parts_would_and_shares_their_groups_and_state():
    module, apart = model(), model()
    optimizer = by_parts(module)
    taken = [
        [name for name, p in apart.named_parameters() if (".h." in name and p.dim() == 2) == ours]
        for ours in (True, False)
    ]
    assert [len(names) for names in taken] == [8, 20]
    two = [make(groups(apart).of(names)) for make, names in zip((MUON, ADAMW), taken, strict=True)]
    assert [group.get("momentum") for group in optimizer.param_groups] == [0.9, 0.9, None, None]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1, 0.0]
    for seed in range(3):
        ids = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(seed))
        apart.zero_grad()
        apart(ids).logsumexp(-1).mean().backward()
        for one in two:
            one.step()
    wanted = [p.detach() for p in apart.parameters()]
    assert equal(learn(module, optimizer, range(3)), wanted)
    assert len(optimizer.state) == 28
    optimizer.param_groups[0]["lr"] = 0.0  # what schedulers do
    assert optimizer.parts[0].param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_its_state_makes_another_go_on_bit_for_bit(way: str, tmp_path: Path):
    whole = learn(first := model(), by_parts(first), range(5))
    second = model()
    optimizer = by_parts(second)
    learn(second, optimizer, range(3))
    if way == "deepcopy":
        third, other = copy.deepcopy((second, optimizer))
    else:
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        (third := model()).load_state_dict(second.state_dict())
        other = by_parts(third)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(part.state is other.state for part in other.parts)
    assert equal(learn(third, other, range(3, 5)), whole)


def test_a_scaler_of_gradients_leaves_the_step_as_it_is():
    plain, scaled = model(), model()
    wanted = learn(plain, by_parts(plain), range(1))
    optimizer, scaler = by_parts(scaled), torch.amp.GradScaler("cpu", init_scale=8.0)
    ids = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(0))
    scaler.scale(scaled(ids).logsumexp(-1).mean()).backward()
    scaler.step(optimizer)
    assert equal([p.detach() for p in scaled.parameters()], wanted)


def test_groups_by_layer_are_those_of_each_part():
    optimizer = by_parts(model(), by_layer=True)
    assert [(group["layer"], "layout" in group) for group in optimizer.param_groups] == [
        *((layer, True) for layer in (0, 0, 1, 1)),  # c_attn has a layout of its own
        *((layer, False) for layer in (-1, -1, 0, 1)),
    ]


def test_a_part_that_has_state_from_the_start_keeps_it():
    module = model()
    optimizer = OptimizerByParts(groups(module), [Entry(torch.optim.Adagrad, "embeddings"), Entry(ADAMW)])
    assert sorted(len(state) for state in optimizer.state.values()) == [2, 2]
    learn(module, optimizer, range(1))


def test_a_checkpoint_knows_its_parts():
    found = optimizer_class(by_parts(model()))
    assert found == "lightning_app.training.muon.Muon (matrices), torch.optim.adamw.AdamW (the rest)"
    assert optimizer_class(ADAMW([nn.Parameter(torch.ones(1))])) == "torch.optim.adamw.AdamW"


def test_without_names_it_is_refused():
    with pytest.raises(InputError, match="needs the names of parameters: give it to a LanguageModule"):
        OptimizerByParts([nn.Parameter(torch.ones(1))], [Entry(ADAMW)])


# In YAML


class Own(torch.optim.SGD):
    """Somebody's own, by its place."""


LIST = [
    {"match": "matrices", "class_path": "torch.optim.Muon", "init_args": {"lr": 0.02}},
    {"match": r"\.wpe\.", "class_path": f"{__name__}.Own", "init_args": {"lr": 0.1, "momentum": 0.9}},
    {"class_path": "AdamW", "init_args": {"lr": 1e-3, "fused": True}},
]
Config = Callable[..., str]
Main = Callable[..., None]


def options(given: Any) -> dict[str, Any]:
    return {"model": {"init_args": {"optimizer": given}}}


@pytest.mark.slow
def test_a_list_trains_and_a_resume_within_an_epoch_is_the_run_that_went_on(folder: Path, config: Config, main: Main):
    words = ["fit", "--config", config(options(LIST)), "--save_every_n_steps", 1]
    main(*words, "--runs_dir", "whole")
    main(*words, "--trainer.max_steps", 4, "--model.scheduler.total_steps", 6)
    main(*words, "--ckpt_path", "last")
    state = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    names = [sorted(one) for one in state["state"].values()]
    assert [names.count(kind) for kind in (["momentum_buffer"], ["exp_avg", "exp_avg_sq", "step"])] == [5, 11]
    resumed, whole = (checkpoint(Path(runs) / "tiny/version_0/checkpoints/last.ckpt") for runs in ("runs", "whole"))
    assert len(whole) > 100
    assert not differences(resumed, whole)


@pytest.mark.slow
def test_what_stands_beside_it_takes_it_for_one_optimizer(folder: Path, config: Config, main: Main):
    beside = {
        "model": {"init_args": {"optimizer": LIST, "skip_spikes": True}},
        "trainer": {
            "precision": "bf16-mixed",
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.5,
            "callbacks": [{"class_path": "LearningRateMonitor"}, {"class_path": "AveragedWeights"}],
        },
    }
    main("fit", "--config", config(beside), "--trainer.precision", "bf16-mixed")
    records = read_log(Path("runs/tiny/version_0"))
    losses = [record["train/loss"] for record in records if "train/loss" in record and "event" not in record]
    assert losses[0] > losses[-1]
    monitored = {name: x for record in records for name, x in record.items() if name.startswith("lr-")}
    assert sorted(monitored) == [f"lr-OptimizerByParts/pg{i}" for i in range(1, 6)]


@pytest.mark.slow
def test_a_checkpoint_of_another_list_is_refused(folder: Path, config: Config, main: Main, fails: Callable[..., str]):
    main("fit", "--config", config(options(LIST)), "--trainer.max_steps", 2)
    said = fails("fit", "--config", config(options(LIST[::2])), "--ckpt_path", "last")
    assert "the checkpoint's optimizer is lightning_app.training.muon.Muon (matrices), " in said
    assert "torch.optim.adamw.AdamW (the rest), this one" in said
    assert "their states do not fit" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"class_path": "torch.optim.Muon"}, "Muon takes matrices alone, and not backbone.transformer.h.0.ln_1.weight"),
        (LIST[:1], "no entry takes backbone.transformer.wte.weight"),
        (
            [{**LIST[0], "init_args": {"lr": 0}}, LIST[2]],
            "model.init_args.optimizer.0.init_args.lr is 0; it must be above 0",
        ),
        (
            [LIST[2], {"match": "wte", "class_path": "torch.optim.LBFGS"}],
            "model.init_args.optimizer.1 is LBFGS, which cannot train here",
        ),
        (
            [{**LIST[0], "init_args": {"lrr": 1}}, LIST[2]],
            "model.init_args.optimizer.0.init_args.lrr: did you mean model.optimizer.0.lr?",
        ),
    ],
)
def test_a_mistake_is_one_line(given: Any, words: str, config: Config, fails: Callable[..., str]):
    assert words in fails("fit", "--config", config(options(given))).strip().splitlines()[-1]


@pytest.mark.slow
def test_a_list_on_the_command_line_and_over_a_config(config: Config, main: Main):
    one = config(options({"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "fused": True}}), "one.yaml")
    two = Path("two.yaml")
    two.write_text(
        "model:\n  init_args:\n    optimizer:\n      - { class_path: torch.optim.SGD, init_args: { lr: 0.1 } }\n"
    )
    with advised(SHORT):  # and no word on the options of AdamW
        main("fit", "--config", one, "--config", two, "--trainer.max_steps", 1, "--name", "over")
        main("fit", "--config", one, "--model.init_args.optimizer", '[{"class_path": "SGD"}]', "--trainer.max_steps", 1)
