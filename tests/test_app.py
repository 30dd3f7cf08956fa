"""The commands, on a small model: what they write, print and keep."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from lightning.pytorch.utilities.model_summary import ModelSummary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_app import closing
from lightning_app.app import Harness
from lightning_app.cli import main as command
from lightning_app.closing import sampled_tokens
from lightning_app.models.decoder import Decoder
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.series import best_validation
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.compositions import ArticleGPT
from tests.conftest import PARSERS

Config = Callable[..., str]
Main = Callable[..., None]
ROOT = Path(__file__).parent.parent
RUN = Path("runs/tiny/version_0")
SAMPLES = {
    "class_path": "Samples",
    "init_args": {"prompts": ["the model"], "max_new_tokens": 5},
}


def weights(path: Path | str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_fit_leaves_one_folder_with_everything_in_it(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(closing, "SAMPLED_TOKENS", 100)
    command(["fit", "--config", config({"trainer": {"callbacks": [SAMPLES]}})])
    files = {str(path.relative_to(RUN)) for path in RUN.rglob("*") if path.is_file()}
    wanted = {
        "config.yaml",
        "log.jsonl",
        "loss.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "samples/best.txt",
    }
    assert wanted <= files
    assert {"samples/step_000003.txt", "samples/step_000006.txt"} <= files
    assert any("events.out.tfevents" in name for name in files)
    assert (RUN / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for row in (
        "val loss",
        "perplexity",
        "bits per byte",
        "LZMA2",
        "accuracy",
        "speed",
        "verbatim",
        "sample 3",
    ):
        assert row in printed
    for path in re.findall(r"runs/tiny/\S+", printed.split("best checkpoint")[1]):
        assert Path(path).exists(), path
    assert re.search(r"epoch 0  step 6  train/loss \d\.\d+  val/loss \d\.\d+  elapsed 0:\d\d", printed)
    tags: dict[str, Any] = EventAccumulator(str(RUN)).Reload().Tags()
    assert {"train/loss", "val/bpb", "lr", "best/val/ce"} <= set(tags["scalars"])
    assert any("the model" in tag for tag in tags["tensors"])


def test_a_large_model_is_asked_for_fewer_tokens():
    """A model of 135M parameters takes some 50 ms of a core for each."""
    assert [sampled_tokens(n) for n in (1, 2_000_000, 135_000_000, 10**11)] == [2_000, 2_000, 370, 1]


def test_everything_that_is_promised_is_logged(tiny_run: Path):
    records = read_log(tiny_run)
    logged = {name for record in records for name in record}
    training = {"train/loss", "train/ce", "lr", "grad_norm", "tokens_per_s", "model_tflops", "peak_share"}
    assert training | {f"val/{name}" for name in ("loss", "ce", "ppl", "bpb", "acc", "f1")} <= logged
    events = ["data", "started", "passages", "passages", "ended", "trained", "closed"]
    assert [r["event"] for r in records if "event" in r] == events
    bpb = [r["val/bpb"] for r in records if "val/bpb" in r and "event" not in r]
    passages = [r for r in records if r.get("event") == "passages"]
    assert [len(r["nats"]) for r in passages] == [32, 32]
    assert [sum(r["nats"]) / math.log(2) / sum(r["bytes"]) for r in passages] == pytest.approx(bpb, rel=1e-4)
    assert [(split["split"], split["documents"]) for split in records[0]["splits"]] == [("train", 1), ("val", 1)]
    assert [r["step"] for r in records if "val/ce" in r and "event" not in r] == [3, 6]
    best = min((r for r in records if "val/ce" in r and "event" not in r), key=lambda r: r["val/ce"])
    assert records[-1]["val/ce"] == best["val/ce"]


@pytest.mark.slow  # in small: tests/training/callbacks/test_interruption.py
def test_a_run_that_crashed_goes_on_in_its_folder_exactly_as_if_it_never_had(
    main: Main, config: Config, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = config({"name": "whole"}, "whole.yaml"), config({"name": "parts"}, "parts.yaml")
    main("fit", "--config", whole, "--trainer.max_steps", 9)

    def crash(module: ArticleGPT, batch: object, batch_idx: int) -> None:
        if module.global_step == 5:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(ArticleGPT, "on_train_batch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            main("fit", "--config", parts, "--trainer.max_steps", 9, "--save_every_n_steps", 4)
    main("fit", "--config", parts, "--trainer.max_steps", 9, "--ckpt_path", "last")
    assert [path.name for path in Path("runs/parts").iterdir()] == ["version_0"]
    last = "version_0/checkpoints/last.ckpt"
    assert same(weights(f"runs/whole/{last}"), weights(f"runs/parts/{last}"))
    events = [r["event"] for r in read_log("runs/parts/version_0") if "event" in r]
    validated = ["passages"] * 3  # at steps 3, 6 and 9
    assert events == [
        "data",
        "started",
        *validated[:1],
        "data",
        "resumed",
        *validated[1:],
        "ended",
        "trained",
        "closed",
    ]
    logged = [[r for r in read_log(f"runs/{name}/version_0") if "train_flops" in r] for name in ("whole", "parts")]
    totals = [[r["tokens"] for r in records] for records in logged]  # at each step, and at the end
    assert totals[0] == totals[1] == [*range(64, 64 * 9 + 1, 64), 64 * 9]
    curves = [
        [(r["step"], r["train/ce"]) for r in read_log(f"runs/{name}/version_0") if "train/ce" in r]
        for name in ("whole", "parts")
    ]
    assert len(curves[0]) == 9
    assert curves[0] == curves[1]


def test_init_from_takes_the_weights_and_nothing_else(main: Main, config: Config, trained: Path):
    main(
        "fit",
        "--config",
        config({"name": "more"}),
        "--init_from",
        RUN / "checkpoints/last.ckpt",
        "--trainer.max_steps",
        2,
    )
    checkpoint = torch.load("runs/more/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    steps = [state["step"].item() for state in checkpoint["optimizer_states"][0]["state"].values()]
    assert set(steps) == {2.0}
    before = weights(RUN / "checkpoints/last.ckpt")
    moved = max((checkpoint["state_dict"][name] - before[name]).abs().max().item() for name in before)
    assert 0 < moved < 2e-3  # two warm-up steps of AdamW away


@pytest.mark.slow  # in small: tests/art/test_extension.py
def test_init_from_a_checkpoint_with_other_regularizers(main: Main, config: Config, trained: Path):
    """Those that it lacks start anew; those that the module lacks stay behind."""
    regularizers = [{"class_path": "ARTRegularizer", "init_args": {"average_decay": 0.9}}]
    with_art = config({"name": "b", "model": {"init_args": {"extensions": regularizers}}}, "b.yaml")
    a, b = trained / "checkpoints/last.ckpt", Path("runs/b/version_0/checkpoints/last.ckpt")
    main("fit", "--config", with_art, "--init_from", a, "--trainer.max_steps", 3)
    art = weights(b)
    assert art["regularizers.0.steps"] == 3
    assert art["regularizers.0.art.seen"] == 3 * 4
    near = max((x - art[name]).abs().max().item() for name, x in weights(a).items())
    assert 0 < near < 5e-3  # three warm-up steps of AdamW away
    main("fit", "--config", "tiny.yaml", "--init_from", b, "--trainer.max_steps", 2)
    again = weights("runs/tiny/version_1/checkpoints/last.ckpt")
    assert again.keys() == weights(a).keys()
    assert max((x - art[name]).abs().max().item() for name, x in again.items()) < 3e-3


def test_an_evaluation_without_a_checkpoint_says_so(main: Main, config: Config, caplog: pytest.LogCaptureFixture):
    main("validate", "--config", config({}))
    assert "No --ckpt_path" in caplog.text


def test_validate_test_and_predict_from_a_checkpoint(main: Main, trained: Path, capsys: pytest.CaptureFixture[str]):
    name = "tiny.yaml"
    saved, kept = (RUN / "config.yaml").read_text(), weights(RUN / "checkpoints/best.ckpt")
    best = min(r["val/ce"] for r in read_log(RUN) if "val/ce" in r)
    capsys.readouterr()
    main("validate", "--config", name, "--ckpt_path", "best")
    assert f"{best:.6f}"[:6] in capsys.readouterr().out
    main("test", "--config", name, "--ckpt_path", "best")
    assert "test/bpb" in capsys.readouterr().out
    main("predict", "--config", name, "--ckpt_path", "best")
    rows = [json.loads(line) for line in (RUN / "predictions.jsonl").read_text().splitlines()]
    tokens = sum(row["tokens"] for row in rows)
    assert tokens == sum(row["bytes"] for row in rows) + 1  # the byte vocabulary; the end of text has no byte
    assert sum(row["ce"] * row["tokens"] for row in rows) / tokens == pytest.approx(best, rel=1e-5)
    events = [r for r in read_log(RUN) if "event" in r and ("val/ce" in r or "test/ce" in r)]
    assert [r["event"] for r in events] == ["closed", "validate", "test"]
    assert [r.get("val/ce", r.get("test/ce")) for r in events] == pytest.approx([best] * 3)
    assert best_validation(RunFolder(RUN).records()).step in (3, 6)  # evaluations later on are no part of the curve
    assert (RUN / "config.yaml").read_text() == saved
    assert same(kept, weights(RUN / "checkpoints/best.ckpt"))


def test_a_fit_without_validation_closes_too(main: Main, config: Config, capsys: pytest.CaptureFixture[str]):
    main("fit", "--config", config({"data": {"val": None}, "trainer": {"limit_val_batches": 0}}))
    assert "not computed" in capsys.readouterr().out
    assert read_log(RUN)[-1]["event"] == "closed"


def test_init_from_keeps_the_vocabulary_on_another_text(main: Main, config: Config):
    vocabulary = {"tokenizer": "own.tiktoken", "vocab_size": 270}
    main("fit", "--config", config({"data": vocabulary}))
    before = Path("own.tiktoken").read_bytes()
    Path("other.txt").write_text("quite another text with words of its own, over and over again " * 40)
    other = config({"name": "other", "data": {**vocabulary, "train": {"path": "other.txt"}}})
    main("fit", "--config", other, "--init_from", "best")
    assert Path("own.tiktoken").read_bytes() == before
    one, two = (
        torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["TextDataModule"]["fingerprint"]
        for name in ("tiny", "other")
    )
    assert one == two


def test_validation_changes_no_training_state(main: Main, trained: Path):
    main("fit", "--config", "tiny.yaml", "--trainer.limit_val_batches", 0)
    assert same(weights(trained / "checkpoints/last.ckpt"), weights("runs/tiny/version_1/checkpoints/last.ckpt"))


def test_generate_needs_the_checkpoint_alone(main: Main, config: Config, capsys: pytest.CaptureFixture[str]):
    tokenizer = {"tokenizer": "own.tiktoken", "vocab_size": 270, "pad_vocab_to": 64}
    main("fit", "--config", config({"data": tokenizer}))
    checkpoint = (RUN / "checkpoints/best.ckpt").rename("moved.ckpt")
    for path in Path().iterdir():
        if path.is_file() and path.name != "moved.ckpt":
            path.unlink()
    command = ("generate", "--ckpt_path", checkpoint, "--prompt", "the model", "--max_new_tokens", 12)
    capsys.readouterr()
    texts = []
    for seed in (0, 0, 1):
        main(*command, "--seed", seed)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("the model")
    main(*command, "--num_samples", 2)
    both = capsys.readouterr().out
    assert texts[0].strip() in both
    assert texts[2].strip() in both


def test_prepare_prints_counts_and_trains_nothing(main: Main, config: Config, capsys: pytest.CaptureFixture[str]):
    main("prepare", "--config", config({}))
    printed = capsys.readouterr().out
    assert "train" in printed
    assert str(len(Path("train.txt").read_bytes())) in printed.replace(",", "")
    assert not Path("runs").exists()


def test_only_the_command_that_is_asked_for_gets_a_parser(main: Main, folder: Path):
    """Each takes 0.1 s to build."""
    built = mock.Mock(wraps=Harness._add_arguments)
    with mock.patch.object(Harness, "_add_arguments", lambda *given: built(*given)):
        PARSERS.clear()  # those of other tests
        with pytest.raises(SystemExit):
            main("fit", "--model.help", "ArticleGPT")
        assert built.call_count == 1


def test_a_model_larger_than_its_text_is_warned_about(main: Main, config: Config):
    wide = config({"model": {"init_args": {"backbone": {"embedding_dim": 128}}}, "trainer": {"max_steps": 2}})
    with pytest.warns(UserWarning, match=r"[\d,]+ parameters for [\d,]+ training tokens"):
        main("fit", "--config", wide)


def test_an_option_that_a_second_config_drops_is_warned_about(main: Main, config: Config):
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.8, 0.9]}}
    name = config({"model": {"init_args": {"optimizer": optimizer}}})
    Path("sgd.yaml").write_text("model: {init_args: {optimizer: {class_path: torch.optim.SGD}}}\n")
    with pytest.warns(UserWarning, match=r"optimizer\.init_args\.betas was given and has no effect"):
        main("prepare", "--config", name, "--config", "sgd.yaml")


def test_the_big_preset_has_the_rows_of_its_summary():
    options = yaml.safe_load((ROOT / "configs" / "article_gpt_162m.yaml").read_text())
    backbone = options["model"]["init_args"]["backbone"]
    with torch.device("meta"):
        decoder = Decoder(vocab_size=50257, block_size=options["data"]["block_size"], **backbone)
        rows = str(ModelSummary(ArticleGPT(decoder), max_depth=2))
    assert re.search(r"backbone\.transformer +\| ModuleDict +\| 123 M", rows)
    assert re.search(r"backbone\.lm_head +\| Linear +\| 38\.6 M", rows)
    assert re.search(r"162 M +Total params", rows)
