"""LightningCLI for this project: links, defaults, the run's folder, and the traps of LightningCLI closed."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_app.build_errors import Parser, as_input_errors
from lightning_app.class_defaults import take_own_defaults
from lightning_app.cli_checks import command_line_options, given_options, read_configs, with_own_model, without_effect
from lightning_app.closing import close_early, close_run
from lightning_app.data.datamodule import TextDataModule, adopting_tokenizer
from lightning_app.data.first_look import look_at_rows
from lightning_app.errors import InputError
from lightning_app.gone_source import without_source
from lightning_app.io import write_atomic
from lightning_app.measured import close_evaluation
from lightning_app.model_tokenizer import BACKBONE, take_model_tokenizer
from lightning_app.models.hugging_face import is_model
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.optimizer_list import words_with_parts
from lightning_app.option_checks import check_options
from lightning_app.plugins import import_all
from lightning_app.reports.run_folder import RunFolder
from lightning_app.resume_command import resume_command
from lightning_app.trainer_parts import kept_defaults, with_atomic_writer
from lightning_app.training.allocator import tune_allocator
from lightning_app.training.callbacks.dashboard import Dashboard
from lightning_app.training.callbacks.exact_resume import ExactResume, MissedValidation, RandomState
from lightning_app.training.callbacks.kept_best import KeptBest
from lightning_app.training.callbacks.last_checkpoint import Interruption, LastCheckpoint
from lightning_app.training.callbacks.model_table import ModelTable
from lightning_app.training.callbacks.monitors import Monitors
from lightning_app.training.callbacks.predictions import PredictionWriter
from lightning_app.training.callbacks.progress import ProgressLine
from lightning_app.training.callbacks.projector import Projector
from lightning_app.training.callbacks.resume_options import STEPS, ResumeOptions
from lightning_app.training.callbacks.run_callback import in_order
from lightning_app.training.callbacks.run_log import RunLog, run_folder
from lightning_app.training.callbacks.shares import SourceShares
from lightning_app.training.callbacks.throughput import Throughput
from lightning_app.training.checkpoint import Checkpoint as Saved
from lightning_app.training.checkpoint import read, start_from, tokenizer_state
from lightning_app.training.course import validated_every
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.lightning_internals.callbacks import is_up, place_checkpoints, time_limit, timers
from lightning_app.training.lightning_internals.command_line import CommandLine
from lightning_app.training.loggers import placed, tensorboard
from lightning_app.training.module import LanguageModule
from lightning_app.training.precision import INSTEAD, SLOW, is_slow_here, runs_on_cpu
from lightning_app.training.run_place import check_place, saying_when_full
from lightning_app.training.run_versions import claim_version, is_first_process, next_version, release_empty
from lightning_app.yaml_file import LINKED

THIRD_PARTY_WARNINGS = (
    r".*isinstance.treespec, LeafSpec",  # Lightning calls what torch renamed
    r".*is not supported by the model summary",  # it counts bytes as if in float32
    r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its folder
    r"Couldn't infer the batch indices",  # of our loader; nobody asks for them
)


EPILOGS = {"fit": "--dry_run: run a few steps, keep nothing, and say what time, memory and disk the fit will take."}
SHARED = "meta.pt"  # what Lightning 2.6.6 writes beside the shards of a checkpoint that is a folder
FLOAT16 = (16, "16", "16-mixed")  # Lightning's names for one precision


class Trainer(L.Trainer):
    """Lightning's Trainer with one more command."""

    def prepare(self, model: L.LightningModule, datamodule: TextDataModule) -> None:
        """Clean, split and tokenise the texts as fit would, and print what there is."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        print(datamodule.summary())


class SaveConfig(SaveConfigCallback):
    """Saves the resolved config of a fit, and of nothing else, into the run's folder, once training begins."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet: what is refused between here and training leaves the config of a finished run as it was."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = run_folder(trainer)
        if stage == "fit" and folder:
            write_atomic(folder.config_file, self.parser.dump(self.config, skip_none=False).encode())


class _ParserIsMadeError(Exception):
    """It is all that is wanted."""


