"""LanguageModule: what every training of a language model has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_app.data.accumulation import accumulated, steps_in
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone, HiddenStates
from lightning_app.models.generation import BatchDecoder, GenerationOptions, generate
from lightning_app.models.losses import IGNORE, cross_entropy, token_nll
from lightning_app.models.ranks import mean_over_ranks, several_ranks
from lightning_app.models.registry import describe
from lightning_app.models.weighing import COUNTED, Over, Window, counts_of
from lightning_app.training import checkpoint as checkpoints
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.half_precision import check_precision
from lightning_app.training.lightning_internals.strategies import do_not_send
from lightning_app.training.measures import LanguageMeasures, Passages
from lightning_app.training.optimizers import made
from lightning_app.training.schedulers import WarmupCosine, scheduler_config, step_on_plateau
from lightning_app.training.sharding import shard, whole
from lightning_app.training.spikes import SpikeGuard
from lightning_app.training.step_window import next_window
from lightning_app.training.stored import Draw, Stored

Batch = dict[str, Tensor]
NOT_FINITE = (
    "lower the learning rate, clip gradients (trainer.gradient_clip_val) or use a wider precision; "
    "the checkpoints on disk are from before"
)
SPIKES = "spikes"  # in a checkpoint: what `skip_spikes` compares with
PARAMETERS_PER_TOKEN = 10  # above this a model can learn its text by heart


@dataclass(frozen=True)
class Outputs:
    """What a step saw and computed: all that loss terms and regularisers may look at.

    Attributes:
        ids: (B, T) input ids, as read from the batch (before `token_noise`).
        targets: (B, T) next ids, IGNORE where nothing is to be predicted.
        mask: (B, T) bool, False on padding.
        document_ids: (B, T), -1 on padding.
        states: last state (B, T, D) and those of `LanguageModule.state_layers`.
        logits: (B, T, V).
    """

    ids: Tensor
    targets: Tensor
    mask: Tensor
    document_ids: Tensor
    states: HiddenStates
    logits: Tensor

    @property
    def own_states(self) -> HiddenStates:
        """What the backbone itself thinks, before anything that was read from a memory was added."""
        return self.states

    def detached(self) -> Outputs:
        """What `learn` may look at: all but the logits, without the graph that a backward needs."""
        layers = {i: state.detach() for i, state in self.states.layers.items()}
        states = HiddenStates(self.states.last.detach(), layers)
        return replace(self, states=states, logits=self.logits.new_empty(0))


@dataclass(frozen=True)
class Optimisation:
    """How a module makes its optimizer and scheduler. A copy of the module shares it: what the command line hands over
    holds all of the command line, and under DDP the processes that it has started, which cannot be copied."""

    optimizer: OptimizerCallable
    scheduler: LRSchedulerCallable | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimisation:
        return self


class Regularizer(nn.Module, ABC):
    """Further loss terms on the outputs of any LanguageModule, with a state of their own in buffers.

    Args:
        weight: of every term in the total loss; at 0 terms are computed without a gradient, to be logged.
        layers: indices of the layers whose states `loss` and `learn` need, besides the last state.

    Attributes:
        on_bar: those of the numbers of `after_step` that the progress bar shows.
        means_over: what each term is a mean over, by its name: "targets" (tokens that are predicted), "tokens" (those
            that are not padding) or "texts" (rows). `loss` gives the mean of its batch; a step has the mean over what
            all its batches have on all ranks. A term that is not named has the mean of the batches, each alike.
    """

    on_bar: tuple[str, ...] = ()
    means_over: Mapping[str, Over] = {}

    def __init__(self, weight: float = 1.0, layers: tuple[int, ...] = ()):
        super().__init__()
        self.weight, self.layers = weight, layers

    def build(self, backbone: Backbone) -> None:
        """Make what depends on the model, as new; called by the module that the regulariser joins, and again where
        that has taken its weights from a checkpoint."""

    @abstractmethod
    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        """Terms by name, each a scalar with a gradient. Changes nothing."""

    def describe(self, outputs: Outputs) -> dict[str, Tensor]:
        """What it says of each sequence, (B,) by name: a line of `predict`; means of floats and bools are logged."""
        return {}

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild this regulariser, in plain types; one with others adds them."""
        return {"weight": self.weight, "layers": list(self.layers)}

    def copies(self) -> list[Backbone]:
        """Copies of the model that it keeps, which lose the heads and neurons that the model loses."""
        return []

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        """See `LanguageModule.stored`."""
        return iter(())

    @abstractmethod
    def learn(self, outputs: Outputs) -> None:
        """Update buffers from what was seen (not the logits); called without gradients after each optimizer step, once
        for each batch of it."""

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        """`learn` from each batch of a step; overridden where it matters how a step is cut into batches."""
        for outputs in seen:
            self.learn(outputs)

    def after_step(self) -> dict[str, float]:
        """Called once after each optimizer step, when all of its batches were learned -> numbers to log."""
        return {}


