import time
from math import inf
from typing import Any

import lightning as L
import pytest

from lightning_app.training.lightning_internals.stopwatch import Span, Stopwatch
from tests.training.lightning_internals.small import Small, trainer


class Slow(L.Callback):
    def on_validation_start(self, *args: Any) -> None:
        time.sleep(0.02)

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        time.sleep(0.04)
        trainer.save_checkpoint(f"{trainer.default_root_dir}/some.ckpt")


def test_a_validation_has_the_callbacks_at_both_ends(tmp_path):
    watch = Stopwatch()
    trainer(Slow(), profiler=watch, default_root_dir=tmp_path, max_steps=4).fit(Small())
    validation, (saving,) = watch.validation(0.0), watch.saving(Span(0.0, inf))
    assert validation is not None
    assert validation.seconds > 0.06
    assert validation.start < saving.start < saving.end < validation.end
    assert sum(span.seconds for span in watch.hooks("]Slow.on_validation_end", 0.0)) > 0.04
    assert watch.saving(Span(saving.end, inf)) == []
    assert watch.validation(validation.end) is None


def test_spans_are_of_an_action_and_not_of_the_hook_that_bears_its_name():
    watch = Stopwatch()
    with watch.profile("save_checkpoint"), watch.profile("[Callback]A.on_save_checkpoint"):
        time.sleep(0.01)
    assert [span.seconds for span in watch.saving(Span(0.0, inf))] == [pytest.approx(0.01, abs=0.1)]