class Harness(CommandLine):
    """One parser for all commands: each takes the same keys, so that one YAML serves them all."""

    def __init__(self, args: Sequence[str]):
        import_all()
        self._argv = with_own_model(args)
        self._is_own_model = self._argv != list(args)
        super().__init__(
            model_class=LanguageModule,
            subclass_mode_model=True,
            datamodule_class=TextDataModule,
            trainer_class=Trainer,
            parser_class=Parser,
            trainer_defaults={
                "log_every_n_steps": 25,
                "use_distributed_sampler": False,  # our loader slices by rank itself
                "callbacks": default_callbacks(),
            },
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},  # the first logger's; ours is the run's
            parser_kwargs={name: {"allow_abbrev": False, "epilog": EPILOGS.get(name)} for name in self.subcommands()}
            | {"allow_abbrev": False},
            auto_configure_optimizers=False,  # it would build the optimizer before the model is set up
            args=words_with_parts(self._argv),
        )

    @classmethod
    def parser_of(cls, command: str) -> LightningArgumentParser:
        """That of a command, which parses nothing."""
        found: list[LightningArgumentParser] = []

        class Parsers(cls):  # type: ignore[valid-type, misc]
            def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
                commands = parser._subcommands_action
                assert commands is not None
                found.append(commands._name_parser_map[command])
                raise _ParserIsMadeError

        with contextlib.suppress(_ParserIsMadeError):
            Parsers([command])
        return found[0]

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks the instance
        """The one that is asked for; all of them where none is. A parser takes 0.15 s to build."""
        every = {**LightningCLI.subcommands(), "prepare": {"model", "datamodule"}}
        return {name: every[name] for name in self._argv[:1] if name in every} or every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="The run's folder is RUNS_DIR/NAME/version_N.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Where the folders of all runs lie.")
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Checkpoint whose weights a fit starts from: new optimizer, step 0, other data. "
            "--ckpt_path resumes instead.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=str,
            default="highest",
            help="highest, high or medium, see torch.set_float32_matmul_precision. "
            "Anything but highest may change results.",
        )
        parser.add_argument(
            "--tune_allocator",
            type=bool,
            default=False,
            help="Keep freed memory (Linux with glibc): faster steps on a CPU for 30 to 50 %% more memory.",
        )
        parser.add_argument(
            "--fit_in",
            type=str | None,
            default=None,
            help="Time that training is to take, such as `8 minutes`: sizes trainer.max_steps once, by 30 steps of a "
            "copy of the run.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int,
            default=500,
            help="Steps between two last.ckpt; one more at each validation.",
        )
        parser.add_argument(
            "--licence",
            type=str | None,
            default=None,
            help="Of the model, for the card of an export, as Hugging Face writes it: `mit`, `cc-by-4.0`.",
        )
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.backbone.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning's, with a warning where an option was dropped because a later config chose another class."""
        self.config = parser.parse_args(args)
        self._asked_for_precision = "trainer.precision" in dict(command_line_options(args))
        options = self.config[self.config.subcommand].as_dict()
        given = given_options(args, read_configs(args))
        for key in without_effect(given, options):
            rank_zero_warn(
                f"{key} was given and has no effect: a later config chose another class, which has no such option"
            )
        take_own_defaults(self.config[self.config.subcommand], given)
        take_model_tokenizer(self.config[self.config.subcommand])
        check_options(options, fit=self.config.subcommand == "fit")

    @property
    def _options(self) -> Any:
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        options = self._options
        check_place(options.runs_dir, options.name, writes=self.subcommand != "prepare")
        precision = options.float32_matmul_precision
        if precision not in ("highest", "high", "medium"):
            raise InputError(f"float32_matmul_precision is {precision!r}; it must be highest, high or medium")
        torch.set_float32_matmul_precision(precision)
        self._take_fast_precision()
        if options.tune_allocator:
            tune_allocator()
        if options.get("ckpt_path"):
            options.ckpt_path = find_checkpoint(options.ckpt_path, Path(options.runs_dir) / options.name)
        if options.init_from and self.subcommand == "fit":
            options.init_from = find_checkpoint(options.init_from, Path(options.runs_dir))
        if options.get("ckpt_path") and self.subcommand == "fit" and is_model(options.ckpt_path):
            raise InputError(
                f"a fit cannot resume {options.ckpt_path}, which no run of this project has written: start from it, "
                f"--init_from {options.ckpt_path}"
            )
        if options.get("ckpt_path") and options.init_from:
            raise InputError("give either --ckpt_path (resume) or --init_from (weights alone), not both")

    def _take_fast_precision(self) -> None:
        """A config is written for many machines; what the command line says counts as it is."""
        trainer = self._options.trainer
        if trainer.precision in FLOAT16 and runs_on_cpu(trainer.accelerator):
            raise InputError("trainer.precision is 16-mixed, which a CPU has not: use bf16-mixed or 32-true")
        if is_slow_here(trainer.precision, trainer.accelerator) and not self._asked_for_precision:
            trainer.precision = INSTEAD
            rank_zero_info(
                f"Computing in {INSTEAD}: this CPU has no bf16 instructions, and {SLOW} would be several times slower "
                f"(--trainer.precision {SLOW} insists)"
            )

    def instantiate_classes(self) -> None:
        if self._options.get(f"{BACKBONE}.pretrained") and is_first_process():
            look_at_rows(self._options.data.as_dict(), str(self.subcommand))
        checkpoint = self._saved = self._read_checkpoint()
        self._take_steps(checkpoint)
        self._share = self._take_share()
        with (
            as_input_errors(self._options.as_dict()),
            without_source(self._options, checkpoint),
            adopting_tokenizer(tokenizer_state(checkpoint or {})),
        ):
            super().instantiate_classes()

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """That whose weights the model will get, where it is a file of this project: a sharded one is a folder."""
        path = self._weights
        return read(path, mmap=True) if path and Path(path).is_file() and not is_model(path) else None

    def _take_steps(self, checkpoint: dict[str, Any] | None) -> None:
        """In place of `fit_in` those of the run that goes on; `lightning_app.fit_in` measures those of a new one."""
        options = self._options
        if self.subcommand != "fit" or options.fit_in is None or options.trainer.fast_dev_run:
            return
        if options.trainer.max_steps in (None, -1):
            shards = Path(options.ckpt_path or "") / SHARED
            checkpoint = read(shards) if options.ckpt_path and shards.is_file() else checkpoint
            found = Saved.of(checkpoint).options if checkpoint and options.ckpt_path else None
            if not found or found.get(STEPS, -1) < 1:
                raise InputError(
                    f"fit_in is {options.fit_in}, and {options.ckpt_path or 'this run'} does not say how many steps "
                    "that was: give trainer.max_steps"
                )
            options.trainer.max_steps = found[STEPS]
            rank_zero_info(f"trainer.max_steps is {found[STEPS]}, as in the checkpoint's run: fit_in sizes a run once")
        options.fit_in = None

    def _take_share(self) -> float | None:
        """Batches in place of a `val_check_interval` below 1, which is a share: Lightning's of an epoch; of the run
        where epochs do not count.

        Returns: the share of the run; None where it is none.
        """
        trainer = self._options.trainer
        share, steps = trainer.val_check_interval, trainer.max_steps or -1
        if not isinstance(share, float) or share >= 1 or trainer.check_val_every_n_epoch is not None:
            return None
        if steps < 1 and self.subcommand == "fit" and not trainer.fast_dev_run:
            raise InputError(
                f"trainer.val_check_interval is {share}, a share of the run, as check_val_every_n_epoch is null: that "
                "needs trainer.max_steps or fit_in"
            )
        batches = validated_every(share, steps=max(1, steps), accumulated=trainer.accumulate_grad_batches)
        trainer.val_check_interval = batches
        return share

    @property
    def _weights(self) -> str | None:
        """Where the model's weights are to come from; None: from where the config says."""
        return self._options.get("ckpt_path") or (self._options.init_from if self.subcommand == "fit" else None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder = self._folder()
        loggers = self._loggers(folder) if self.subcommand == "fit" else []  # an evaluation adds no curves
        kwargs["logger"] = False  # RunLog adds them once training begins
        made = self.built("trainer")
        kwargs["plugins"] = with_atomic_writer(made.plugins)
        given = made.callbacks if isinstance(made.callbacks, list) else [made.callbacks] if made.callbacks else []
        self.trainer_defaults["callbacks"] = kept_defaults(default_callbacks(), given, without=self._switched_off())
        trainer = super().instantiate_trainer(enable_model_summary=False, **kwargs)
        trainer.callbacks = in_order([*self._own_callbacks(folder, loggers), *trainer.callbacks])
        place_checkpoints(trainer.callbacks, RunFolder(folder).checkpoints_folder)
        if loggers and trainer.profiler.dirpath is None:
            trainer.profiler.dirpath = folder  # its way is the first logger's, which is not there yet
        return trainer

    def _switched_off(self) -> tuple[type[L.Callback], ...]:
        kinds = {
            "enable_progress_bar": ProgressBar,
            "enable_checkpointing": Checkpoint,
            "enable_model_summary": ModelSummary,
        }
        return tuple(kind for option, kind in kinds.items() if self._options.trainer[option] is False)

    def _own_callbacks(self, folder: Path, loggers: Sequence[Logger]) -> list[L.Callback]:
        """The callbacks of every run that a config does not replace: some know each other."""
        exact, log = ExactResume(), RunLog(folder, loggers, logs_errors=False)
        self._last = LastCheckpoint(self._options.save_every_n_steps, writes=Checkpoint not in self._switched_off())
        self._interruption = Interruption(self._last, log)
        first = [RandomState(), exact, ResumeOptions(), KeptBest(), log, Monitors(), SourceShares()]
        return [*first, self._last, MissedValidation(exact), self._interruption]

    def _folder(self) -> Path:
        """The folder of a new version, or of the run that the checkpoint belongs to."""
        options = self._options
        runs = Path(options.runs_dir) / options.name
        if options.get("ckpt_path"):
            run = RunFolder.of(Path(options.ckpt_path).resolve())
            if run is not None and run.path.parent == runs.resolve():
                return runs / run.path.name
        return runs / next_version(runs) if self.subcommand == "prepare" else claim_version(runs)

    def _loggers(self, folder: Path) -> list[Logger]:
        """The configured loggers, TensorBoard if none were; RunLog adds log.jsonl."""
        given = self._options.trainer.logger
        if given in (None, True, False):
            return [] if given is False else [tensorboard(folder)]
        made = self.built("trainer").logger
        given, made = (x if isinstance(x, list) else [x] for x in (given, made))
        options = [{**spec.get("init_args", {}), **spec.get("dict_kwargs", {})} for spec in given]
        return placed(made, options, folder)

    def after_instantiate_classes(self) -> None:
        """Take the tokenizer that a directory has, and for it and for `--init_from` the weights."""
        path, checkpoint, self._saved = self._weights, self._saved, None
        if not path and self.subcommand == "fit":
            self._warn_of_random_weights()
        if not path and self.subcommand in ("validate", "test", "predict") and not self._is_own_model:
            rank_zero_info(
                "No --ckpt_path: the model is evaluated as the config builds it, not as a run has trained it"
            )
        is_foreign = path is not None and is_model(path)
        if path is not None and is_foreign:
            checkpoint = read(path)
        if checkpoint is None:
            return
        tokenizer = tokenizer_state(checkpoint)
        if tokenizer and is_foreign:
            self.datamodule.adopt_tokenizer(tokenizer)
        if path == self._options.init_from or is_foreign:
            start_from(self.model, checkpoint)
            if tokenizer:
                self.datamodule.load_state_dict(tokenizer)
        if is_foreign:
            self._options.ckpt_path = self.config_init[self.subcommand].ckpt_path = None  # Lightning would read it

    def _warn_of_random_weights(self) -> None:
        backbones = [module for module in self.model.modules() if isinstance(module, PretrainedLM)]
        if any(backbone.lora is not None and backbone.is_fresh for backbone in backbones):
            rank_zero_warn(
                "lora trains adapters beside random weights, which stay as they are: give `pretrained`, or start from "
                "a whole model's checkpoint (--init_from)"
            )

    def before_fit(self) -> None:
        if self._options.ckpt_path:
            rank_zero_info(
                f"Resuming {self._options.ckpt_path}: weights, the optimizer's moments and the place in the schedule "
                "go on; options of the config that were others in its run are named"
            )

    @rank_zero_only
    def after_fit(self) -> None:
        close_run(self.trainer)
        self._say_how_to_go_on()

    @rank_zero_only
    def after_test(self) -> None:
        close_evaluation(self.trainer)

    after_validate = after_test

    @rank_zero_only
    def after_early_end(self) -> None:
        """Whatever ends a fit early, what was reached is drawn and printed, and how to go on."""
        if self.subcommand == "fit" and self._interruption.trained:
            close_early(self.trainer)
            self._say_how_to_go_on(early=True)

    def _say_how_to_go_on(self, *, early: bool = False) -> None:
        """Where the fit was stopped: by a signal, an error or the clock."""
        last = self._last.path
        late = [time_limit(timer) or 0 for timer in timers(self.trainer) if is_up(timer)]
        if last is not None and last.exists() and (early or late):
            more = timedelta(seconds=2 * max(late)) if late else None
            given = bool(self._options.init_from)
            print(f"\nto go on:\n  {resume_command(self._argv, last, max_time=more, init_from=given)}", flush=True)


def default_callbacks() -> list[L.Callback]:
    """What every run has unless its YAML replaces it, besides `Harness._own_callbacks`."""
    return [
        Throughput(),
        ProgressLine(),
        PredictionWriter(),
        Projector(),
        Dashboard(),
        ModelTable(max_depth=2),
        ModelCheckpoint(filename="best", monitor="val/ce", enable_version_counter=False),
    ]


def run(argv: Sequence[str], *, harness: Callable[[Sequence[str]], object] = Harness) -> None:
    """Parse and carry out one command; `harness` may be a subclass that adds to it."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda line: "litlogger" not in line.getMessage()
    )
    for message in THIRD_PARTY_WARNINGS:
        warnings.filterwarnings("ignore", message)
    try:
        with saying_when_full():
            harness(argv)
    except MisconfigurationException as error:  # Lightning's word for a mistake in the Trainer's options
        raise InputError(str(error)) from error
    finally:
        release_empty()
