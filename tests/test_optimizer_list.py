"""A list of optimizers as the parser takes it, in a config and on the command line."""

import json
from typing import Any

import pytest

from lightning_app.errors import InputError
from lightning_app.optimizer_list import BY_PARTS, with_parts, words_with_parts

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
MUON = {"class_path": "lightning_app.training.muon.Muon", "init_args": {"lr": 0.02}}
LIST = [{"match": "matrices", **MUON, "class_path": "torch.optim.Muon"}, ADAMW]
PARTS = [{"match": "matrices", "optimizer": MUON}, {"match": None, "optimizer": ADAMW}]
BUILT = {"class_path": BY_PARTS, "init_args": {"parts": PARTS}}


@pytest.mark.parametrize(
    ("given", "taken"), [(LIST, BUILT), ("torch.optim.Muon", MUON["class_path"]), (ADAMW, ADAMW), ("SGD", "SGD")]
)
def test_a_list_is_one_class_and_muon_is_ours(given: Any, taken: Any):
    for tree, found in (
        (
            {"model": {"init_args": {"optimizer": given, "a": 1}}},
            {"model": {"init_args": {"optimizer": taken, "a": 1}}},
        ),
        ({"model": {"optimizer": given}, "name": "x"}, {"model": {"optimizer": taken}, "name": "x"}),
    ):
        assert with_parts(tree) == found
        assert with_parts(found) == found  # the config.yaml of a run


@pytest.mark.parametrize("tree", [None, [], {}, {"model": "ArticleGPT"}, {"model": {"init_args": {"a": 1}}}])
def test_what_names_no_optimizer_stays(tree: Any):
    assert with_parts(tree) == tree


def test_on_the_command_line():
    text = json.dumps(LIST)
    for words in (["--model.init_args.optimizer", text], [f"--model.optimizer={text}"]):
        before, found = words_with_parts(["fit", *words, "--name=x"])[1:3]
        assert before == words[0].partition("=")[0]
        assert json.loads(found) == BUILT
    plain = ["fit", "--model.optimizer=SGD", "--model.optimizer.lr=1", "--name", "["]
    assert words_with_parts(plain) == ["fit", "--model.optimizer", "SGD", *plain[2:]]
    assert words_with_parts(["--model.optimizer", "[{"]) == ["--model.optimizer", "[{"]  # the parser says what is wrong


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("x", r"optimizer\.1 is 'x'; it must be a mapping"),
        ({"match": "x"}, r"optimizer\.1 has no class_path"),
        ({**ADAMW, "lr": 1}, r"optimizer\.1 has 'lr'; an entry has match, class_path, init_args"),
    ],
)
def test_an_entry_of_another_form_is_refused(entry: Any, words: str):
    with pytest.raises(InputError, match=words):
        with_parts({"model": {"init_args": {"optimizer": [ADAMW, entry]}}})
