"""Search for good options with Optuna: `python -m experiments.sweep --config C.yaml --space S.yaml --trials 4`.

Each trial is an ordinary run in RUNS_DIR/NAME/trial_N. What has been tried is kept in RUNS_DIR/NAME/trials.log, so
that the same command goes on where it was interrupted. Options that are not named here are handed to every `fit`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import yaml
from filelock import FileLock, Timeout

from experiments.space import Space, check_known, read_space
from lightning_app.app import Harness, Trainer, run
from lightning_app.cli_checks import check_arguments, given_options, read_configs
from lightning_app.errors import InputError
from lightning_app.reports.tables import format_columns
from lightning_app.yaml_file import leaves

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TRIALS = "trials.log"
LOCK = "sweep.lock"  # not trials.log.lock: that is Optuna's, for each line
VALIDATIONS = 5  # of a trial, evenly spread, where --max_steps is given
METRICS = ("val/ce", "val/bpb", "val/loss")


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how.

    Attributes:
        configs: YAML files of the runs, as for `fit`.
        space: the options that are tried.
        options: further ones of every trial.
        max_steps: of a trial; None: the config's.
        metric: to be made small. Only bits per byte compare where the vocabulary is tried.
        startup: trials that are never stopped early, and whose median is the first that others are held against.
    """

    configs: list[str]
    space: Space
    options: list[str] = field(default_factory=list)
    max_steps: int | None = None
    metric: str = "val/ce"
    startup: int = 2
    seed: int = 0
    runs_dir: str = "runs"
    name: str = "sweep"

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir) / self.name

    def fit(self) -> list[str]:
        """The words of a fit with none of the options that are tried."""
        return ["fit", *(word for config in self.configs for word in ("--config", config)), *self.options]

    def shortened(self) -> list[str]:
        """What makes a trial shorter than the run that it stands for."""
        if self.max_steps is None:
            return []
        every = max(1, self.max_steps // VALIDATIONS)
        return [f"--trainer.max_steps={self.max_steps}", f"--trainer.val_check_interval={every}"]

    def plan(self) -> dict[str, Any]:
        """What must not change between trials of one sweep."""
        space = {name: asdict(dimension) for name, dimension in self.space.items()}
        return {"fit": self.fit(), "max_steps": self.max_steps, "metric": self.metric, "space": space}


class Pruning(L.Callback):
    """Reports each validation to Optuna, and ends the run in order where it is worse than most were at that step.

    Args:
        trial: of Optuna's study.
        metric: that is reported.
    """

    def __init__(self, trial: Trial, metric: str):
        self.trial, self.metric = trial, metric
        self.best = float("inf")
        self.pruned = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            raise InputError(f"a trial runs in one process, not in {trainer.world_size}: give --trainer.devices 1")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(trainer.callback_metrics[self.metric])
        self.best = min(self.best, value)
        self.trial.report(value, trainer.global_step)
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def search(sweep: Sweep, *, trials: int) -> Study:
    """Run what is missing of `trials` trials, and return the study.

    Raises:
        InputError: Optuna is not installed, an option that the config does not have, a sweep of this name with other
            settings, or one that another process works on.
    """
    optuna = _optuna()
    check_arguments(given_options(sweep.fit(), read_configs(sweep.fit())))
    check_known(sweep.space, (key for key, _ in leaves(resolved(sweep))))
    sweep.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(sweep.folder / LOCK, timeout=0):
            study = _study(sweep, optuna)
            _again_what_was_cut(study, optuna)
            left = trials - sum(trial.state.is_finished() and _counts(trial) for trial in study.trials)
            study.optimize(lambda trial: _run(sweep, trial, optuna), n_trials=max(0, left), catch=(InputError,))
    except Timeout:
        raise InputError(f"another process works on {sweep.folder}: wait for it, or give another --name") from None
    return study


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError("a sweep needs Optuna, which is not installed: pip install 'optuna<5'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def resolved(sweep: Sweep) -> dict[str, Any]:
    """All options of a trial, as the config and the defaults give them."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run([*sweep.fit(), *sweep.shortened(), "--print_config"])
    except SystemExit as stopped:
        if stopped.code:  # the parser has said why
            raise
    config: dict[str, Any] = yaml.safe_load(printed.getvalue())
    return config


def _study(sweep: Sweep, optuna: Any) -> Study:
    """The one on disk, or a new one.

    The sampler's seed moves on with each trial: with the same one a sweep that goes on would draw again what it drew.
    """
    backend = optuna.storages.journal.JournalFileBackend(str(sweep.folder / TRIALS))
    study: Study = optuna.create_study(
        study_name=sweep.name,
        storage=optuna.storages.JournalStorage(backend),
        pruner=optuna.pruners.MedianPruner(sweep.startup, n_warmup_steps=(sweep.max_steps or 0) // 2),
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(study.trials))
    before = study.user_attrs.get("plan")
    if before is not None and before != sweep.plan():
        changed = [name for name, value in sweep.plan().items() if before.get(name) != value]
        raise InputError(f"the trials in {sweep.folder} had another {' and '.join(changed)}: give another --name")
    study.set_user_attr("plan", sweep.plan())
    return study


def _again_what_was_cut(study: Study, optuna: Any) -> None:
    """A trial that was running when its process ended is tried again, with the same options."""
    states = optuna.trial.TrialState
    for trial in study.trials:
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
    again = {trial.user_attrs.get("again") for trial in study.trials}
    for trial in study.trials:
        if trial.state == states.FAIL and not _counts(trial) and trial.number not in again:
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})


def _counts(trial: FrozenTrial) -> bool:
    """One that was cut off does not: it is tried again."""
    return trial.state.name != "FAIL" or "error" in trial.user_attrs


def _run(sweep: Sweep, trial: Trial, optuna: Any) -> float:
    """One fit; its best metric."""
    drawn = {name: dimension.draw(trial, name) for name, dimension in sweep.space.items()}
    pruning = Pruning(trial, sweep.metric)
    place = [f"--runs_dir={sweep.folder}", f"--name=trial_{trial.number}"]
    print(f"\ntrial {trial.number}: {shlex.join(as_words(drawn))}", flush=True)
    try:
        run([*sweep.fit(), *sweep.shortened(), *place, *as_words(drawn)], harness=_with(pruning))
    except InputError as error:
        trial.set_user_attr("error", str(error))
        print(f"trial {trial.number} failed: {error}", file=sys.stderr)
        raise
    trial.set_user_attr("best", pruning.best)
    if pruning.pruned:
        raise optuna.TrialPruned
    return pruning.best


def as_words(drawn: Mapping[str, Any]) -> list[str]:
    """Of the command line."""
    return [f"--{name}={_word(value)}" for name, value in drawn.items()]


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)


def _with(callback: L.Callback) -> type[Harness]:
    """The command line with a callback more."""

    class WithCallback(Harness):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks = [callback, *trainer.callbacks]
            return trainer

    return WithCallback


def told(sweep: Sweep, study: Study) -> str:
    """What came out, and the commands with which to go on."""
    names = [name.rpartition(".")[2] for name in sweep.space]
    rows = [_row(trial, list(sweep.space)) for trial in study.trials]
    lines = [*format_columns(["trial", "state", sweep.metric, *names], rows, left=(1,)), ""]
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        return "\n".join([*lines, "no trial was completed"])
    best = study.best_trial
    words = as_words({name: best.params[name] for name in sweep.space})
    return "\n".join(
        [
            *lines,
            f"best: trial {best.number}, {sweep.metric} {best.value:.4f}",
            f"train with it: {shlex.join(['python', 'main.py', *sweep.fit(), *words])}",
            f"compare: python main.py compare {sweep.folder} --output {sweep.folder}/compare.html",
        ]
    )


def _row(trial: FrozenTrial, names: Sequence[str]) -> list[str]:
    best = trial.user_attrs.get("best")
    drawn = [_shown(trial.params[name]) if name in trial.params else "-" for name in names]
    return [f"{trial.number}", trial.state.name.lower(), "-" if best is None else f"{best:.4f}", *drawn]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _word(value)


def main(argv: Sequence[str] | None = None) -> None:
    args, further = _parser().parse_known_args(argv)
    try:
        sweep = Sweep(
            args.config,
            read_space(Path(args.space)),
            further,
            args.max_steps,
            args.metric,
            args.startup,
            args.seed,
            args.runs_dir,
            args.name,
        )
        if args.trials < 1 or (args.max_steps or 1) < 1:
            raise InputError(f"trials is {args.trials} and max_steps {args.max_steps}: both must be at least 1")
        print(f"\n{told(sweep, search(sweep, trials=args.trials))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", action="append", required=True, help="of the runs; may be given several times")
    parser.add_argument("--space", required=True, help="YAML of the options to try, such as experiments/sweep.yaml")
    parser.add_argument("--trials", type=int, default=4, help="how many there are to be in the end")
    parser.add_argument(
        "--max_steps", type=int, help=f"of a trial, with {VALIDATIONS} validations; the config's without it"
    )
    parser.add_argument(
        "--metric", choices=METRICS, default=Sweep.metric, help="bits per byte where vocabularies differ"
    )
    parser.add_argument("--startup", type=int, default=Sweep.startup, help="trials that are never stopped early")
    parser.add_argument("--seed", type=int, default=Sweep.seed, help="of what is drawn from the space")
    parser.add_argument("--runs_dir", default=Sweep.runs_dir)
    parser.add_argument("--name", default=Sweep.name, help="of the sweep: its folder is RUNS_DIR/NAME")
    return parser


if __name__ == "__main__":
    main()
