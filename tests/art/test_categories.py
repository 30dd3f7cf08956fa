"""`python main.py categories`, and the page at the end of a fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.art.categories import categories_of, networks_of
from lightning_app.art.network import ART, AdvancedART
from lightning_app.art.pages import EMPTY
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.training.checkpoint import load_module

Main = Callable[..., None]
RUN = Path("runs/tiny/version_0")


@pytest.fixture
def fit(main: Main, config: Callable[..., str]) -> Callable[..., None]:
    """`fit({...}, {...})` trains the small model with an ARTRegularizer of each of these options."""

    def run(*options: dict[str, Any]) -> None:
        arts = [{"class_path": "ARTRegularizer", "init_args": {"novelty": "margin", **o}} for o in options]
        main("fit", "--config", config({"model": {"init_args": {"extensions": arts}}}))

    return run


def bytes_of(text: str) -> torch.Tensor:
    return torch.tensor([list(text.encode())])


def three_categories() -> ART:
    """b, then a three times, then c, which is nearer to a."""
    art = ART(2, vigilance=0.9, advanced=AdvancedART(merge_at=1))
    art.learn(torch.tensor([[0.0, 1.0]]), bytes_of("bee"))
    for text in ("ant", "ape", "ant"):
        art.learn(torch.tensor([[1.0, 0.0]]), bytes_of(text))
    art.learn(torch.tensor([[0.8, -0.6]]), bytes_of("cat"))
    return art


def test_categories_by_size_with_their_ages_neighbours_and_texts():
    large, first, last = categories_of(three_categories(), load_tokenizer("bytes"))
    assert [c.id for c in (large, first, last)] == [1, 0, 2]
    assert [c.inputs for c in (large, first, last)] == [3, 1, 1]
    assert [c.share for c in (large, first, last)] == [0.6, 0.2, 0.2]
    assert [c.age for c in (large, first, last)] == [4, 5, 1]
    assert [c.unused for c in (large, first, last)] == [1, 4, 0]
    assert [c.nearest for c in (large, first, last)] == [(2, pytest.approx(0.8)), (1, 0.0), (1, pytest.approx(0.8))]
    assert sorted(large.texts) == ["ant", "ape"]  # the one that came twice stands once
    assert (first.texts, last.texts) == (["bee"], ["cat"])


def test_the_only_category_has_no_nearest_one():
    art = ART(2, vigilance=0.9)
    art.learn(torch.tensor([[0.0, 1.0]]))
    (only,) = categories_of(art, load_tokenizer("bytes"))
    assert only.nearest is None
    assert only.texts == []


@pytest.mark.slow
def test_the_table_and_the_pages_hold_what_the_checkpoint_holds(
    fit: Callable[..., None], main: Main, capsys: pytest.CaptureFixture[str]
):
    fit({"vigilance": 0.99}, {"vigilance": 0.999, "name": "fine"})
    assert re.search(rf"^categories +{RUN}/categories.html$", capsys.readouterr().out, re.M)
    of_the_fit = (RUN / "categories.html").read_text()
    assert "tiny/version_0, step 6" in of_the_fit
    main("categories", "--ckpt_path", "last", "--output", "page.html", "--limit", 2)
    printed, page = capsys.readouterr().out, Path("page.html").read_text()
    networks = networks_of(*load_module(RUN / "checkpoints" / "last.ckpt"))
    assert [network.name for network in networks] == ["art", "fine"]
    for network in networks:
        ids = [category.id for category in network.categories]
        assert len(ids) > 2
        assert f"{network.name}: {network.summary()}" in printed
        assert f"--limit {len(ids)} shows all" in printed
        assert network.summary() in page
        assert network.summary() in of_the_fit
        largest = network.categories[0]
        assert re.search(rf"^ *{largest.id} +{largest.inputs:,} +{largest.share:.1%} ", printed, re.M)
    assert page.count("<tr id=") == sum(len(network.categories) for network in networks)
    assert printed.endswith("page: page.html\n")


@pytest.mark.slow
def test_a_fit_without_art_leaves_no_page(tiny_run: Path):
    assert not list(tiny_run.rglob("*.html"))


def test_a_network_without_a_category_says_so(
    fit: Callable[..., None], main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lightning_app.art.network.FIRST_INPUTS", 10_000)  # before them none opens
    fit({"normalize": "center"})
    capsys.readouterr()
    main("categories", "--ckpt_path", "last")
    assert f"art: {EMPTY}" in capsys.readouterr().out
    assert EMPTY in (RUN / "categories.html").read_text()


def test_what_cannot_be_shown(trained: Path, fails: Callable[..., str]):
    assert "ArticleGPT without an ARTRegularizer" in fails("categories", "--ckpt_path", "last")
    assert "limit is 0" in fails("categories", "--ckpt_path", "last", "--limit", 0)
    assert "there is no best.ckpt in nowhere" in fails("categories", "--ckpt_path", "best", "--runs_dir", "nowhere")
