"""LanguageModule: what every training of a language model has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_app.data.accumulation import accumulated
from lightning_app.data.batch import Batch
from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.strategies import shards_parameters
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone, Outputs
from lightning_app.models.extension import Extension, Found, grouped
from lightning_app.models.extension import Regularizer as Regularizer  # where parts of before import it from
from lightning_app.models.generation import BatchDecoder, generate
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.losses import IGNORE, cross_entropy
from lightning_app.models.matrices import Role, roles_of
from lightning_app.models.model_copy import cores
from lightning_app.models.registry import describe
from lightning_app.models.stored import Draw, Stored
from lightning_app.models.weighing import COUNTED, Over, Terms, Window
from lightning_app.training import checkpoint as checkpoints
from lightning_app.training import optim
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.checkpoint_keys import OF_EXTENSIONS, SPIKES, WEIGHTS
from lightning_app.training.checks import (
    check_sizes,
    say_if_ids_differ,
    say_if_no_better_than_chance,
    say_what_is_frozen,
    warn_if_it_can_only_memorise,
)
from lightning_app.training.distributed import several_ranks, shard
from lightning_app.training.evaluation import Evaluation, mean_of_each
from lightning_app.training.groups import Groups
from lightning_app.training.half_precision import check_precision
from lightning_app.training.lightning_internals.logged_numbers import log_in_place
from lightning_app.training.lightning_internals.plugins import leave_batches_uncast
from lightning_app.training.lightning_internals.strategies import do_not_send
from lightning_app.training.losses import (
    check_loss,
    check_validation,
    joined,
    next_window,
    of_all_ranks,
    of_step,
    weighted_sum,
)
from lightning_app.training.measures import LanguageMeasures
from lightning_app.training.schedulers import WarmupCosine, step_on_plateau
from lightning_app.training.schedules import Schedules
from lightning_app.training.spikes import SpikeGuard


class LanguageModule(L.LightningModule, ABC):
    """Trains, validates, tests and predicts with a backbone. Concrete modules give their `__init__` its types.

    Args:
        backbone: the language model.
        optimizer: from parameter groups to an optimizer. In YAML also a list of them, see `OptimizerByParts`.
        scheduler: from an optimizer to a scheduler that is stepped after each optimizer step; a `WarmupCosine` without
            `total_steps` gets the real number of steps. None: constant learning rate.
        extensions: memories, ART and whatever else joins the model, in their order.
        token_noise: share of the input tokens that training replaces by random ones; targets stay.
        compile: run the model through `torch.compile` (slow to start; on a CPU it gains little).
        skip_spikes: leave out the update of a step whose loss or gradient norm lies more than so many standard
            deviations (true: 6) above those of the last 128 steps. The schedule goes on; see `SpikeGuard`.
        schedules: of weight decay and momentum.
    """

    @abstractmethod
    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=True),
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o),
        extensions: list[Extension] | None = None,
        token_noise: float = 0.0,
        compile: bool = False,
        skip_spikes: bool | float = False,
        schedules: Schedules | None = None,
    ):
        super().__init__()
        if not 0 <= token_noise < 1:
            raise InputError(f"token_noise is {token_noise}; it must lie in [0, 1)")
        joining = grouped(extensions or [])
        for extension in joining:
            backbone = extension.wrap(backbone)
        self.backbone = backbone
        # the name that tensors have in checkpoints, from when all extensions were regularisers
        self.regularizers = cast(Sequence[Extension], nn.ModuleList(joining))
        for extension in self.extensions:
            extension.attach(self.backbone.without_memory)
        if unknown := {over for over in self.means_over.values() if over not in COUNTED}:
            raise InputError(f"means_over has {sorted(unknown)[0]!r}; there are {', '.join(COUNTED)}")
        self.token_noise = token_noise
        self.measures = LanguageMeasures(backbone.vocab_size)
        self._optimisation = optim.Optimisation(optimizer, scheduler, schedules or Schedules())
        self._run_steps = 0  # that `schedules` follows
        self.compiles = compile
        self.spikes = SpikeGuard(skip_spikes) if skip_spikes is not False else None
        self._seen: list[Outputs] = []  # of the batches since the last optimizer step, for `learn`
        self.window: Window | None = None  # the batches of this optimizer step, where there are several
        self.train_loss = torch.zeros(())  # of the batches of this optimizer step so far
        self._logged_early = False  # the numbers of the batch that is ending
        self.learned: dict[str, float] = {}  # numbers of the last `learn`, to be logged
        self._matrices: set[str] = set()  # names of the parameters with weight decay
        self._roles: dict[str, Role] = {}  # of all parameters
        self._sharded = False  # whether no process has whole parameters
        self.group_by_layer = False  # see `optim.parameter_groups`
        self._real_ids = backbone.vocab_size
        self.end_ids: frozenset[int] = frozenset()  # that end a text, once there is a tokenizer
        self.chat_template: ChatTemplate | None = None  # what wrote its conversations, if not the tokenizer's own
        self._judged = True  # whether the first loss was looked at, or does not say anything
        self.evaluation = Evaluation()
        self.grad_norm: Tensor | None = None  # of the last step, before clipping, where it is known

    @property
    def extensions(self) -> Sequence[Extension]:
        """All that have joined, in their order."""
        return self.regularizers

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        """Name and content of all stores of vectors that are not empty; `draw` says which vectors of each."""
        for extension in self.extensions:
            yield from extension.stored(draw, tokenizer)

    def backbones(self) -> list[Backbone]:
        """The innermost model, then the copies of it in extensions."""
        return cores(self)

    # What is computed

    def outputs(self, batch: Batch) -> Outputs:
        """Run the model on a batch. No mask is needed: padding stands on the right."""
        ids = _checked(batch).input_ids
        layers = sorted({layer for extension in self.extensions for layer in extension.layers})
        forward = self.backbone.run_batch(self._add_noise(ids) if self.training else ids, batch, layers=layers)
        return Outputs.of(batch, forward)

    def _add_noise(self, ids: Tensor) -> Tensor:
        if self.token_noise == 0:
            return ids
        replaced = torch.rand(ids.shape, device=ids.device) < self.token_noise
        return torch.where(replaced, torch.randint_like(ids, self._real_ids), ids)

    def loss_terms(self, outputs: Outputs) -> Terms:
        """Weight and value of each term by name; `ce` is the cross-entropy in nats per token.

        In training over the tokens of all ranks, who all call this; an evaluation's batches may be of one rank alone.
        """
        terms: Terms = {"ce": (1.0, cross_entropy(outputs.logits, outputs.targets))}
        for extension in self.extensions:
            terms = joined(terms, extension.terms(outputs))
        if self.training and several_ranks():
            own = _means_over(extension for extension in self.extensions if not extension.over_ranks)
            return of_all_ranks(terms, outputs.targets, outputs.mask, own)
        return terms

    @property
    def means_over(self) -> dict[str, Over]:
        """What loss terms are means over, see `Extension`."""
        return _means_over(self.extensions)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        return self.backbone(ids)

    def generate(
        self, ids: Tensor, options: GenerationOptions | None = None, *, eot: int | Collection[int] | None = None
    ) -> Generator[Tensor, None, None]:
        """See `models.generation.generate`; ids that the tokenizer does not have are never drawn."""
        tokens: Iterator[Tensor] = generate(self.backbone, ids, options, vocab_size=self._real_ids, eot=eot)
        for extension in self.extensions:
            tokens = extension.during_generation(tokens, ids)
        yield from tokens

    @property
    def finds(self) -> bool:
        """Whether something may belong before a prompt."""
        return any(extension.finds for extension in self.extensions)

    def found_for(self, prompt: str, tokenizer: Tokenizer) -> list[Found]:
        """What belongs before a prompt; see `Extension.found_for`."""
        return [found for extension in self.extensions for found in extension.found_for(prompt, tokenizer)]

    @contextmanager
    def session(self) -> Iterator[None]:
        """Within it `generate` remembers what it saw and wrote before; at its end that is forgotten."""
        self._begin_evaluation()
        try:
            yield
        finally:
            self._end_evaluation()

    @property
    def texts_share_batches(self) -> bool:
        """Whether a text in a batch gets the tokens that it gets alone."""
        return all(extension.texts_share_batches for extension in self.extensions)

    def batch_decoder(self) -> BatchDecoder:
        """What continues several texts at once."""
        return BatchDecoder(self.backbone, device=self.device, vocab_size=self._real_ids)

    # One step for all stages

    def _step(self, batch: Batch, stage: str) -> Tensor:
        outputs = self.outputs(batch)
        terms = self.loss_terms(outputs)
        loss = weighted_sum(terms, device=self.device)
        if stage == "train":
            loss = self._log_training(loss, terms)
        else:
            self._log_evaluation(batch, outputs, loss, terms, stage)
        self._end_step(outputs, stage)
        return loss

    def _log_training(self, loss: Tensor, terms: Terms) -> Tensor:
        """The batch's part of the step's loss."""
        if self.spikes is None or not self.spikes.ready:
            check_loss(loss, step=self.trainer.global_step, log_every_n_steps=self.trainer.log_every_n_steps)
        self._judge(terms["ce"][1])
        step = of_step(loss, terms, self.window, self.means_over)
        self.train_loss = step.so_far
        self.log("train/loss", self.train_loss, prog_bar=True)
        self.log_dict({f"train/{name}": mean for name, mean in step.means.items()}, prog_bar=len(terms) > 1)
        return step.part

    def _judge(self, ce: Tensor) -> None:
        """Whether loaded weights know the tokens, by the first loss."""
        if not self._judged:
            self._judged, source = True, str(self.backbone.core.source)
            say_if_no_better_than_chance(float(ce.detach()), ids=self._real_ids, source=source)

    def _log_evaluation(self, batch: Batch, outputs: Outputs, loss: Tensor, terms: Terms, stage: str) -> None:
        self.evaluation.update(self.measures, outputs.logits, batch)
        n = _tokens(outputs)  # batches weigh as much as they have tokens
        further = {name: term for name, (_, term) in terms.items() if name != "ce"}
        self.log(f"{stage}/loss", loss, on_epoch=True, batch_size=n, sync_dist=True, prog_bar=True)
        further |= mean_of_each(self._described(outputs))
        named = {f"{stage}/{name}": x for name, x in further.items()}
        self.log_dict(named, on_epoch=True, batch_size=n, sync_dist=True)

    @torch.no_grad()
    def _described(self, outputs: Outputs) -> dict[str, Tensor]:
        """What all extensions say of each sequence."""
        return {name: values for one in self.extensions for name, values in one.describe(outputs).items()}

    def _end_step(self, outputs: Outputs, stage: str) -> None:
        """An evaluation writes to its copies at once, training once the optimizer has stepped."""
        if stage == "train":
            if self.learns:
                self._seen.append(outputs.detached())
            self.log_dict(self._measured(outputs, stage))
            return
        if stage != "predict":
            self.log_dict(self._measured(outputs, stage), on_epoch=True, batch_size=_tokens(outputs), sync_dist=True)
        for extension in self.extensions:
            extension.after_evaluation_batch(outputs)

    def _measured(self, outputs: Outputs, stage: str) -> dict[str, Tensor]:
        """What extensions measured in a batch, by the name that it is logged under."""
        each = (extension.measures(outputs, training=stage == "train") for extension in self.extensions)
        return {f"{stage}/{name}": value for measures in each for name, value in measures.items()}

    def on_train_start(self) -> None:
        self.window = None
        # GradientAccumulationScheduler sets it when an epoch starts, and a resume is in the middle of one
        self.trainer.accumulate_grad_batches = accumulated(self.trainer, self.trainer.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """With accumulated batches: this one's part of the step's loss; what is logged is that of the step so far."""
        self.window = next_window(self.window, self.trainer, _checked(batch), batch_idx)
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per sequence: document, tokens, bytes, ce (nats per token), bpb (bits per byte), and what
        extensions say of it."""
        outputs = self.outputs(batch)
        rows = self.evaluation.rows(outputs.logits, batch)
        for name, values in self._described(outputs).items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
        self._end_step(outputs, "predict")
        return rows

    def _log_measures(self, stage: str) -> dict[str, Tensor]:
        measures = self.evaluation.end(self.measures)
        self.log_dict({f"{stage}/{name}": x.to(self.device).float() for name, x in measures.items()}, sync_dist=True)
        return measures

    def _begin_evaluation(self) -> None:
        for extension in self.extensions:
            extension.begin_evaluation()

    def _end_evaluation(self) -> None:
        for extension in self.extensions:
            extension.end_evaluation()

    def on_validation_start(self) -> None:
        self.evaluation.to(self.device)
        self._begin_evaluation()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_epoch_end(self) -> None:
        measures = self._log_measures("val")
        if self.trainer.state.fn == "fit":
            for extension in self.extensions:
                extension.after_validation()
        self._end_evaluation()
        if self.trainer.state.fn != "fit":
            self._judge(measures["ce"])
            return
        if not self.trainer.sanity_checking:
            step_on_plateau([config.scheduler for config in self.trainer.lr_scheduler_configs], measures)
        check_validation(measures["ce"], step=self.trainer.global_step)

    def on_test_epoch_end(self) -> None:
        self._log_measures("test")
        self._end_evaluation()

    def on_predict_end(self) -> None:
        self._end_evaluation()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then learning without gradients: once per step, and before any callback writes a checkpoint."""
        self.schedules.put(self.trainer.optimizers[0], self.trainer.global_step, self._run_steps)
        super().optimizer_step(*args, **kwargs)
        if self.skipped_step:
            self.learned, self.grad_norm = {}, None  # those of the step before are not logged again
        else:
            with torch.no_grad():
                self.learn(self._seen)
        self._seen.clear()

    @property
    def skipped_step(self) -> bool:
        """Whether `skip_spikes` has left the last step out."""
        return self.spikes is not None and self.spikes.skips

    @property
    def learns(self) -> bool:
        """Whether `learn` has anything to do, so that outputs must be kept until the step."""
        return len(self.extensions) > 0

    def learn(self, seen: Sequence[Outputs]) -> None:
        """Learn without gradients from the batches of an optimizer step, after it."""
        self.learned = {}
        for extension in self.extensions:
            extension.learn_step(seen)
            self.learned |= extension.after_step()

    def buffers_equal_on_all_ranks(self) -> list[str]:
        """Names of buffers that ranks keep equal by learning the same, so that DDP need not send them around."""
        learned = {id(buffer) for extension in self.extensions for buffer in extension.learned_buffers()}
        return [name for name, buffer in self.named_buffers() if id(buffer) in learned]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self._logged_early:
            self.log_step()
        self._logged_early = False

    def log_early(self) -> None:
        """`log_step` for a callback whose hook `on_train_batch_end` needs the numbers: those hooks come before ours."""
        self.log_step()
        self._logged_early = True

    def log_step(self) -> None:
        """What is known when a step is done."""
        shown = {name for extension in self.extensions for name in extension.on_bar}
        for name, number in self.learned.items():
            self.log(f"train/{name}", number, prog_bar=name in shown)
        if self.spikes is not None:
            self.log("train/skipped_steps", float(self.spikes.skipped))
        if self.trainer.global_step % max(1, self.trainer.log_every_n_steps) == 0:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
            self.log_dict(self.schedules.shown(self.trainer.optimizers[0]))
            if self.grad_norm is not None:
                self.log("grad_norm", self.grad_norm)

    # Frame

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_precision(self, self.trainer.precision)
            if self.spikes is not None:
                self.spikes.check(self.trainer)
        self._matrices, self._roles = optim.matrices_of(self), roles_of(self, self.backbone.core.blocks)
        self._sharded = shards_parameters(self.trainer.strategy)
        data = self.trainer.datamodule
        if isinstance(data, TextDataModule):
            check_sizes(data, vocab_size=self.backbone.vocab_size, longest=self.longest_block)
            self.use_tokenizer(data.tokenizer)
            self.evaluation.use_text(data.evaluated(stage))
            self.evaluation.use_passages(data if stage == "fit" else None)
            self.evaluation.use_sources(data, stage)
            for extension in self.extensions:
                extension.use_data(data, stage=stage, rank=self.trainer.global_rank)
            self._judged = self.backbone.core.source is None
            if stage == "fit":
                core, source = self.backbone.core, self.backbone.core.source
                size = None if source is None else core.vocab_size
                say_if_ids_differ(core.special_ids(), size, data.tokenizer, source=source)
                say_what_is_frozen(self.own_parameters())
                warn_if_it_can_only_memorise(self, data)
        leave_batches_uncast(self.trainer.precision_plugin)
        log_in_place()
        do_not_send(self, self.buffers_equal_on_all_ranks())
        self.compile_again()

    def configure_model(self) -> None:
        shard(self, self.backbone.blocks, copies=len(self.backbones()) > 1)

    def compile_again(self) -> None:
        """After surgery: gates are hooks, and what was compiled does not look for new ones."""
        if self.compiles:
            torch.compiler.reset()
            self.backbone.compile_texts()

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Learn which ids are real (spare ones are never drawn), which end a text, and the bytes of each."""
        self._real_ids = tokenizer.vocab_size
        self.end_ids = frozenset({tokenizer.eot}) | _without_text(self.backbone.core.end_ids, tokenizer)
        self.evaluation.use_tokenizer(tokenizer, vocab_size=self.backbone.vocab_size, device=self.device)

    @property
    def longest_block(self) -> int | None:
        """The most tokens that a sample may have; None where there is no limit."""
        return self.backbone.longest_text

    def own_parameters(self) -> list[nn.Parameter]:
        """The parameters of the model alone: an extension may hold an averaged copy of it."""
        return [p for name, p in self.named_parameters() if not name.startswith(OF_EXTENSIONS)]

    def on_fit_start(self) -> None:
        self.evaluation.to(self.device)

    # Optimisation

    def configure_optimizers(self) -> Any:
        """Weight decay for matrices only."""
        self._run_steps = self.optimizer_steps() if self.schedules.some else 0
        trained = optim.trained_parameters(self)
        groups = Groups(trained, self._matrices, self._roles, by_layer=self.group_by_layer, sharded=self._sharded)
        return self._optimisation.configured(groups, steps=self.optimizer_steps)

    @property
    def schedules(self) -> Schedules:
        """What weight decay and momentum do while the learning rate follows its scheduler."""
        return self._optimisation.schedules

    def optimizer_steps(self) -> int:
        """Steps that this run will do."""
        data = self.trainer.datamodule
        known = partial(data.batches_per_epoch, "train") if isinstance(data, TextDataModule) else None
        return optim.optimizer_steps(self.trainer, known)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm that was found, so that logging it costs nothing; leave out a spike."""
        if self.spikes is not None and self.spikes.judge(self.trainer, self.train_loss, optim.gradient_norm(self)):
            for parameter in self.parameters():
                parameter.grad = None
            return
        self.grad_norm = optim.clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Checkpoints

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild this module for use, in plain types (not how it is optimised)."""
        backbone = self.backbone
        for extension in reversed(self.extensions):
            backbone = extension.unwrap(backbone)
        extensions = [describe(extension) for extension in self.extensions]
        return {"backbone": describe(backbone), "extensions": extensions, "token_noise": self.token_noise}

    def own_state(self) -> dict[str, Any]:
        """What it keeps beside tensors, in plain types, for a checkpoint."""
        state = {} if self.spikes is None else {SPIKES: self.spikes.state_dict()}
        for extension in self.extensions:
            state |= extension.own_state()
        return state

    def load_own_state(self, state: dict[str, Any], *, resumes: bool) -> None:
        """Take what `own_state` gave; `resumes` is whether the run goes on from there."""
        if self.spikes is not None and SPIKES in state and resumes:
            self.spikes.load_state_dict(state[SPIKES])
        for extension in self.extensions:
            extension.load_own_state(state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if WEIGHTS not in checkpoint:  # a sharded strategy has loaded the tensors itself
            return
        self._judged = True
        self._check_groups(checkpoint)
        checkpoints.resume(self, checkpoint)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, map_location: Any = None, **kwargs: Any
    ) -> Self:
        """The module in a file, with the options that it has there, on the CPU or on `map_location`.

        Raises:
            InputError: the file holds another class, or another argument was given.
        """
        kwargs.pop("weights_only", None)  # plain types alone are ever read
        if given := [name for name, value in kwargs.items() if value is not None]:
            raise InputError(f"load_from_checkpoint takes no {given[0]}: a checkpoint has all options of its module")
        module = checkpoints.module_in(read_checkpoint(checkpoint_path), checkpoint_path)
        if not isinstance(module, cls):
            raise InputError(f"{checkpoint_path} holds a {type(module).__name__}, not a {cls.__name__}")
        return module if map_location is None else module.to(map_location)

    def _check_groups(self, checkpoint: dict[str, Any]) -> None:
        """A resume needs the parameter groups that the checkpoint's optimizer had."""
        self.group_by_layer = optim.grouped_by_layer(checkpoint, wanted=self.group_by_layer)


def _checked(batch: object) -> Batch:
    """Not in a hook before the transfer: a module that has it takes that of the data, as Lightning warns."""
    if not isinstance(batch, Batch):
        raise InputError(
            f"the loader gives a {type(batch).__name__} where a Batch is needed: take a TextDataModule, or make it by "
            "lightning_app.data.batch.Batch.of(ids)"
        )
    return batch


def _means_over(extensions: Iterable[Extension]) -> dict[str, Over]:
    over: dict[str, Over] = {"ce": "targets"}
    for extension in extensions:
        over |= extension.means_over
    return over


def _without_text(ids: frozenset[int], tokenizer: Tokenizer) -> frozenset[int]:
    """A model's end of text may be a word of another tokenizer."""
    sizes = tokenizer.token_bytes()
    return frozenset(i for i in ids if 0 <= i < len(sizes) and sizes[i] == 0)


def _tokens(outputs: Outputs) -> int:
    """The number of tokens that are predicted; at least 1."""
    return max(1, int((outputs.targets != IGNORE).sum()))
