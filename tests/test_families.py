"""Every family that docs/models.md names, with a tokenizer of its kind, in every command.

All tests of a family share one folder: what is trained in one of them is used by the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.chat_tokens import prompt_ids
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.plasticity.kinds import units_in
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.series import series
from lightning_app.serving.generate import continue_text
from lightning_app.serving.server.limits import Limits
from lightning_app.serving.turns import take_turns
from lightning_app.training.checkpoint import load_module
from tests import families
from tests.conftest import Run, merged
from tests.families_table import PAGE, table
from tests.families_table import STEPS as STEPS_OF_THE_TABLE
from tests.serving.server.conftest import serving

OVERLAYS = Path(__file__).parent.parent / "configs/overlays"
STEPS = 20
QUICK = ("LLaMA",)  # in each run of the tests; of the others all is slow
CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "data": {
        "train": {"path": "chats.jsonl"},
        "val": {"path": "val.jsonl"},
        "tokenizer": "model",
        "block_size": 64,
        "dataloader": {"batch_size": 4},
    },
    "model": {
        "class_path": "CausalLM",
        "init_args": {
            "backbone": {"class_path": "PretrainedLM", "init_args": {"pretrained": "own"}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 2}},
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "val_check_interval": 10,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
    },
}
LORA = {"model": {"init_args": {"backbone": {"init_args": {"lora": {"r": 4, "alpha": 8}}}}}}


@dataclass
class Work:
    """A folder with the model of a family, and what was made of it so far."""

    folder: Path
    family: str
    main: Run

    def fit(self, name: str, change: dict[str, Any] | None = None, *overlays: Path) -> Path:
        """The last checkpoint of a run of this name, which is trained once."""
        last = self.run(name).checkpoint("last")
        if not last.exists():
            file = self.folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(merged(merged(CONFIG, change or {}), {"name": name})))
            words = [word for path in (file, *overlays) for word in ("--config", path)]
            self.main("fit", *words)
        return last

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / f"runs/{name}/version_0")

    def lora(self) -> Path:
        return self.fit("lora", LORA)

    def pruned(self) -> Path:
        """By the overlay plasticity_quick, with a few steps of each phase."""
        tree = yaml.safe_load((OVERLAYS / "plasticity_quick.yaml").read_text())
        options = tree["trainer"]["callbacks+"][0]["init_args"]
        options |= {"training_steps": 4, "warmup_steps": 2, "finetuning_steps": 4, "eval_freq": 2}
        tree["trainer"] |= {"max_steps": 24, "val_check_interval": 12}
        Path("plasticity_quick.yaml").write_text(yaml.safe_dump(tree))
        return self.fit("pruned", {}, Path("plasticity_quick.yaml"))


def losses(run: RunFolder) -> list[float]:
    """Cross-entropy at each step."""
    return series(run.records(), "train/ce")[1]


def _marked(name: str) -> Any:
    return pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.fixture(scope="module", params=[_marked(name) for name in families.FAMILIES])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def shared(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    families.save(family, folder / "own")
    families.write_chats(folder / "chats.jsonl", 490)
    families.write_chats(folder / "val.jsonl", 7)
    return folder


@pytest.fixture
def work(shared: Path, family: str, main: Run, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(shared)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return Work(shared, family, main)


def test_the_page_holds_what_works():
    """As `python -m tests.families_table` writes it."""
    works = {(name, test): True for name in families.FAMILIES for test in STEPS_OF_THE_TABLE}
    assert table(works) in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow  # a fit with adapters: tests/models/test_lora.py
def test_fine_tuning_with_lora(work: Work):
    module, _ = load_module(work.lora())
    found = losses(work.run("lora"))
    assert len(found) >= STEPS
    assert sum(found[-5:]) < sum(found[:5])
    base = load_module(work.folder / "own")[0].state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in module.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.items() if name in kept)
    assert sum("lora_B" in name and bool(tensor.any()) for name, tensor in kept.items()) >= 2


@pytest.mark.slow
def test_fine_tuning_in_full(work: Work):
    work.fit("full")
    found = losses(work.run("full"))
    assert len(found) == STEPS
    assert found[-1] < 0.7 * found[0]


@pytest.mark.slow
def test_resuming(work: Work):
    last = work.lora()
    work.main("fit", "--config", "lora.yaml", "--ckpt_path", last, "--trainer.max_steps", STEPS + 5)
    steps, _ = series(work.run("lora").records(), "train/ce")
    assert steps == [*range(1, STEPS + 6)]


@pytest.mark.slow
def test_generating(work: Work, capsys: pytest.CaptureFixture[str]):
    """The library's tokens, from the directory; after fine-tuning, as the likeliest token of a whole forward each.

    Text is compared as this project decodes it: of bytes that are no character the library spoils their neighbours.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    capsys.readouterr()
    words = ("--prompt", "A memory of", "--temperature", 0, "--max_new_tokens", 8)
    work.main("generate", "--ckpt_path", "own", *words)
    tokenizer, model = AutoTokenizer.from_pretrained("own"), AutoModelForCausalLM.from_pretrained("own")
    given = tokenizer("A memory of", return_tensors="pt").input_ids
    wanted = model.generate(given, max_new_tokens=8, do_sample=False)[0]
    module, own = load_module("own")
    expected = own.decode([token for token in wanted.tolist() if token not in module.end_ids])
    assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
    last = work.lora()
    capsys.readouterr()
    work.main("generate", "--ckpt_path", last, *words)
    assert capsys.readouterr().out.rstrip("\n") == likeliest(last, "A memory of", 8).rstrip("\n")


