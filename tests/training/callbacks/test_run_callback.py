from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.controller.callback import HeadController
from lightning_app.plasticity.schedule import PlasticitySchedule
from lightning_app.plugins import import_all
from lightning_app.training.callbacks.exact_resume import RandomState
from lightning_app.training.callbacks.projector import Projector
from lightning_app.training.callbacks.run_callback import Priority, RunCallback, RunContext, in_order
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.callbacks.samples import Samples
from lightning_app.training.compositions import ArticleGPT
from tests.training.lightning_internals.small import Small, trainer

Main = Callable[..., None]
Config = Callable[..., str]


class Late(RunCallback):
    priority = Priority.PAGE


class Foreign(L.Callback):
    pass


def test_those_of_one_priority_stay_in_the_order_given():
    late, best, foreign, own, first = Late(), ModelCheckpoint(), Foreign(), Projector(), RandomState()
    other = Foreign()
    assert in_order([late, best, foreign, own, first, other]) == [first, foreign, own, other, best, late]


def names(callbacks: list[L.Callback]) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def test_the_order_of_a_run(main: Main, config: Config, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[L.Callback]] = []
    monkeypatch.setattr(ArticleGPT, "on_fit_start", lambda module: seen.append(module.trainer.callbacks))
    given = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/ce"}}, {"class_path": "ModelCheckpoint"}]
    more = {"callbacks": given, "max_time": "00:01:00:00", "enable_model_summary": True}
    main("fit", "--config", config({"trainer": more}))
    assert names(seen[0]) == [
        *("RandomState", "ExactResume", "ResumeOptions", "KeptBest", "RunLog", "Monitors", "SourceShares"),
        *("EarlyStopping", "Throughput", "ProgressLine", "PredictionWriter", "Projector", "ModelTable"),
        *("SaveConfig", "Timer", "ModelCheckpoint", "ModelCheckpoint"),
        *("LastCheckpoint", "MissedValidation", "Interruption", "Dashboard"),
    ]
    assert seen[0] == in_order(seen[0])
    assert [callback.monitor for callback in seen[0] if isinstance(callback, ModelCheckpoint)] == [None, "val/ce"]


def test_all_of_ours_have_a_place():
    import_all()
    found = [cls for cls in L.Callback.__subclasses__() if cls.__module__.startswith("lightning_app.")]
    assert len(list(RunCallback.__subclasses__())) > 10
    assert [cls.__name__ for cls in found if not issubclass(cls, RunCallback)] == []


def test_module_and_data_have_their_types_or_are_refused(folder: Path):
    callback, module = Samples(["the"]), ArticleGPT(Decoder(embedding_dim=16, layers=1, heads=2))
    data = TextDataModule(train={"path": "train.txt"})  # type: ignore[arg-type]
    fit: Any = SimpleNamespace(datamodule=data, loggers=[], fast_dev_run=True)
    with pytest.raises(AssertionError, match=r"Samples\.setup was not called"):
        callback.module  # noqa: B018
    callback.setup(fit, module, "fit")
    assert callback.module is module
    assert callback.data is data
    assert callback.run is RunContext.of(fit)
    callback.setup(SimpleNamespace(datamodule=None, loggers=[], fast_dev_run=True), L.LightningModule(), "fit")  # type: ignore[arg-type]
    assert not callback.has_data
    with pytest.raises(InputError, match="Samples needs a LanguageModule, not a LightningModule"):
        callback.module  # noqa: B018
    with pytest.raises(InputError, match="Samples needs a TextDataModule: give"):
        callback.data  # noqa: B018


@pytest.mark.parametrize("kind", [PlasticitySchedule, HeadController])
def test_what_needs_a_language_module_says_so(kind: type[RunCallback]):
    with pytest.raises(InputError, match=f"{kind.__name__} needs a LanguageModule, not a Small"):
        trainer(kind()).fit(Small())


def test_each_trainer_has_a_context_of_its_own():
    one, other = trainer(), trainer()
    assert RunContext.of(one) is RunContext.of(one) is not RunContext.of(other)
    assert RunContext.of(one).prompts is None


@pytest.mark.parametrize("turned", [False, True])
def test_one_callback_decides_which_heads_there_are(config: Config, fails: Callable[..., str], turned: bool):
    both = [{"class_path": f"lightning_app.callbacks.{name}"} for name in ("HeadController", "PlasticitySchedule")]
    name = config({"trainer": {"callbacks": both[::-1] if turned else both, "max_steps": 2500}})
    error = fails("fit", "--config", name)
    assert "error: HeadController and PlasticitySchedule in one run: both decide which heads are there" in error


def test_the_page_is_drawn_when_an_error_ends_the_fit_but_not_before_it_trains(
    main: Main, config: Config, monkeypatch: pytest.MonkeyPatch
):
    """With all that was logged until then."""
    plan = {"training_steps": 0, "warmup_steps": 1, "finetuning_steps": 1, "cycles": 1, "sample_batches": 1}
    prunes = {"class_path": "lightning_app.callbacks.PlasticitySchedule", "init_args": plan}
    name = config({"trainer": {"callbacks": [prunes], "max_steps": 9}})
    folder = Path("runs/tiny/version_0")

    def fail(module: ArticleGPT, *args: Any) -> None:
        if module.trainer.global_step in (0, 4):
            raise RuntimeError("power cut")

    monkeypatch.setattr(ArticleGPT, "on_train_batch_end", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        main("fit", "--config", name)
    assert [r["event"] for r in read_log(folder) if "event" in r][-1] == "failed"
    page = folder / "dashboard.html"
    assert page.stat().st_mtime >= (folder / "log.jsonl").stat().st_mtime
    page.write_bytes(b"as it was")
    monkeypatch.setattr(ArticleGPT, "on_fit_start", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        main("fit", "--config", name, "--ckpt_path", "last")
    assert page.read_bytes() == b"as it was"
