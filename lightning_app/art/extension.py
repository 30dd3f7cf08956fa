"""ART GPT-2: a language model whose states are pulled to the categories of an Adaptive Resonance Theory network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_app.art.network import ART, SPAN, AdvancedART, check_term
from lightning_app.art.rehearsal import forgotten
from lightning_app.art.rules import Pooling, Resonance, pool, spans, spread
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone, HiddenStates
from lightning_app.models.extension import Extension, Outputs, Regularizer
from lightning_app.models.model_copy import ModelCopy
from lightning_app.models.modes import evaluated
from lightning_app.models.registry import describe
from lightning_app.models.stored import Draw, Stored, text_of
from lightning_app.training.distributed import gathered, rank, world_size
from lightning_app.training.module import LanguageModule
from lightning_app.training.schedulers import linear_warmup

OPTIONS = ("lambda_art", "pooling", "layer", "warmup_steps", "rehearsal", "name", "calibrate_at")
USUAL = AdvancedART()
UNKNOWN = -1.0  # similarity of a text where there is no category yet


class ARTRegularizer(Regularizer):
    """Pulls states to the category that they resonate with, and learns the categories after each optimizer step.

    Joins any LanguageModule. A text that matches a category is pulled to its prototype; one that matches none opens a
    category, and has the loss that `novelty` names. Ranks gather their texts before they learn, and so learn the same.

    Args:
        lambda_art: weight of the loss term.
        pooling: what is categorised: the `mean` over the real tokens of a sequence, its `last` real token, or each
            `token`.
        layer: whose states, counted from 0; None: the last state, which `logits` reads.
        warmup_steps: optimizer steps in which the weight rises to `lambda_art`.
        rehearsal: weight, within `lambda_art`, of a second term that keeps what was learned: KL(averaged model ||
            model) of the next tokens of the categories' typical texts, in nats per token. 0: none.
        name: of the loss term and of all that is logged; a second one in a model needs another one.
        calibrate_at: optimizer steps after which the next validation of a fit sets the vigilance, once and for all:
            `vigilance_quantile` of its texts then counts as novel. None: the vigilance follows what comes.
        advanced: see `AdvancedART`; in a description a dict.
        art: see `ART`.

    Raises:
        InputError: an option outside its range, or two that contradict each other.
    """

    steps: Tensor

    def __init__(
        self,
        lambda_art: float = 0.1,
        pooling: Pooling = "mean",
        layer: int | None = None,
        warmup_steps: int = 0,
        rehearsal: float = 0.0,
        name: str = "art",
        calibrate_at: int | None = None,
        advanced: AdvancedART = USUAL,
        **art: Any,
    ):
        super().__init__(lambda_art, () if layer is None else (layer,))
        self.advanced = AdvancedART.of(advanced)
        check_term(
            pooling=pooling,
            lambda_art=lambda_art,
            warmup_steps=warmup_steps,
            average_decay=self.advanced.average_decay,
            rehearsal=rehearsal,
            rehearsed_texts=self.advanced.rehearsed_texts,
            learn_at_most=self.advanced.learn_at_most,
        )
        self.lambda_art, self.pooling, self.layer, self.warmup_steps = lambda_art, pooling, layer, warmup_steps
        self.rehearsal, self.name, self.calibrate_at = rehearsal, name, calibrate_at
        if calibrate_at is not None and (art.get("vigilance_quantile") is None or calibrate_at < 1):
            raise InputError(
                f"calibrate_at is {calibrate_at}: give a step from 1 on, and a vigilance_quantile to reach"
            )
        self.on_bar = (f"{name}_clusters",)
        self.means_over = {name: "tokens" if pooling == "token" else "texts"}
        self._art_options = art
        # refuses what contradicts itself; `attach` makes the one of the right width
        self.art = ART(1, **art, advanced=self.advanced)
        self.average: ModelCopy | None = None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._counts: list[dict[str, float]] = []  # of the batches of this step
        self._in_fit = False
        self._held_out: list[Tensor] = []  # embeddings of a validation that calibrates

    @property
    def weight(self) -> float:
        """`lambda_art`, once warmed up."""
        return self.lambda_art * linear_warmup(int(self.steps), warmup_steps=self.warmup_steps)

    @weight.setter
    def weight(self, value: float) -> None:
        self.lambda_art = value

    def attach(self, model: Backbone) -> None:
        super().attach(model)
        self.art = ART(model.width, **self._art_options, advanced=self.advanced)
        if self.art.novelty == "drift" or self.rehearsal:
            self.average = ModelCopy(model, multi_avg_fn=get_ema_multi_avg_fn(self.advanced.average_decay))
            self.average.requires_grad_(False)

    def config(self) -> dict[str, Any]:
        return {**{option: getattr(self, option) for option in OPTIONS}, **self.art.config()}

    # What is computed

    def _states(self, states: HiddenStates) -> Tensor:
        if self.layer is None:
            return states.last
        if self.layer not in states.layers:
            raise InputError(f"layer is {self.layer}; the backbone has no such layer (they are counted from 0)")
        return states.layers[self.layer]

    def embeddings(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        """(N, D) in float32, and (N, 2) the row and the last position of each."""
        return pool(self._states(outputs.plain_states).float(), outputs.mask, self.pooling)

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        embeddings, ends = self.embeddings(outputs)
        averaged = self._averaged(outputs, embeddings, ends) if self.art.novelty == "drift" and len(self.art) else None
        term = self.art.loss(embeddings, averaged)
        terms = {self.name: term}
        if self.rehearsal and self.training:
            terms[f"{self.name}_rehearsal"] = self.rehearsal * self._forgotten(outputs.ids.device)
        return terms

    def _forgotten(self, device: torch.device) -> Tensor:
        """The rehearsal loss on some typical texts, which each rank draws anew in each step."""
        assert self.average is not None
        n, seed = self.advanced.rehearsed_texts, int(self.steps) * world_size() + rank()
        texts = self.art.drawn_texts(n, seed=seed).to(device)
        average = cast(Backbone, self.average.module)
        return forgotten(self.model, average, texts, lambda model, ids, _: model.text_logits(ids))

    @torch.no_grad()
    def _averaged(self, outputs: Outputs, embeddings_ND: Tensor, ends_N2: Tensor) -> Tensor:
        """(N, D), see `ART.averaged`."""
        assert self.average is not None
        model = cast(Backbone, self.average.module)

        def embed(rows: Tensor) -> Tensor:
            with evaluated(model):
                states = self._states(model.states(outputs.ids[rows], layers=self.layers)).float()
            return pool(states, outputs.mask[rows], self.pooling)[0]

        return self.art.averaged(embeddings_ND, ends_N2[:, 0], embed)

    @torch.no_grad()
    def describe(self, outputs: Outputs) -> dict[str, Tensor]:
        """Category (its id; -1: none), similarity and novelty of each sequence.

        With `pooling: token` the category that most of its tokens are in, their mean similarity, and whether half of
        them or more are novel.
        """
        embeddings, ends = self.embeddings(outputs)
        found, rows = self.art.resonate(embeddings), ends[:, 0]
        texts = torch.arange(len(outputs.ids), device=outputs.ids.device)
        per_text = [_of_text(found, rows == text) for text in texts]
        slots = torch.stack([slot for slot, _, _ in per_text])
        return {
            f"{self.name}_category": self.art.ids[slots].where(slots >= 0, -1),
            f"{self.name}_similarity": torch.stack([similarity for _, similarity, _ in per_text]),
            f"{self.name}_novel": torch.stack([novel for _, _, novel in per_text]),
        }

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        if len(self.art):
            yield self.name, _stored(self.art, draw(len(self.art)), tokenizer)

    # What the vigilance is calibrated by

    def use_data(self, data: TextDataModule, *, stage: str, rank: int) -> None:
        self._in_fit = stage == "fit"

    @property
    def _calibrates(self) -> bool:
        due = self.calibrate_at is not None and int(self.steps) >= self.calibrate_at
        return self._in_fit and due and not self.art.is_fixed

    def begin_evaluation(self) -> None:
        self._held_out = []

    @torch.no_grad()
    def after_evaluation_batch(self, outputs: Outputs) -> None:
        if self._calibrates:
            some, _ = spread(*self.embeddings(outputs), at_most=self.advanced.learn_at_most)
            self._held_out.append(some[some.isfinite().all(-1)])

    @torch.no_grad()
    def after_validation(self) -> None:
        if not self._calibrates:
            return
        none = self.art.prototypes.new_empty(0, self.art.width)
        held_out, self._held_out = gathered(torch.cat([none, *self._held_out])), []
        self.art.calibrate(held_out)
        if self.art.is_fixed:
            rank_zero_info(
                f"{self.name}: from here on a text is known if it matches a category by {self.art.vigilance:.3f} or "
                f"more; {self.art.quantile:.0%} of {len(held_out):,} held-out embeddings do not"
            )

    # What is learned

    def learn(self, outputs: Outputs) -> None:
        self.learn_step([outputs])

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        """Learn from all batches at once, in their order and in each those of all ranks: as from one large batch."""
        embeddings, ends = zip(*(self.embeddings(outputs) for outputs in seen), strict=True)
        batches = [end.new_full((len(end), 1), i) for i, end in enumerate(ends)]
        where = torch.cat([torch.cat(batches), torch.cat(ends)], dim=-1)  # (N, 3)
        some, where = spread(torch.cat(embeddings), where, at_most=self.advanced.learn_at_most)
        of_batch = [where[:, 0] == i for i in range(len(seen))]
        parts = [
            self._learnable(outputs, some[mine], where[mine, 1:]) for outputs, mine in zip(seen, of_batch, strict=True)
        ]
        self._counts.append(self.art.learn(*(torch.cat(each) for each in zip(*parts, strict=True))))

    def _learnable(self, outputs: Outputs, embeddings: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of a batch and the texts that they stand for, of all ranks; without those that are not finite."""
        finite = embeddings.isfinite().all(-1)
        if not finite.all():
            documents = outputs.document_ids[ends[~finite, 0], 0].unique().tolist()
            warnings.warn(  # on each rank, as each has documents of its own
                f"{self.name}: {int((~finite).sum())} of {len(finite)} embeddings are not finite (documents "
                f"{documents}): nothing is learned from them",
                stacklevel=2,
            )
        texts = spans(outputs.ids, outputs.mask, ends, self.pooling, length=SPAN)
        return gathered(embeddings[finite]), gathered(texts[finite])

    def after_step(self) -> dict[str, float]:
        self.steps += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        counts, self._counts = [c for c in self._counts if c], []
        sizes = self.art.counts[: len(self.art)].float()
        numbers = {"clusters": float(len(self.art)), "vigilance": max(-1.0, self.art.vigilance)}
        if counts:
            numbers["births"] = sum(c["births"] for c in counts)
            for name in ("known", "match", "drift"):
                numbers[name] = sum(c[name] for c in counts) / len(counts)
        if len(sizes):
            numbers |= {"size_median": float(sizes.median()), "size_max": float(sizes.max())}
        return {f"{self.name}_{name}": number for name, number in numbers.items()}