@torch.no_grad()
def likeliest(checkpoint: Path, prompt: str, new: int) -> str:
    module, own = load_module(checkpoint)
    ids = own.prompt(prompt)
    for _ in range(new):
        drawn = int(module(torch.tensor([ids]))[0, -1, : own.vocab_size].argmax())
        if drawn in module.end_ids:
            break
        ids.append(drawn)
    return own.decode(ids)


def test_serving(work: Work):
    """A chat in the model's own template: what is served is what the model says to that prompt."""
    import openai

    module, tokenizer = load_module(work.lora())
    asked: Any = [{"role": "user", "content": "3"}]
    with (
        serving(module, tokenizer, limits=Limits()) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client,
    ):
        answer = client.chat.completions.create(model="tiny", messages=asked, max_tokens=6, temperature=0)
    template = take_turns(module, tokenizer)
    ids = prompt_ids(template.render(asked), tokenizer)
    said = continue_text(ids, module, tokenizer, GenerationOptions(6, temperature=0), stop=template.stop)
    assert answer.choices[0].message.content == "".join(said).lstrip()
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.slow
def test_a_memory_is_built_and_searched(work: Work, capsys: pytest.CaptureFixture[str]):
    Path("notes.txt").write_text("The memory keeps what the model has read. " * 8)
    texts = ("--text", "notes.txt", "--tune", "notes.txt")
    work.main("memory", "build", "--ckpt_path", work.lora(), *texts, "--output", "memory.ckpt")
    capsys.readouterr()
    work.main("memory", "search", "--ckpt_path", "memory.ckpt", "--query", "The memory keeps what the", "-k", 3)
    said = capsys.readouterr().out
    assert "3 of " in said
    assert said.count("notes.txt, token") == 3


@pytest.mark.slow
def test_plasticity(work: Work):
    last = work.pruned()
    before, after = (load_module(path)[0] for path in ("own", last))
    for kind in ("heads", "neurons"):
        whole, left = (sum(int(units.mask.sum()) for units in units_in(m, kind)) for m in (before, after))
        assert left < whole
    assert sum(p.numel() for p in after.parameters()) < sum(p.numel() for p in before.parameters())


@pytest.mark.slow
def test_art(work: Work):
    """The overlay art."""
    tree = yaml.safe_load((OVERLAYS / "art.yaml").read_text())
    tree["model"]["init_args"]["extensions+"][0]["init_args"]["warmup_steps"] = 4
    Path("art_overlay.yaml").write_text(yaml.safe_dump(tree))
    module, _ = load_module(work.fit("art", {}, Path("art_overlay.yaml")))
    (regularizer,) = (one for one in module.extensions if isinstance(one, ARTRegularizer))
    assert len(regularizer.art) > 0


@pytest.mark.parametrize("run", ["lora", *(pytest.param(run, marks=pytest.mark.slow) for run in ("full", "pruned"))])
def test_exporting(work: Work, run: str):
    """What is written opens in transformers, and gives what the checkpoint gives. Of the pruned one, with zeros for
    what is gone: layers that differ would need code of our own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = {"lora": work.lora, "full": partial(work.fit, "full"), "pruned": work.pruned}[run]()
    dense = ["--dense"] if run == "pruned" else []
    work.main("export", "--ckpt_path", last, "--output", f"exported-{run}", *dense)
    module, tokenizer = load_module(last)
    ids = AutoTokenizer.from_pretrained(f"exported-{run}")("A memory of", return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.prompt("A memory of")
    model = AutoModelForCausalLM.from_pretrained(f"exported-{run}")
    assert model.config.model_type == families.FAMILIES[work.family].model_type
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, module(ids), atol=1e-4)
