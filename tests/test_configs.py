"""Every YAML in configs/ parses, and those that need no download run two steps."""

import contextlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lightning_app.cli_checks import PACKAGES
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.training.callbacks.run_log import read_log
from tests.advice import LITTLE_TEXT, SHORT, advised

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs" / "overlays").glob("*.yaml"))
MODULES = {  # every config in configs/, and what it trains
    "article_gpt": "ArticleGPT",
    "article_gpt_162m": "ArticleGPT",
    "article_gpt_seed": "ArticleGPT",
    "art_gpt2": "ARTGPT2",
    "art_gpt2_offline": "ARTGPT2",
    "gpt2": "CausalLM",
    "gpt2_offline": "CausalLM",
    "smollm2": "CausalLM",
    "smollm2_art": "ARTGPT2",
    "smollm2_varda": "VardaGPT",
    "varda_gpt": "VardaGPT",
    "varda_gpt_offline": "VardaGPT",
}
NEEDS_DOWNLOAD = {
    *("art_gpt2", "article_gpt_162m", "article_gpt_seed", "gpt2"),
    *("smollm2", "smollm2_art", "smollm2_varda", "varda_gpt"),
}
CHANGED = {  # what each overlay changes
    "art": "article_gpt",
    "adapting": "article_gpt",
    "art_varda": "varda_gpt_offline",
    "controller": "article_gpt",
    "csv_logger": "article_gpt",
    "ddp": "article_gpt",
    "debug": "article_gpt",
    "deepspeed": "article_gpt_162m",
    "fsdp": "article_gpt_162m",
    "model_parallel": "article_gpt",
    "multi_node": "article_gpt_162m",
    "gradient_checkpointing": "article_gpt",
    "lora": "gpt2_offline",
    "plasticity": "article_gpt",
    "plasticity_dynamic": "article_gpt",
    "plasticity_quick": "article_gpt",
    "plasticity_smollm2": "smollm2",
    "streaming": "article_gpt",
    "wandb": "article_gpt",
    "weight_averaging": "gpt2_offline",
}
ON_A_DOWNLOAD = {overlay for overlay, config in CHANGED.items() if config in NEEDS_DOWNLOAD}
EVALUATIONS = ("validate", "test", "predict", "prepare")
# What their own tests and tests/golden fit in small: a fit of each here, too, where all tests are run.
FITTED = {
    "adapting",
    "art",
    "art_varda",
    "controller",
    "csv_logger",
    "gradient_checkpointing",
    "lora",
    "wandb",
    "weight_averaging",
}
FITTED |= {"art_gpt2_offline", "varda_gpt_offline", "debug", "streaming", "article_gpt"}  # of a backbone: gpt2_offline
SCHEDULED = ["plasticity", "plasticity_dynamic", "plasticity_quick"]  # their phases need more than two steps
# Several processes: tests/test_ddp.py, tests/test_model_parallel.py; several GPUs: not here.
IN_OTHER_TESTS = {"ddp", "deepspeed", "fsdp", "model_parallel", "multi_node"}
SAID = {  # of two steps, where it is other advice than that they are few
    "controller": (SHORT, "the controller decides from step"),
    "lora": (SHORT, "lora trains adapters beside random weights"),
    "streaming": (SHORT, "The number of training batches"),
}

Main = Callable[..., None]


def words(path: Path) -> list[str]:
    first = [] if path in CONFIGS else ["--config", f"configs/{CHANGED[path.stem]}.yaml"]
    return [*first, "--config", str(path.relative_to(ROOT))]


def test_all_are_found():
    assert [path.stem for path in CONFIGS] == sorted(MODULES)
    assert set(MODULES) > NEEDS_DOWNLOAD
    assert [path.stem for path in OVERLAYS] == sorted(CHANGED)


@pytest.mark.parametrize("path", CONFIGS + OVERLAYS, ids=lambda p: p.stem)
def test_it_says_what_it_is_for(path: Path):
    head = path.read_text().split("\n\n")[0]
    assert head.startswith("# Purpose:")
    assert f"main.py fit {' '.join(words(path))}" in head


def missing_packages(path: Path) -> list[str]:
    """What the classes in this file need and is not installed."""
    return [package for name, package in PACKAGES.items() if name in path.read_text() and find_spec(package) is None]


