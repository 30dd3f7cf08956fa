"""LightningCLI, with names for what a subclass needs of it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningCLI


class CommandLine(LightningCLI):
    """Seen in Lightning 2.6.6."""

    def _parse_ckpt_path(self) -> None:
        """Lightning would overwrite the command line with the checkpoint's hyperparameters: the command line counts."""

    def _add_instantiators(self) -> None:
        """Lightning would write the whole config once more, which takes a twentieth of a short fit, for modules that
        save hyperparameters: our checkpoints have none, since they describe the model that they hold."""

    def built(self, key: str) -> Any:
        """The objects that the config's part `key` (such as "trainer") was turned into."""
        return self._get(self.config_init, key)

    def _run_subcommand(self, subcommand: str) -> None:
        ended = False
        try:
            super()._run_subcommand(subcommand)
            ended = True
        finally:
            if not ended:
                self.after_early_end()

    def after_early_end(self) -> None:
        """Called when a command was ended by whatever is raised (signals too), which then goes on its way."""
