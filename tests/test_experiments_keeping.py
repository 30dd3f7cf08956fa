"""What arms add to the loss is what their papers say, and what is kept of a domain is chosen as its name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments import arms, chosen, keeping
from experiments.arms import ARMS, FROZEN, LWF, NOVELTY, PLAIN, PROTOTYPES, SAMPLES
from experiments.chosen import AT_RANDOM, BY_ART, BY_KMEANS, CHOICES
from experiments.keeping import EWC, LwF, Prototypes, Rehearsed, Settled, fisher_information, own_tokens
from experiments.runs import Training
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import TokenArray, prepare_tokens
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import softened_kl
from lightning_app.training.module import LanguageModule
from tests import tokenizers
from tests.test_experiments import article


def small(vocab_size: int = 20, block_size: int = 8) -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocab_size=vocab_size, block_size=block_size, embedding_dim=8, layers=1, heads=2)


def moved(model: Decoder) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def test_ewc_holds_parameters_where_they_matter():
    model = small()
    fisher = [torch.full_like(p, float(i)) for i, p in enumerate(model.parameters())]
    ewc = EWC(1.0, fisher)
    ewc.attach(model)
    assert ewc.loss(None)["ewc"] == 0  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    expected = sum(0.5 * i * 0.01 * p.numel() for i, p in enumerate(model.parameters()))
    assert ewc.loss(None)["ewc"].item() == pytest.approx(expected, rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.slow
def test_drawn_fisher_information_is_the_exact_one_within_its_chance():
    """With one position the expectation over next tokens is a sum: of each parameter, over all tokens."""
    torch.manual_seed(0)
    V, n = 12, 800
    model = Decoder(vocab_size=V, block_size=4, embedding_dim=8, layers=1, heads=2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.dim() > 1 else 1)
    ids = torch.randint(0, V, (n, 1))
    drawn = torch.cat([f.flatten() for f in fisher_information(model, [Batch.of_texts(ids)], seed=0)])
    exact, share = torch.zeros_like(drawn), torch.bincount(ids[:, 0], minlength=V) / n
    for token in range(V):
        log_p = model(torch.tensor([[token]]))[0, 0].log_softmax(-1)
        for wanted in range(V):
            gradients = torch.autograd.grad(-log_p[wanted], list(model.parameters()), retain_graph=True)
            squares = torch.cat([gradient.flatten().square() for gradient in gradients])
            exact += share[token] * log_p[wanted].exp().detach() * squares
    assert float(drawn.sum() / exact.sum()) == pytest.approx(1, abs=0.08)
    assert float(torch.stack([drawn, exact]).corrcoef()[0, 1]) > 0.99


def test_softened_kl_by_hand():
    wanted, found = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    q = torch.tensor([1.0, 0.0]).softmax(-1)
    expected = 4 * float(0.5 * (0.5 / q).log().sum())
    assert float(softened_kl(found, wanted, temperature=2.0)) == pytest.approx(expected)
    assert float(softened_kl(found, found, temperature=2.0)) == 0


@pytest.mark.parametrize("kind", ["lwf", "prototypes", "samples"])
def test_what_the_model_said_before_is_held(kind: str):
    """0 before it moves, above after it, and its gradient leads back."""
    model, ids = small().eval(), torch.randint(0, 20, (2, 8))
    term = {
        "lwf": LwF(1.0),
        "prototypes": Prototypes(1.0, torch.randn(5, 8)),
        "samples": Rehearsed(1.0, lambda: ids, 1.0),
    }[kind]
    term.attach(model)

    def loss() -> Tensor:
        outputs = _outputs(model, ids)
        return next(iter(term.loss(outputs).values()))

    assert loss().item() == pytest.approx(0, abs=1e-6)
    moved(model)
    before = loss()
    before.backward()
    assert before.item() > 1e-4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * (0 if parameter.grad is None else parameter.grad)
    assert loss().item() < before.item()
    assert not any(isinstance(part, Decoder) for part in term.modules())  # nothing of it is trained or saved


def _outputs(model: Decoder, ids: Tensor) -> keeping.Outputs:
    batch = Batch.of_texts(ids)
    return keeping.Outputs.of(batch, model.run_batch(batch.input_ids, batch))


def test_an_average_follows_by_its_decay_and_texts_of_two_lengths_count_their_tokens():
    model = small().eval()
    term = Rehearsed(1.0, lambda: torch.zeros(1, 4, dtype=torch.long), 0.75)
    term.attach(model)
    start = next(model.parameters()).detach().clone()
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    term.after_step()
    assert torch.allclose(next(term._average[0].parameters()), start + 0.25)
    texts = torch.tensor([[1, 2, 3, -1, -1], [4, 5, -1, -1, -1]])
    log_p = [model(texts[i : i + 1, :n])[0].log_softmax(-1) for i, n in enumerate((2, 1))]
    expected = -(log_p[0][0, 2] + log_p[0][1, 3] + log_p[1][0, 5]) / 3
    assert own_tokens(model, texts).item() == pytest.approx(expected.item(), rel=1e-5)


# What is kept


@pytest.fixture
def text(tmp_path: Path) -> TokenArray:
    documents = [Document(article(f"A{i}", i, words=200)) for i in range(4)]
    return prepare_tokens(documents, tokenizers.made("smollm2"), tmp_path)


@pytest.fixture
def kept(text: TokenArray) -> dict[str, object]:
    V = tokenizers.made("smollm2").vocab_size
    sizes = chosen.Sizes(shown=60, tokens=100, prototypes=10, samples=4, fisher=4)
    options = {"block_size": 8, "sizes": sizes, "vocab_size": V, "start": 0, "seed": 0}
    return chosen.kept(small(V), text, text, **options)  # type: ignore[arg-type]


def test_as_much_is_kept_by_each_choice(kept: dict[str, Tensor]):
    for what in ("texts", "prototypes", "samples"):
        assert len({len(kept[f"{what}, {choice}"]) for choice in CHOICES}) == 1
        assert len(kept[f"{what}, {BY_ART}"]) >= 3
    assert kept[f"samples, {BY_ART}"].shape == (4, 8)
    assert not kept[f"texts, {BY_KMEANS}"].equal(kept[f"texts, {AT_RANDOM}"])
    seconds: dict[str, float] = kept["seconds"]  # type: ignore[assignment]
    assert seconds[f"samples, {BY_ART}"] > seconds[f"samples, {AT_RANDOM}"] > 0  # twice as many are drawn
    assert all(seconds[arms.SETUP.get(arm.kind, "")] > 0 for arm in ARMS.values() if arm.kind == "novelty")


def test_the_vigilance_is_calibrated_and_stays(kept: dict[str, Tensor]):
    art = chosen.ART(8, **chosen.NETWORK)
    art.load_state_dict(kept["network"])  # type: ignore[arg-type]
    assert art.is_fixed
    before = art.vigilance
    art.learn(torch.randn(16, 8))
    assert art.vigilance == before


def test_samples_are_taken_by_the_shares_of_their_categories():
    wanted, found = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 0, 0, 2, 0, 0])
    assert chosen.balanced(wanted, found, 4) == [0, 3, 4, 6]
    assert chosen.balanced(wanted, np.array([1, 1, 1, 1]), 2) == [0, 1]  # too few of a category: the others


def _terms(name: str) -> int:
    """Cross-entropy, what is added, and ART's own term beside its rehearsal."""
    arm = ARMS[name]
    return 1 if arm.kind in ("plain", "frozen", "in") else 3 if arm.kind == "live" else 2


