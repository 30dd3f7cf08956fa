"""ART in Hugging Face's Trainer: the same loss and the same categories in a fine-tuning of one's own.

Shapes: B texts, T tokens, D width, N embeddings (B of them, or one per token), S tokens of a span.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.utils import logging

from lightning_app.art.network import ART, SPAN, AdvancedART, check_term
from lightning_app.art.rehearsal import forgotten
from lightning_app.art.rules import Pooling, pool, spans, spread
from lightning_app.errors import DamagedError, InputError
from lightning_app.former import options_of_today
from lightning_app.models.model_copy import ModelCopy
from lightning_app.training.archive import damage
from lightning_app.training.distributed import gathered, rank, world_size
from lightning_app.training.schedulers import linear_warmup

FILE = "art.pt"
logger = logging.get_logger(__name__)


class ARTTrainer(Trainer):
    """A Trainer whose loss is its own plus `lambda_art` times that of an ART network on pooled hidden states.

    Categories are learned after each optimizer step. Evaluation is the Trainer's own, on the model's loss alone.
    Checkpoints and `save_model` write `art.pt`, see `load_art`; checkpoints also keep the averaged model in it. Logged
    beside `loss`: `ce` (the Trainer's own loss), `art` and `art_rehearsal`, means over the same steps; `art_clusters`,
    `art_births`, `art_known`, `art_match`, `art_drift` of the newest step.

    Args:
        art: the categories; its width is that of the hidden states.
        lambda_art: weight of the loss term.
        pooling: what is categorised: the `mean` over the real tokens of a text, its `last` real token, or each `token`.
        layer: whose states, counted from 0; None: the last state, which the head reads. Hugging Face gives the state of
            the last layer after the final norm.
        warmup_steps: optimizer steps in which the weight rises to `lambda_art`.
        average_decay: per step, of the averaged model of `novelty: drift` and of `rehearsal`.
        rehearsal: weight, within `lambda_art`, of a second term that keeps what was learned: KL(averaged model ||
            model) of the next tokens of the categories' typical texts, in nats per token. 0: none.
        rehearsed_texts: of 32 tokens, drawn anew in each step.
        learn_at_most: of each batch's embeddings, evenly spread: with `pooling: token` there are many.
        kwargs: see `transformers.Trainer`.

    Raises:
        InputError: an option outside its range, `model_init`, or drift with a model that is sharded.
    """

    # what the type checker does not see behind the decorated `__init__` of Trainer
    art: ART
    average: ModelCopy | None
    lambda_art: float
    pooling: Pooling
    layer: int | None
    warmup_steps: int
    rehearsal: float
    rehearsed_texts: int
    learn_at_most: int
    _seen: list[tuple[Tensor, Tensor]]
    _terms: Tensor
    _steps: int
    _numbers: dict[str, float]

    def __init__(
        self,
        *args: Any,
        art: ART,
        lambda_art: float = 0.1,
        pooling: Pooling = "mean",
        layer: int | None = None,
        warmup_steps: int = 0,
        average_decay: float = 0.999,
        rehearsal: float = 0.0,
        rehearsed_texts: int = 4,
        learn_at_most: int = 256,
        **kwargs: Any,
    ):
        check_term(
            pooling=pooling,
            lambda_art=lambda_art,
            warmup_steps=warmup_steps,
            average_decay=average_decay,
            rehearsal=rehearsal,
            rehearsed_texts=rehearsed_texts,
            learn_at_most=learn_at_most,
        )
        super().__init__(*args, **kwargs)
        if self.model_init is not None:
            raise InputError("model_init makes new models for the same categories: give ARTTrainer a model")
        averages = "novelty drift" if art.novelty == "drift" else "rehearsal" if rehearsal else None
        if averages and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError(
                f"{averages} keeps an average of the whole model, but it is sharded: take margin, and no rehearsal"
            )
        _say_what_has_no_effect(art)
        self.art = art.to(self.args.device)
        self.lambda_art, self.pooling, self.layer, self.warmup_steps = lambda_art, pooling, layer, warmup_steps
        self.rehearsal, self.rehearsed_texts, self.learn_at_most = rehearsal, rehearsed_texts, learn_at_most
        self.average = None
        if averages:
            self.average = ModelCopy(self._averages(), multi_avg_fn=get_ema_multi_avg_fn(average_decay))
            self.average.to(self.args.device).requires_grad_(False).eval()
        self._seen = []  # embeddings and spans since the last optimizer step
        self._terms, self._steps = torch.zeros(3), 0  # sums of ce, art and rehearsal since they were logged, and steps
        self._numbers = {}  # of the newest step
        self.add_callback(_AfterStep(self))

    def _averages(self) -> nn.Module:
        """What an average is kept of: states do not need the model's head, the logits of `rehearsal` do."""
        assert self.model is not None
        return self.model if self.rehearsal else _stem(self.model)

    @property
    def weight(self) -> float:
        """`lambda_art`, once warmed up."""
        return self.lambda_art * linear_warmup(self.state.global_step, warmup_steps=self.warmup_steps)

    # The loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = {**inputs, "output_hidden_states": True}
        ce, outputs = super().compute_loss(model, asked, True, num_items_in_batch)
        states = self._states(outputs)
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(states[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        weight = self.weight
        with torch.set_grad_enabled(weight != 0):
            embeddings, ends = pool(states, mask, self.pooling)
            art = self.art.loss(embeddings, self._averaged(inputs, mask, embeddings, ends))
            kept = self.rehearsal * self._forgotten(art.device) if self.rehearsal else torch.zeros_like(art)
        share = 1 / self.current_gradient_accumulation_steps  # of the optimizer step; losses add up to a mean
        scaled = self._is_scaled(num_items_in_batch)
        self._count(ce if scaled else ce * share, art * share, kept * share)
        self._keep(inputs.get("input_ids"), mask, embeddings, ends)
        loss = ce if weight == 0 else ce + weight * (art + kept) * (share if scaled else 1)
        return (loss, outputs) if return_outputs else loss

    def _is_scaled(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether `training_step` takes the loss as it is, and does not divide it by the accumulated batches."""
        said = getattr(self, "loss_is_scaled_for_ga", None)  # older ones do not have it
        if said is not None:
            return said
        return self.compute_loss_func is not None or (self.model_accepts_loss_kwargs and num_items_in_batch is not None)

    def _states(self, outputs: Any) -> Tensor:
        """(B, T, D) in float32."""
        states = outputs.get("hidden_states") if isinstance(outputs, Mapping) else None
        if states is None:
            raise InputError(f"{type(self.model).__name__} returns no hidden_states, which ART categorises")
        if self.layer is not None and not 0 <= self.layer < len(states) - 1:
            raise InputError(f"layer is {self.layer}; the model has {len(states) - 1}, counted from 0")
        chosen = states[-1 if self.layer is None else self.layer + 1].float()  # the first are the embeddings
        if chosen.shape[-1] != self.art.width:
            raise InputError(
                f"art has width {self.art.width}, the hidden states {chosen.shape[-1]}: they must be equal"
            )
        return chosen

    @torch.no_grad()
    def _averaged(
        self, inputs: dict[str, Any], mask_BT: Tensor, embeddings_ND: Tensor, ends_N2: Tensor
    ) -> Tensor | None:
        """(N, D), see `ART.averaged`; None where the loss needs none."""
        if self.art.novelty != "drift" or len(self.art) == 0:
            return None
        assert self.average is not None
        model = _stem(self.average.module)

        def embed(rows: Tensor) -> Tensor:
            taken = inspect.signature(model.forward).parameters.keys() - set(self.label_names)
            given = {name: x for name, x in inputs.items() if name in taken}
            B = len(mask_BT)
            some = {name: x[rows] if torch.is_tensor(x) and len(x) == B else x for name, x in given.items()}
            with self.accelerator.autocast():  # in the precision of the live model, which alone is prepared by it
                states = self._states(model(**some, output_hidden_states=True))
            return pool(states, mask_BT[rows], self.pooling)[0]

        return self.art.averaged(embeddings_ND, ends_N2[:, 0], embed)

    def _forgotten(self, device: torch.device) -> Tensor:
        """The rehearsal loss on some typical texts, which each rank draws anew in each step."""
        assert self.model is not None
        assert self.average is not None
        seed = self.state.global_step * world_size() + rank()
        texts = self.art.drawn_texts(self.rehearsed_texts, seed=seed).to(device)
        with self.accelerator.autocast():  # the averaged model is not prepared by it
            return forgotten(self.model, self.average.module, texts, _next_tokens)

    # What is learned

    def _keep(self, ids_BT: Tensor | None, mask_BT: Tensor, embeddings_ND: Tensor, ends_N2: Tensor) -> None:
        """Keep what is learned after the step."""
        embeddings, ends = spread(embeddings_ND.detach(), ends_N2, at_most=self.learn_at_most)
        finite = embeddings.isfinite().all(-1)
        if not finite.all():
            logger.warning(
                f"{int((~finite).sum())} of {len(finite)} embeddings are not finite: ART does not learn them"
            )
        texts = ends.new_full((len(ends), SPAN), -1)
        if ids_BT is not None:
            texts = spans(ids_BT, mask_BT, ends, self.pooling, length=SPAN)
        self._seen.append((embeddings[finite], texts[finite]))

    @torch.no_grad()
    def after_step(self) -> None:
        """Learn from all batches of an optimizer step, on all ranks the same."""
        embeddings, texts = (gathered(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        learned = self.art.learn(embeddings, texts)
        self._numbers = {f"art_{name}": number for name, number in {"clusters": len(self.art), **learned}.items()}
        if self.average is not None:
            self.average.update_parameters(self._averages())
        self._steps += 1

    def forget_unfinished(self) -> None:
        """Start to count anew: what was seen before no optimizer step came is not learned."""
        self._seen.clear()
        self._terms, self._steps = torch.zeros(3), 0

    # The log

    def _count(self, ce: Tensor, art: Tensor, kept: Tensor) -> None:
        terms = torch.stack([ce.detach().float().mean(), art.detach(), kept.detach()])
        self._terms = self._terms.to(art.device) + terms

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._steps:
            ce, art, kept = (gathered(self._terms[None]).mean(0) / self._steps).tolist()
            logs |= {"ce": ce, "art": art, **({"art_rehearsal": kept} if self.rehearsal else {}), **self._numbers}
            self._terms, self._steps = torch.zeros(3), 0
        super().log(logs, start_time)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir or ".")
            folder.mkdir(parents=True, exist_ok=True)
            saved: dict[str, Any] = {
                "width": self.art.width,
                "options": self.art.config(),
                "art": self.art.state_dict(),
            }
            if self.average is not None and _internal_call and not self.args.save_only_model:
                saved["average"] = self.average.state_dict()
            torch.save(saved, folder / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_art(checkpoint, resume=True)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self._load_art(self.state.best_model_checkpoint, resume=False)

    def _load_art(self, folder: str, *, resume: bool) -> None:
        saved = _read(folder)
        if saved["width"] != self.art.width or saved["options"] != self.art.config():
            raise InputError(
                f"{folder} has ART of width {saved['width']} with {saved['options']}, this Trainer of width "
                f"{self.art.width} with {self.art.config()}: give the same"
            )
        self.art.load_state_dict(saved["art"])
        if resume and self.average is not None:
            if saved.get("average", {}).keys() != self.average.state_dict().keys():
                raise InputError(f"{folder} was written with another rehearsal than {self.rehearsal}: give the same")
            self.average.load_state_dict(saved["average"])


def _say_what_has_no_effect(art: ART) -> None:
    """`ARTRegularizer` reads these from the group `advanced`; here they are arguments of the trainer's own."""
    given, usual = art.config()["advanced"], AdvancedART()
    for name in ("average_decay", "rehearsed_texts", "learn_at_most"):
        if given[name] != getattr(usual, name):
            warnings.warn(
                f"advanced.{name} is {given[name]} in art, where it has no effect: give {name} to ARTTrainer",
                stacklevel=3,
            )


def _stem(model: nn.Module) -> nn.Module:
    """The model without its head."""
    return model.base_model if isinstance(model, PreTrainedModel) else model


def _next_tokens(model: nn.Module, ids_NS: Tensor, mask_NS: Tensor) -> Tensor:
    """(N, S, V) logits."""
    outputs = model(input_ids=ids_NS, attention_mask=mask_NS.long())
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if logits is None or logits.dim() != 3:
        raise InputError(f"{type(model).__name__} predicts no next tokens, which rehearsal keeps")
    return logits


class _AfterStep(TrainerCallback):
    """Calls the trainer after each optimizer step, before it logs, evaluates and saves."""

    def __init__(self, trainer: ARTTrainer):
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.forget_unfinished()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.after_step()


def load_art(folder: str | Path) -> ART:
    """The categories that an ARTTrainer has saved with a model.

    Raises:
        InputError: there are none in this folder, or its file is damaged.
    """
    saved = _read(folder)
    art = ART(saved["width"], **saved["options"])
    art.load_state_dict(saved["art"])
    return art


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {FILE}: it was not written by an ARTTrainer; start from its weights instead")
    if wrong := damage(path):
        raise DamagedError(f"{path} is damaged ({wrong}): take another checkpoint, or start from its weights")
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return {**saved, "options": ART(1, **options_of_today(saved["options"], "ART")).config()}