def _of_text(found: Resonance, mine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slot, similarity and novelty of one text, of whose embeddings `mine` (N,) says which they are."""
    slots, match = found.slots[mine], found.match[mine].clamp_min(UNKNOWN)
    if len(slots) == 0:
        return found.slots.new_tensor(-1), match.new_tensor(UNKNOWN), mine.new_tensor(False)
    return slots.mode().values, match.mean(), (~found.resonant[mine]).float().mean() >= 0.5


def _stored(art: ART, slots: Tensor, tokenizer: Tokenizer) -> Stored:
    """Prototypes, with the text that matches each best; the age is in inputs."""
    slots = slots.to(art.prototypes.device)
    fields = (art.ids[slots], art.counts[slots], art.seen - art.born[slots])
    rows = [
        [text_of(tokenizer, next(iter(art.typical(slot)), [])), *(str(number) for number in numbers)]
        for slot, *numbers in zip(slots.tolist(), *(field.tolist() for field in fields), strict=True)
    ]
    return Stored(art.prototypes[slots], ["text", "category", "inputs", "age"], rows)


class ARTGPT2(LanguageModule):
    """Any backbone with ART on its states: GPT-2 with the weights of Hugging Face's, or one from scratch.

    Args:
        backbone: the language model: `PretrainedLM`, `Decoder`, or any other.
        art: what is categorised, how, and with what weight; None: the defaults of `ARTRegularizer`.
        extensions: further ones.
        kwargs: see `LanguageModule`.
    """

    def __init__(
        self,
        backbone: Backbone,
        art: ARTRegularizer | None = None,
        extensions: list[Extension] | None = None,
        **kwargs: Any,
    ):
        art = ARTRegularizer() if art is None else art
        super().__init__(backbone, extensions=[art, *(extensions or [])], **kwargs)

    def config(self) -> dict[str, Any]:
        art, *others = self.extensions
        return {**super().config(), "art": describe(art), "extensions": [describe(other) for other in others]}
