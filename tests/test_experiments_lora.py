"""A pretrained model learns a second domain by LoRA, in small, and its part of the page says what came of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import continual_lora, continual_lora_page, store
from experiments.continual_lora import Plan
from tests import families
from tests.test_experiments_art import texts


@pytest.mark.slow
def test_all_arms_run_in_small_go_on_and_become_a_page(tmp_path: Path):
    model = families.save("LLaMA", tmp_path / "model")
    first, heldout, second = texts(tmp_path)
    plan = Plan((first, heldout, second, None), model=str(model))
    training = replace(plan.training, block_size=16, steps=2, warmup_steps=1)
    plan = replace(plan, seeds=(0, 1), training=training, points=2, blocks=6, samples=2, of_sample=8, trials=2)
    folder = tmp_path / "work" / "lora" / plan.fingerprint
    folder.mkdir(parents=True)
    for _ in range(2):
        for do, jobs in continual_lora.jobs(plan, folder):
            for job in jobs:
                do(job)
    found = store.records(folder)
    assert len(found) == len(continual_lora.TRIED) * (2 + 2)
    starts = {(r["seed"], r["trial"] is None): r["first"][0] for r in found}
    assert all(r["first"][0] == pytest.approx(starts[r["seed"], r["trial"] is None], abs=1e-3) for r in found)
    continual_lora.write_plan(plan, folder)
    page = "\n".join(continual_lora_page.parts(tmp_path / "work"))
    for arm in continual_lora.TRIED:
        assert f"| {arm} |" in page
    assert "adapters" in page.lower()
