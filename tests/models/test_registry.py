"""Descriptions: what a checkpoint, an export and a copy are rebuilt from."""

import json
from collections.abc import Iterator

import pytest
import torch

from lightning_app import plugins
from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import KNNReader, Reader
from lightning_app.models import registry
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Regularizer
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import as_config, build, describe, differing, find_class, from_former
from lightning_app.plasticity.kinds import units_of
from lightning_app.training.checkpoint import Checkpoint, put
from lightning_app.training.checkpoint_keys import OURS
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule


def decoder(**options: object) -> Decoder:
    return Decoder(**{"embedding_dim": 16, "layers": 2, "heads": 4, "block_size": 8, **options})


def cut(backbone: Backbone) -> Backbone:
    """Without its first head, and with a masked neuron."""
    heads, neurons = units_of(backbone, "heads"), units_of(backbone, "neurons")
    dead = torch.zeros(heads.shape, dtype=torch.bool)
    dead[0, 0] = True
    heads.remove(dead)
    alive = torch.ones(neurons.shape, dtype=torch.bool)
    alive[1, 3] = False
    neurons.set_mask(alive)
    return backbone


def subclasses(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        yield one
        yield from subclasses(one)


@pytest.mark.parametrize("base", [Backbone, Reader, Regularizer, LanguageModule])
def test_each_part_of_this_project_has_a_name(base: type):
    ours = [cls for cls in subclasses(base) if cls.__module__.startswith("lightning_app.")]
    whole = [cls for cls in ours if not getattr(cls, "__abstractmethods__", None)]
    assert whole
    for cls in whole:
        assert find_class(cls.__name__) is cls


@pytest.mark.parametrize("name", registry.PLACES)
def test_each_name_is_found(name: str):
    assert find_class(name).__name__ == name


def module() -> LanguageModule:
    return VardaGPT(cut(decoder()), [KNNReader(memory_size=8)], extensions=[ARTRegularizer(rehearsal=0.1)])


def test_no_file_is_named():
    text = json.dumps(describe(module()))
    assert "lightning_app" not in text
    assert {"VardaGPT", "Decoder", "KNNReader", "ARTRegularizer"} <= set(text.split('"'))


def test_it_is_built_in_its_shape_copies_and_all():
    one = module()
    other = build(describe(one))
    assert {k: x.shape for k, x in other.state_dict().items()} == {k: x.shape for k, x in one.state_dict().items()}
    other.load_state_dict(one.state_dict())
    ids = torch.arange(8)[None]
    assert torch.equal(other.eval()(ids), one.eval()(ids))
    assert describe(other) == describe(one)


def test_a_layout_does_not_depend_on_who_asked_for_units():
    backbone = decoder()
    before = describe(backbone)
    units_of(backbone, "heads")
    assert describe(backbone) == before
    assert "layout" not in before
    assert set(describe(MemoryLM(cut(backbone), []))["options"]["backbone"]["layout"]) == {"heads", "neurons"}


class Mine(Decoder):
    pass


def test_a_class_of_somebody_else_is_named_by_where_it_stands():
    described = describe(Mine(embedding_dim=8, layers=1, heads=2, block_size=4))
    assert described["part"] == f"{__name__}.Mine"
    assert type(build(described)) is Mine
    with pytest.raises(InputError, match=r"there is no gone\.Mine here"):
        build({**described, "part": "gone.Mine"})


def test_a_newer_version_is_refused():
    with pytest.raises(InputError, match=r"Decoder was described in version 2, and is known here in version 1"):
        build({**describe(decoder()), "version": 2})
    raw: dict = {}
    put(raw, commit="c0ffee")
    raw[OURS]["format"] = 3
    with pytest.raises(InputError, match="has format 3, and this code knows those up to 2"):
        Checkpoint.of(raw)


def test_an_idea_whose_folder_is_gone_is_named():
    with pytest.raises(InputError, match="the idea 'gone' is not here: put its folder lightning_app/gone back"):
        plugins.Idea("gone").load("lightning_app.gone.x:Reader")


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        ({"heads": 4}, {"heads": 2, "head_size": 8}, ["heads", "head_size"]),
        ({"norm": "layernorm", "bias": False}, {"norm": "rmsnorm", "bias": False}, ["norm"]),
        ({"dropout": 0.1}, {"dropout": 0.0}, []),
        ({}, {"attention_kernel": "plain", "gradient_checkpointing": True}, []),
    ],
)
def test_what_no_shape_shows_is_compared(ours: dict, theirs: dict, names: list):
    found = differing(describe(ArticleGPT(decoder(**ours))), describe(ArticleGPT(decoder(**theirs))))
    assert [name for name, *_ in found] == names


def gpt2(**options: object) -> LanguageModule:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8}
    return ARTGPT2(PretrainedLM(architecture="gpt2", options={**sizes, **options}, vocab_size=31))


def test_of_a_family_too():
    assert list(differing(describe(gpt2()), describe(gpt2(activation_function="relu")))) == [
        ("activation_function", "gelu_new", "relu")
    ]
    assert not list(differing(describe(gpt2()), describe(gpt2(resid_pdrop=0.3, bos_token_id=3))))


def test_yaml_and_older_descriptions_are_the_same_but_for_the_form():
    described = describe(MemoryLM(decoder(), [KNNReader(memory_size=8)]))
    old = as_config(described)
    assert old["init_args"]["readers"][0]["class_path"] == "KNNReader"
    assert from_former(old) == described