class LanguageModule(L.LightningModule, ABC):
    """Trains, validates, tests and predicts with a backbone. Concrete modules give their `__init__` its types.

    Args:
        backbone: the language model.
        optimizer: from parameter groups to an optimizer.
        scheduler: from an optimizer to a scheduler that is stepped after each optimizer step; a `WarmupCosine` without
            `total_steps` gets the real number of steps. None: constant learning rate.
        regularizers: further loss terms.
        token_noise: share of the input tokens that training replaces by random ones; targets stay.
        compile: run the model through `torch.compile` (slow to start; on a CPU it gains little).
        skip_spikes: leave out the update of a step whose loss or gradient norm lies more than so many standard
            deviations (true: 6) above those of the last 128 steps. The schedule goes on; see `SpikeGuard`.
    """

    @abstractmethod
    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, fused=True),
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o),
        regularizers: list[Regularizer] | None = None,
        token_noise: float = 0.0,
        compile: bool = False,
        skip_spikes: bool | float = False,
    ):
        super().__init__()
        if not 0 <= token_noise < 1:
            raise InputError(f"token_noise is {token_noise}; it must lie in [0, 1)")
        self.backbone = backbone
        self.regularizers = cast(Sequence[Regularizer], nn.ModuleList(regularizers or []))
        for regularizer in self.regularizers:
            regularizer.build(self.model_of_states)
        if unknown := {over for over in self.means_over.values() if over not in COUNTED}:
            raise InputError(f"means_over has {sorted(unknown)[0]!r}; there are {', '.join(COUNTED)}")
        self.token_noise = token_noise
        self.measures = LanguageMeasures(backbone.vocab_size)
        self._optimisation, self.compiles = Optimisation(optimizer, scheduler), compile
        self.spikes = SpikeGuard(skip_spikes) if skip_spikes is not False else None
        self._run = self._run_backbone
        self._seen: list[Outputs] = []  # of the batches since the last optimizer step, for `learn`
        self.window: Window | None = None  # the batches of this optimizer step, where there are several
        self.train_loss = torch.zeros(())  # of the batches of this optimizer step so far
        self.learned: dict[str, float] = {}  # numbers of the last `learn`, to be logged
        self._matrices: set[str] = set()  # names of the parameters with weight decay
        self.group_by_layer = False  # see `_groups`
        self._real_ids = backbone.vocab_size
        self._token_bytes: Tensor | None = None
        self._passages: Passages | None = None
        self.by_passage: Tensor | None = None  # what the last evaluation found of each passage of its text
        self.grad_norm: Tensor | None = None

    @property
    def model_of_states(self) -> Backbone:
        """The model that `Outputs.own_states` come from."""
        return self.backbone

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        """Name and content of all stores of vectors that are not empty; `draw` says which vectors of each."""
        for regularizer in self.regularizers:
            yield from regularizer.stored(draw, tokenizer)

    def backbones(self) -> list[Backbone]:
        """The model, then the copies of it in regularisers."""
        return [self.backbone, *(copy for regularizer in self.regularizers for copy in regularizer.copies())]

    # What is computed

    def _run_backbone(self, ids: Tensor) -> tuple[HiddenStates, Tensor]:
        layers = sorted({layer for r in self.regularizers for layer in r.layers})
        states = self.backbone.states(ids, layers=layers)
        return states, self.backbone.logits(states.last)

    def outputs(self, batch: Batch) -> Outputs:
        """Run the model on a batch of `TextDataModule`. No mask is needed: padding stands on the right."""
        ids = batch["input_ids"]
        states, logits = self._run(self._add_noise(ids) if self.training else ids)
        return Outputs(ids, batch["targets"], batch["attention_mask"], batch["document_ids"], states, logits)

    def _add_noise(self, ids: Tensor) -> Tensor:
        if self.token_noise == 0:
            return ids
        replaced = torch.rand(ids.shape, device=ids.device) < self.token_noise
        return torch.where(replaced, torch.randint_like(ids, self._real_ids), ids)

    def loss_terms(self, outputs: Outputs) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of each term by name; `ce` is the cross-entropy in nats per token.

        In training over the tokens of all ranks, who all call this; an evaluation's batches may be of one rank alone.
        """
        ce = {"ce": cross_entropy(outputs.logits, outputs.targets)}
        terms = {name: (1.0, term) for name, term in self._of_all_ranks(ce, outputs).items()}
        for regularizer in self.regularizers:
            with torch.set_grad_enabled(torch.is_grad_enabled() and regularizer.weight != 0):
                further = regularizer.loss(outputs)
            if taken := terms.keys() & further.keys():
                raise InputError(
                    f"two loss terms have the name {sorted(taken)[0]!r}: give one regulariser another name"
                )
            terms |= {name: (regularizer.weight, term) for name, term in self._of_all_ranks(further, outputs).items()}
        return terms

    def _of_all_ranks(self, terms: dict[str, Tensor], outputs: Outputs) -> dict[str, Tensor]:
        """In training terms that are means over something are those over what all ranks have of it."""
        if not self.training or not several_ranks():
            return terms
        counts, over = counts_of(outputs.targets, outputs.mask), self.means_over
        return {
            name: mean_over_ranks(term, counts[COUNTED.index(over[name])]) if name in over else term
            for name, term in terms.items()
        }

    @property
    def means_over(self) -> dict[str, Over]:
        """What loss terms are means over, see `Regularizer`."""
        over: dict[str, Over] = {"ce": "targets"}
        for regularizer in self.regularizers:
            over |= regularizer.means_over
        return over

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        return self.backbone(ids)

    def generate(
        self, ids: Tensor, options: GenerationOptions | None = None, *, eot: int | None = None
    ) -> Generator[Tensor, None, None]:
        """See `models.generation.generate`; ids that the tokenizer does not have are never drawn."""
        return generate(self.backbone, ids, options, vocab_size=self._real_ids, eot=eot)

    @property
    def texts_share_batches(self) -> bool:
        """Whether a text in a batch gets the tokens that it gets alone."""
        return True

    def batch_decoder(self) -> BatchDecoder:
        """What continues several texts at once."""
        return BatchDecoder(self.backbone, device=self.device, vocab_size=self._real_ids)

    # One step for all stages

    def _step(self, batch: Batch, stage: str) -> Tensor:
        outputs = self.outputs(batch)
        terms = self.loss_terms(outputs)
        loss = sum((weight * term for weight, term in terms.values()), torch.zeros((), device=self.device))
        if stage == "train":
            self._check_finite(loss)
            loss, means = self._weighed(loss, terms)
            self.log("train/loss", self.train_loss, prog_bar=True)
            self.log_dict({f"train/{name}": mean for name, mean in means.items()}, prog_bar=len(terms) > 1)
            self.look_back(outputs, stage)
            return loss
        self.measures.update(outputs.logits, outputs.targets, self._token_bytes, self._passages_of(batch))
        n = max(1, int((outputs.targets != IGNORE).sum()))  # batches weigh as much as they have tokens
        further = {f"{stage}/{name}": term for name, (_, term) in terms.items() if name != "ce"}
        self.log(f"{stage}/loss", loss, on_epoch=True, batch_size=n, sync_dist=True, prog_bar=True)
        said = {name: x.float().mean() for name, x in self._described(outputs).items() if x.dtype != torch.int64}
        further |= {f"{stage}/{name}": mean for name, mean in said.items()}
        self.log_dict(further, on_epoch=True, batch_size=n, sync_dist=True)
        self.look_back(outputs, stage)
        return loss

    def _weighed(self, loss: Tensor, terms: dict[str, tuple[float, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The batch's part of the step's loss, and what is logged: the terms of all batches of the step so far."""
        means = {name: term.detach() for name, (_, term) in terms.items()}
        if self.window is None:
            self.train_loss = loss.detach()
            return loss, means
        loss, means = self.window.weigh(terms, self.means_over)
        self.train_loss = torch.stack([weight * means[name] for name, (weight, _) in terms.items()]).sum()
        return loss, means

    @torch.no_grad()
    def _described(self, outputs: Outputs) -> dict[str, Tensor]:
        """What all regularisers say of each sequence."""
        return {name: values for r in self.regularizers for name, values in r.describe(outputs).items()}

    def look_back(self, outputs: Outputs, stage: str) -> None:
        """Called at the end of each step of a stage (train, val, test, predict) with what it computed."""
        if stage == "train" and self.learns:
            self._seen.append(outputs.detached())

    def on_train_start(self) -> None:
        self.window = None
        # GradientAccumulationScheduler sets it when an epoch starts, and a resume is in the middle of one
        self.trainer.accumulate_grad_batches = accumulated(self.trainer, self.trainer.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """With accumulated batches: this one's part of the step's loss; what is logged is that of the step so far."""
        self.window = next_window(self.window, self.trainer, batch, batch_idx)
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """One row per sequence: document, tokens, bytes, ce (nats per token), bpb (bits per byte), and what
        regularisers say of it."""
        outputs = self.outputs(batch)
        real = outputs.targets != IGNORE
        nll, tokens = token_nll(outputs.logits, outputs.targets).cpu().double().sum(-1), real.sum(-1)
        rows: list[dict[str, Any]] = [
            {"document": int(d), "tokens": int(n), "ce": float(x / max(1, n))}
            for d, n, x in zip(outputs.document_ids[:, 0].tolist(), tokens.tolist(), nll.tolist(), strict=True)
        ]
        if self._token_bytes is not None:
            n_bytes = torch.where(real, self._token_bytes[outputs.targets.clamp_min(0)], 0).sum(-1)
            for row, x, b in zip(rows, nll.tolist(), n_bytes.tolist(), strict=True):
                row |= {"bytes": b, "bpb": x / math.log(2) / max(1, b)}
        for name, values in self._described(outputs).items():
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
        self.look_back(outputs, "predict")
        return rows

    def _log_measures(self, stage: str) -> dict[str, Tensor]:
        measures = self.measures.compute()
        self.by_passage = measures.pop("passages", None)
        self.log_dict({f"{stage}/{name}": x.to(self.device).float() for name, x in measures.items()}, sync_dist=True)
        self.measures.reset()
        return measures

    def on_validation_epoch_end(self) -> None:
        measures = self._log_measures("val")
        ce = measures["ce"]
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            step_on_plateau([config.scheduler for config in self.trainer.lr_scheduler_configs], measures)
        if self.trainer.state.fn == "fit" and not torch.isfinite(ce):  # before a checkpoint is written
            raise InputError(f"val/ce is {ce.item()} after step {self.trainer.global_step}: {NOT_FINITE}")

    def on_test_epoch_end(self) -> None:
        self._log_measures("test")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then learning without gradients: once per step, and before any callback writes a checkpoint."""
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
        return len(self.regularizers) > 0

    def learn(self, seen: Sequence[Outputs]) -> None:
        """Learn without gradients from the batches of an optimizer step, after it."""
        self.learned = {}
        for regularizer in self.regularizers:
            regularizer.learn_step(seen)
            self.learned |= regularizer.after_step()

    def buffers_equal_on_all_ranks(self) -> list[str]:
        """Names of buffers that ranks keep equal by learning the same, so that DDP need not send them around."""
        return [name for name, _ in self.named_buffers() if name.startswith(checkpoints.OF_REGULARIZERS)]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.log_step()

    def log_step(self) -> None:
        """What is known when a step is done; to be called in a hook `on_train_batch_end`, more than once if need be."""
        shown = {name for regularizer in self.regularizers for name in regularizer.on_bar}
        for name, number in self.learned.items():
            self.log(f"train/{name}", number, prog_bar=name in shown)
        if self.spikes is not None:
            self.log("train/skipped_steps", float(self.spikes.skipped))
        if self.trainer.global_step % max(1, self.trainer.log_every_n_steps) == 0:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
            if self.grad_norm is not None:
                self.log("grad_norm", self.grad_norm)

    # Checks

    def _check_finite(self, loss: Tensor) -> None:
        """On an accelerator reading the loss waits for the device, so there it is looked at when it is logged."""
        step = self.trainer.global_step
        if self.spikes is not None and self.spikes.ready:
            return
        if loss.device.type != "cpu" and (step + 1) % max(1, self.trainer.log_every_n_steps):
            return
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} at step {step}: {NOT_FINITE}")

    def setup(self, stage: str) -> None:
        if stage == "fit":
            check_precision(self, self.trainer.precision)
            if self.spikes is not None:
                self.spikes.check(self.trainer)
        self._matrices = {name for name, parameter in self.named_parameters() if parameter.dim() >= 2}
        data = self.trainer.datamodule
        if isinstance(data, TextDataModule):
            self._check_sizes(data)
            self.use_tokenizer(data.tokenizer)
            self._passages = self._passages_in(data) if stage == "fit" else None  # an evaluation logs none
            if stage == "fit":
                self._say_what_is_frozen()
                self._warn_if_it_can_only_memorise(data)
        do_not_send(self, self.buffers_equal_on_all_ranks())
        self.compile_again()

    def configure_model(self) -> None:
        shard(self, self.backbone.blocks, copies=any(regularizer.copies() for regularizer in self.regularizers))

    def compile_again(self) -> None:
        """After surgery: gates are hooks, and what was compiled does not look for new ones."""
        if self.compiles:
            torch.compiler.reset()
            self._run = torch.compile(self._run_backbone)

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Learn which ids are real (spare ones are never drawn) and how many bytes each stands for."""
        self._real_ids = tokenizer.vocab_size
        token_bytes = torch.zeros(self.backbone.vocab_size, dtype=torch.int64)
        token_bytes[: self._real_ids] = torch.from_numpy(tokenizer.token_bytes()).long()
        self._token_bytes = token_bytes.to(self.device)

    def _passages_in(self, data: TextDataModule) -> Passages | None:
        assert self._token_bytes is not None
        return Passages(data.tokens("val"), self._token_bytes) if data.splits.origin("val") else None

    def _passages_of(self, batch: Batch) -> Tensor | None:
        """(B, T), for each target."""
        if self._passages is None:
            return None
        return self._passages.of_targets(batch["document_ids"], batch["positions"])

    def _check_sizes(self, data: TextDataModule) -> None:
        if data.vocab_size != self.backbone.vocab_size:
            raise InputError(
                f"data.vocab_size is {data.vocab_size}, but the backbone has {self.backbone.vocab_size} ids: "
                "they must be equal"
            )
        longest = self.longest_block
        if longest is not None and data.block_size > longest:
            raise InputError(
                f"data.block_size is {data.block_size}, but the backbone holds at most {longest} positions"
            )

    @property
    def longest_block(self) -> int | None:
        """The most tokens that a sample may have; None where there is no limit."""
        return self.backbone.max_length

    def _say_what_is_frozen(self) -> None:
        own = [p for name, p in self.named_parameters() if not name.startswith(checkpoints.OF_REGULARIZERS)]
        trained, total = sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own)
        if trained < total:
            rank_zero_info(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})")

    def _warn_if_it_can_only_memorise(self, data: TextDataModule) -> None:
        if data.streamed("train"):
            return
        parameters, text = sum(p.numel() for p in self.parameters() if p.requires_grad), data.tokens("train")
        tokens = min(text.n_tokens, len(data.dataset("train")) * data.block_size)  # max_samples may leave some out
        if parameters > PARAMETERS_PER_TOKEN * tokens:
            rank_zero_warn(
                f"{parameters:,} parameters for {tokens:,} training tokens: a model more than {PARAMETERS_PER_TOKEN} "
                "times larger than its text mostly learns it by heart; use more text or a smaller model"
            )

    def on_fit_start(self) -> None:
        self._token_bytes = None if self._token_bytes is None else self._token_bytes.to(self.device)

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    # Optimisation

    def configure_optimizers(self) -> Any:
        """Weight decay for matrices only; FSDP shows a shard of one dimension, so `setup` has looked before."""
        trained = [
            (name.replace("_fsdp_wrapped_module.", ""), p) for name, p in self.named_parameters() if p.requires_grad
        ]
        optimizer = made("model.init_args.optimizer", self._optimisation.optimizer, self._groups(trained))
        if self._optimisation.scheduler is None:
            return optimizer
        scheduler = made("model.init_args.scheduler", self._optimisation.scheduler, optimizer)
        if isinstance(scheduler, WarmupCosine) and scheduler.total_steps is None:
            steps = self.optimizer_steps()
            if steps < scheduler.warmup_steps:
                rank_zero_warn(
                    f"the run has {steps} steps, so it ends within the {scheduler.warmup_steps} of its warm-up"
                )
            scheduler.set_total_steps(max(steps, scheduler.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}

    def _groups(self, trained: Sequence[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Parameter groups; with `group_by_layer` those of each block apart, under the key "layer" (-1: no block's)."""
        layer_of = {name: layer_of_parameter(name) if self.group_by_layer else None for name, _ in trained}
        groups: list[dict[str, Any]] = []
        for layer in dict.fromkeys(layer_of.values()):
            own = [(name, p) for name, p in trained if layer_of[name] == layer]
            of_layer = {} if layer is None else {"layer": layer}
            matrices = {"params": [p for name, p in own if name in self._matrices], **of_layer}
            others = {"params": [p for name, p in own if name not in self._matrices], "weight_decay": 0.0, **of_layer}
            groups += [group for group in (matrices, others) if group["params"]]
        return groups

    def optimizer_steps(self) -> int:
        """Steps that this run will do: from max_steps and max_epochs, without touching the trainer's loaders."""
        trainer, limits = self.trainer, []
        if trainer.max_steps > 0:
            limits.append(trainer.max_steps)
        if (trainer.max_epochs or -1) > 0:
            limits.append(self._steps_in_epochs(trainer.max_epochs))
        if not limits:
            raise InputError("a schedule needs the length of the run: give trainer.max_steps or trainer.max_epochs")
        return max(1, min(limits))

    def _steps_in_epochs(self, epochs: int) -> int:
        trainer, data = self.trainer, self.trainer.datamodule
        if not isinstance(data, TextDataModule):
            return epochs * math.ceil(trainer.estimated_stepping_batches / max(1, trainer.max_epochs or 1))
        batches, limit = data.batches_per_epoch("train"), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return steps_in(trainer, epochs=epochs, batches=batches)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm that was found, so that logging it costs nothing; leave out a spike."""
        if self.spikes is not None and self.spikes.judge(self.trainer, self.train_loss, self._norm()):
            for parameter in self.parameters():
                parameter.grad = None
            return
        if gradient_clip_algorithm == "value":
            self.grad_norm = None
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif isinstance(self.trainer.strategy, DeepSpeedStrategy):  # clips within its own step
            self.grad_norm = None
        elif isinstance(self.trainer.strategy, FSDPStrategy):  # no rank has all gradients: FSDP's own way
            self.grad_norm = self.trainer.model.clip_grad_norm_(gradient_clip_val or math.inf)
        elif gradient_clip_val:
            self.grad_norm = whole(nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val))
        elif (self.trainer.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:
            self.grad_norm = self._norm()

    def _norm(self) -> Tensor:
        """Of all gradients."""
        return whole(nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None]))

    # Checkpoints

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild this module for use, in plain types (not how it is optimised)."""
        regularizers = [describe(regularizer) for regularizer in self.regularizers]
        return {"backbone": describe(self.backbone), "regularizers": regularizers, "token_noise": self.token_noise}

    def own_state(self) -> dict[str, Any]:
        """What it keeps beside tensors, in plain types, for a checkpoint."""
        return {} if self.spikes is None else {SPIKES: self.spikes.state_dict()}

    def load_own_state(self, state: dict[str, Any], *, resumes: bool) -> None:
        """Take what `own_state` gave; `resumes` is whether the run goes on from there."""
        if self.spikes is not None and SPIKES in state and resumes:
            self.spikes.load_state_dict(state[SPIKES])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoints.WEIGHTS not in checkpoint:  # a sharded strategy has loaded the tensors itself
            return
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
        groups = [group for state in checkpoint.get(checkpoints.OPTIMIZERS, []) for group in state["param_groups"]]
        by_layer = any("layer" in group for group in groups)
        if groups and self.group_by_layer and not by_layer:
            raise InputError(
                "the checkpoint's optimizer has one learning rate for all layers, and layer_lr_factor needs one for "
                "each: set layer_lr_factor: 1, or take the weights alone (--init_from)"
            )
        self.group_by_layer = self.group_by_layer or by_layer


def layer_of_parameter(name: str) -> int:
    """The number of the block in a parameter's name ("transformer.h.3.attn.c_attn.weight": 3); -1: of no block."""
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return int(numbers[0]) if numbers and name.startswith("backbone.") else -1
