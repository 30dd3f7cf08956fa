"""`fit --dry_run`: the first steps of a fit and its end, and from them what the whole will take. Nothing is kept."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from lightning.pytorch.utilities import rank_zero_only

from lightning_app import closing
from lightning_app.app import run
from lightning_app.forecast import Forecast
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.tables import format_table
from lightning_app.short_run import ShortRun, quiet

PATIENCE = 10.0  # seconds of sampling at the end, which stand for all


def dry_run(argv: Sequence[str], *, began: float) -> None:
    """Carry out `fit --dry_run`.

    Args:
        argv: the words of the fit.
        began: when the command did, by `time.monotonic`.
    """
    with ExitStack() as scratch:
        run(argv, harness=partial(DryRun, scratch=scratch, began=began))


class DryRun(ShortRun):
    """A fit of seven steps that then says what it has measured."""

    warm_up, timed, mean = 2, 5, False

    def __init__(self, args: Sequence[str], *, scratch: ExitStack, began: float):
        self._began = began
        super().__init__(args, scratch=scratch)

    def before_fit(self) -> None:
        self._out = sys.stdout
        self._scratch.enter_context(quiet())

    @rank_zero_only
    def after_fit(self) -> None:
        steps = self._short.steps
        rows = self._forecast() if steps else [("steps", "0: the checkpoint is the end of its fit")]
        title = f"dry run of {self._options.name}: {steps} steps, nothing is kept"
        print(format_table(rows, title=title), file=self._out, flush=True)

    def _forecast(self) -> list[tuple[str, str]]:
        sampled = closing.close_run(self.trainer, patience=PATIENCE)
        left = max(0.0, sampled.seconds - PATIENCE) if sampled else 0.0
        seconds = time.monotonic() - self._began + left - self._spared()
        return Forecast(self.trainer, self._short, seconds, RunFolder(self._log_folder)).rows()

    def _spared(self) -> float:
        """Seconds that the fit will not need, as token caches were written now."""
        if set(self._cache.iterdir()) == self._cached:
            return 0.0
        first, start = self._watch.hooks(".prepare_data", self._began), time.monotonic()
        logging.disable(logging.WARNING)  # all was said when it was done first
        try:
            self.datamodule.prepare_data()
        finally:
            logging.disable(logging.NOTSET)
        return max(0.0, sum(span.seconds for span in first) - (time.monotonic() - start))
