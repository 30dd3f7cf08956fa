from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.training.callbacks.last_checkpoint import LastCheckpoint


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Global steps at which last.ckpt was written."""
    import lightning as L

    steps: list[int] = []
    save = L.Trainer.save_checkpoint

    def spy(trainer: L.Trainer, path: Path, *args: object, **kwargs: object) -> None:
        if Path(path).name == "last.ckpt":
            steps.append(trainer.global_step)
        save(trainer, path, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", spy)
    return steps


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param(("--trainer.limit_val_batches", 0), [6], marks=pytest.mark.slow),
        (("--trainer.limit_val_batches", 0, "--save_every_n_steps", 4), [4, 6]),
        (("--save_every_n_steps", 100), [3, 6, 6]),  # before both validations, and at the end
        (
            (
                "--trainer.limit_val_batches",
                0,
                "--trainer.max_steps",
                -1,
                "--trainer.max_epochs",
                2,
                "--trainer.limit_train_batches",
                3,
            ),
            [6],
        ),
        # a validation within an accumulation window waits for the step that ends it
        (("--trainer.accumulate_grad_batches", 2, "--trainer.max_steps", 4), [2, 3, 4, 4]),
    ],
    ids=["end", "steps", "validations", "epochs", "accumulation"],
)
def test_when_it_saves(main: Callable, config: Callable, saves: list[int], options: tuple, steps: list[int]):
    main("fit", "--config", config({}), *options)
    assert saves == steps


def test_a_time_limit_within_an_accumulation_waits_for_its_step(
    main: Callable, config: Callable, saves: list[int], monkeypatch: pytest.MonkeyPatch
):
    from lightning_app.training.compositions import ArticleGPT

    def stop(module: ArticleGPT, batch: object, batch_idx: int) -> None:
        module.trainer.should_stop |= batch_idx == 4  # as max_time does, in the first batch of the second window

    monkeypatch.setattr(ArticleGPT, "on_train_batch_start", stop)
    main("fit", "--config", config({}), "--trainer.accumulate_grad_batches", 4, "--trainer.limit_val_batches", 0)
    assert saves == [2]


def test_every_step_at_most():
    with pytest.raises(InputError, match="save_every_n_steps is 0"):
        LastCheckpoint(0)
