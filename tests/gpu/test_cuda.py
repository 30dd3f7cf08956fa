"""What only a GPU can show: `make test-gpu`. With `GPU_TESTS_ON=cpu` it runs on the CPU, to try the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml

from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.server.limits import Limits
from lightning_app.training.checkpoint import load_module
from tests.golden.compare import Result, compared
from tests.golden.runner import HERE, NAMES, run
from tests.serving.server.conftest import serving

ON = os.environ.get("GPU_TESTS_ON", "gpu")
DEVICE = "cuda" if ON == "gpu" else ON
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON == "gpu" and not torch.cuda.is_available(), reason="not run: no CUDA device"),
]
# A GPU draws other numbers for dropout and noise: without them both sides see the same.
NO_DRAWS: dict[str, Any] = {"model": {"init_args": {"token_noise": 0.0, "backbone": {"dropout": 0.0}}}}
LIMITS = {"32-true": 1e-4, "bf16-mixed": 1e-2}  # relative, of losses


def without_draws(name: str) -> dict[str, Any]:
    """The change of a golden run; families of the library have options of their own."""
    if name == "art_gpt2":
        own = yaml.safe_load((HERE / "runs" / f"{name}.yaml").read_text())["model"]["init_args"]["backbone"]
        # all of them: a config that is laid over another one replaces them as a whole
        off = {key: 0.0 if key.endswith("_pdrop") else x for key, x in own["init_args"]["options"].items()}
        return {"model": {"init_args": {"token_noise": 0.0, "backbone": {"init_args": {"options": off}}}}}
    if name == "varda_gpt":
        return {"model": {"init_args": {"token_noise": 0.0, "backbone": {"init_args": {"dropout": 0.0}}}}}
    return NO_DRAWS


def golden(name: str, accelerator: str, precision: str = "32-true", **trainer: Any) -> Result:
    change = without_draws(name) | {"trainer": {"accelerator": accelerator, "precision": precision, **trainer}}
    return run(name, config=change)


def losses(expected: Result, found: Result) -> Iterator[tuple[str, float]]:
    """Relative differences of all that is a loss."""
    for difference in compared(expected, found):
        if difference.where.endswith(("/loss", "/ce")):
            yield difference.where, difference.size


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", NAMES)
def test_a_golden_run_gives_the_losses_of_the_cpu(name: str, precision: str):
    found = dict(losses(golden(name, "cpu"), golden(name, ON, precision)))
    assert len(found) >= 40
    assert max(found.values()) < LIMITS[precision], max(found, key=lambda where: found[where])


def test_a_resume_is_exact():
    trainer = {"accelerator": ON, "precision": "32-true"}
    result = run("article_gpt", config={"trainer": trainer})  # with dropout and noise, drawn on the device
    column = result["steps"]["columns"].index("train/loss")
    whole = {row[0]: row[column] for row in result["steps"]["rows"]}
    resumed = {row[0]: row[column] for row in result["resumed"]["steps"]["rows"]}
    assert len(resumed) == 20
    assert {step: whole[step] for step in resumed} == resumed


@pytest.mark.parametrize("name", ["plasticity", "controller"])
def test_surgery_in_mid_fit(name: str):
    events = golden(name, ON)["events"]
    assert events == golden(name, "cpu")["events"]
    assert events["heads pruned"] > 0


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_a_memory_finds_what_it_finds_on_the_cpu(metric: str):
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(5_000, 64, generator=generator), torch.randn(300, 64, generator=generator)
    memories = [AssociativeMemory(5_000, 64, num_search_results=5, metric=metric) for _ in range(2)]
    for memory, device in zip(memories, ("cpu", DEVICE), strict=True):
        memory.to(device).add(vectors.to(device), Entries(*torch.zeros(3, 5_000, dtype=torch.long, device=device)))
    (ids, distances), (ids_there, distances_there) = (m.search(queries.to(m.device)) for m in memories)
    torch.testing.assert_close(distances_there.cpu(), distances, rtol=1e-4, atol=1e-4)
    assert (ids_there.cpu() == ids).float().mean() > 0.999  # two at the same distance may change places


def test_compiled_it_learns_the_same():
    plain = golden("article_gpt", ON)
    change = without_draws("article_gpt")
    change["model"]["init_args"] = change["model"]["init_args"] | {"compile": True}
    compiled = run("article_gpt", config=change | {"trainer": {"accelerator": ON, "precision": "32-true"}})
    assert max(size for _, size in losses(plain, compiled)) < 1e-3


def test_one_nccl_rank_of_ddp_is_the_run_without():
    found = dict(losses(golden("article_gpt", ON), golden("article_gpt", ON, strategy="ddp")))
    assert max(found.values()) < 1e-6


def test_a_model_on_the_device_answers(tiny_checkpoint):
    module, tokenizer = load_module(tiny_checkpoint)
    ids = torch.tensor([tokenizer.encode("the model")])
    options = GenerationOptions(8, temperature=0.0)
    there = [int(token) for token in module.to(DEVICE).generate(ids.to(DEVICE), options)]
    assert there == [int(token) for token in module.cpu().generate(ids, options)]


def test_serve_on_the_device_answers_as_on_the_cpu(tiny_checkpoint):
    answers = []
    for device in ("cpu", DEVICE):
        module, tokenizer = load_module(tiny_checkpoint)
        with serving(module.to(device), tokenizer, limits=Limits()) as server:
            text = server.post("/v1/completions", prompt="the model", max_tokens=8, temperature=0).json()
            states = server.post("/v1/embeddings", input="the model").json()
            why = server.post("/explain", text="the model").json()
        answers.append((text["choices"][0]["text"], states["data"][0]["embedding"], why))
    (text, states, why), (text_there, states_there, why_there) = answers
    assert text_there == text
    assert states_there == pytest.approx(states, abs=1e-4)
    assert why_there.keys() == why.keys()