def test_every_arm_is_made(kept: dict[str, object], text: TokenArray):
    V = tokenizers.made("smollm2").vocab_size
    fisher = [torch.ones_like(p) for p in small(V).parameters()]
    made: dict[str, LanguageModule] = {}
    for name, arm in ARMS.items():
        training = Training(block_size=8, batch_size=2, group=1)
        made[name] = arms.new_module(arm, 1.0, small(V), {**kept, "fisher": fisher}, text, training, 0)
        batch = Batch.of(torch.randint(0, V, (2, 9)))
        outputs = made[name].train().outputs(batch)
        terms = made[name].loss_terms(outputs)
        assert len(terms) == _terms(name)
        assert all(term.isfinite() for _, term in terms.values())
        made[name].learn([outputs.detached()] if made[name].learns else [])
    assert len(made) == 21
    assert not made[FROZEN].backbone.get_parameter("lm_head.weight").requires_grad
    assert made[PLAIN].backbone.get_parameter("lm_head.weight").requires_grad
    settled = made[next(iter(NOVELTY))].extensions[0]
    assert isinstance(settled, Settled)
    assert len(settled.shares) == 1
    assert {LWF, SAMPLES[BY_ART], PROTOTYPES[BY_ART]} < set(made)


def test_settled_categories_learn_nothing_and_count_what_is_novel(kept: dict[str, object], text: TokenArray):
    V = tokenizers.made("smollm2").vocab_size
    training = Training(block_size=8, batch_size=2, group=1)
    module = arms.new_module(ARMS["novelty, margin"], 1.0, small(V), kept, text, training, 0)
    settled = module.extensions[0]
    assert isinstance(settled, Settled)
    before = settled.art.prototypes.clone()
    module.train()
    seen = [module.outputs(Batch.of(torch.randint(0, V, (2, 9)))).detached()]
    for vigilance in (2.0, -2.0):
        settled.art.threshold.fill_(vigilance)
        module.learn(seen)
    assert settled.shares == [1.0, 0.0]
    assert settled.art.prototypes.equal(before)