@pytest.mark.parametrize("path", CONFIGS + OVERLAYS, ids=lambda p: p.stem)
@pytest.mark.parametrize("command", ["fit", *(pytest.param(c, marks=pytest.mark.slow) for c in EVALUATIONS)])
def test_it_parses_for_every_command(path: Path, command: str, main: Main, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    printed, said = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as stopped,
    ):
        main(command, *words(path), "--print_config")
    if missing := missing_packages(path):
        assert f"pip install {missing[0]}" in said.getvalue()
        return
    assert stopped.value.code == 0
    config = yaml.safe_load(printed.getvalue())
    if CHANGED.get(path.stem) == "article_gpt" and path in OVERLAYS:  # a list replaces another one, unless it appends
        assert ("NGramReader" in str(config["model"]["init_args"]["extensions"])) == (path.stem != "streaming")
    trained = MODULES[path.stem if path in CONFIGS else CHANGED[path.stem]]
    assert config["model"]["class_path"].endswith(f".{trained}")
    assert "vocab_size" not in config["model"]["init_args"]["backbone"].get("init_args", {})  # linked, not repeated


def two_steps(folder: Path) -> list[object]:
    return [
        *("--runs_dir", folder, "--data.cache_dir", folder / "cache", "--data.tokenizer", folder / "own.tiktoken"),
        *("--trainer.accelerator", "cpu", "--trainer.max_steps", 2, "--trainer.val_check_interval", 2),
        *("--trainer.limit_val_batches", 1, "--tune_allocator", "false"),
    ]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in FITTED else [])
        for p in CONFIGS + OVERLAYS
        if p.stem not in {*NEEDS_DOWNLOAD, *ON_A_DOWNLOAD, *IN_OTHER_TESTS, *SCHEDULED}
    ],
)
def test_two_steps(path: Path, main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if missing := missing_packages(path):
        pytest.skip(f"{missing[0]} is not installed: requirements-dev.txt")
    monkeypatch.chdir(ROOT)
    with advised(*SAID.get(path.stem, (SHORT,))):
        main("fit", *words(path), *two_steps(tmp_path))
    (run,) = tmp_path.glob("*/version_0")
    assert [r["step"] for r in read_log(run) if "val/ce" in r and "event" not in r] == [2]


@pytest.mark.parametrize("name", [SCHEDULED[0], *(pytest.param(n, marks=pytest.mark.slow) for n in SCHEDULED[1:])])
def test_a_schedule_is_refused_where_it_does_not_fit(
    name: str, main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        main("fit", *words(ROOT / f"configs/overlays/{name}.yaml"), *two_steps(tmp_path))
    assert stopped.value.code == 1
    assert "and the run has 2: lower cycles" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_schedule_ends_with_fewer_parameters_and_its_proofs(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    main("fit", *words(ROOT / "configs/overlays/plasticity_quick.yaml"), "--runs_dir", tmp_path)
    (run,) = tmp_path.glob("*/version_0")
    said = capsys.readouterr().out
    assert "heads: 18 -> 13" in said
    assert "proved of neurons: logits, masked against removed" in said
    assert (run / "dashboard.html").is_file()
    phases = [r["phase"] for r in read_log(run) if r.get("event") == "phase_transition"]
    cycle = ["warmup", "analysis", "pruning", "regrowth", "finetuning", "evaluation"]
    assert phases == ["training", *cycle, *cycle, "done"]


@pytest.mark.slow
def test_the_seed_run_works_on_bytes_too(main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    with advised(SHORT, LITTLE_TEXT):
        main(
            "fit",
            *("--config", "configs/article_gpt_seed.yaml", "--data.tokenizer", "bytes"),
            *("--data.cache_dir", tmp_path / "cache", "--runs_dir", tmp_path, "--trainer.accelerator", "cpu"),
            *("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 2),
        )
    assert read_log(tmp_path / "article_gpt_seed" / "version_0")[-1]["step"] == 50  # 100 windows in batches of 2


@pytest.mark.slow
def test_gpt2_takes_a_directory_and_other_texts(main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2}
    source = PretrainedLM(architecture="gpt2", options=sizes, vocab_size=257, block_size=512)
    source.model.save_pretrained(tmp_path / "source")
    with advised(SHORT):
        main(
            "fit",
            *("--config", "configs/gpt2.yaml", "--runs_dir", tmp_path, "--data.cache_dir", tmp_path / "cache"),
            *("--model.init_args.backbone.init_args.pretrained", tmp_path / "source", "--data.tokenizer", "bytes"),
            *("--data.train.path", "data/articles/val", "--data.val.path", "data/articles/val"),
            *("--trainer.accelerator", "cpu", "--trainer.max_steps", 2, "--trainer.limit_val_batches", 1),
            *("--trainer.val_check_interval", 2, "--trainer.log_every_n_steps", 1),
        )
    assert read_log(tmp_path / "gpt2" / "version_0")[-1]["step"] == 2
