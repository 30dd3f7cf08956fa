"""A network of Adaptive Resonance Theory over embeddings: what it knows in buffers, a loss that shapes embeddings.

Shapes: N embeddings, D width, W numbers of a prototype, C categories, K typical texts of S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lightning_app.art.rules import (
    CosineRule,
    FuzzyRule,
    Pooling,
    Rates,
    Resonance,
    Usage,
    combined,
    learn,
    overlapping,
    resonate,
    whitening,
)
from lightning_app.errors import InputError

Kind = Literal["cosine", "fuzzy"]
Normalize = Literal["none", "center", "whiten"]
Novelty = Literal["drift", "margin", "constant"]

VIGILANCE = 0.8  # where neither a vigilance nor a quantile is given
KNOWN = 256  # matches of the newest inputs that a quantile is taken of; of 1,024 it lags behind categories that open
FIRST_INPUTS = 16  # that mean and scale are taken of before any category opens
REMEMBERED = 10_000  # inputs that mean and covariance go back to
REFRESH = 0.1  # the whitening is computed anew once so large a share of its inputs is new
TEXTS, SPAN = 3, 32  # typical texts of a category, and tokens of each
FADING = 0.999  # of a typical text's match with each input of its category, so that newer ones come in


class Standardised(nn.Module):
    """Takes the common mean (and covariance) out of embeddings, which in language models lie in a narrow cone.

    Anisotropy: Ethayarajh 2019 (arXiv:1909.00512); nearly all cosines are high, so that all inputs look known.

    Args:
        width: D.
        normalize: `none`; `center`: less the running mean; `whiten`: also of equal variance in all directions.
        scale: with `center`: each feature also divided by its standard deviation.
    """

    n: Tensor
    mean: Tensor
    scatter: Tensor
    whitener: Tensor
    since_whitened: Tensor

    def __init__(self, width: int, normalize: Normalize, *, scale: bool = False):
        super().__init__()
        self.normalize, self.scale = normalize, scale
        if normalize == "none":
            return
        self.register_buffer("n", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width))
        if normalize == "whiten" or scale:
            self.register_buffer("scatter", torch.zeros((width, width) if normalize == "whiten" else width))
        if normalize == "whiten":
            self.register_buffer("whitener", torch.eye(width))
            self.register_buffer("since_whitened", torch.zeros((), dtype=torch.float64))

    @property
    def ready(self) -> bool:
        """Whether enough was seen to compare embeddings."""
        return self.normalize == "none" or float(self.n) >= FIRST_INPUTS

    def update(self, embeddings_ND: Tensor) -> None:
        """See some more embeddings."""
        if self.normalize == "none" or len(embeddings_ND) == 0:
            return
        scatter = self.scatter if "scatter" in self._buffers else torch.zeros_like(self.mean)
        n, mean, scatter = combined(float(self.n), self.mean, scatter, embeddings_ND, at_most=REMEMBERED)
        self.n.fill_(n)
        self.mean.copy_(mean)
        if "scatter" in self._buffers:
            self.scatter.copy_(scatter)
        if self.normalize == "whiten":
            self.since_whitened += len(embeddings_ND)
            if float(self.since_whitened) >= REFRESH * n:  # rarely: it takes an eigenvalue decomposition
                self.whitener.copy_(whitening(self.scatter, n=n))
                self.since_whitened.zero_()

    def forward(self, embeddings_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D), with a gradient."""
        if self.normalize == "none":
            return embeddings_ND
        centred = embeddings_ND - self.mean
        if self.normalize == "whiten":
            return centred @ self.whitener
        return centred / self.scatter.sqrt().clamp_min(1e-6) if self.scale else centred


@dataclass(frozen=True)
class AdvancedART:
    """What few runs change of ART.

    Args:
        novelty_penalty: see `novelty` of `ART`.
        fast_learning_rate: `learning_rate` for the first `fast_inputs` inputs of a category.
        fast_inputs: see there.
        merge_at: two categories become one where their prototypes match so far on the way from the vigilance (0) to
            identity (1); 1: never. Fuzzy categories do only once the vigilance falls: no input would match both joined.
        choice_alpha: the choice parameter of Fuzzy ART.
        average_decay: per step, of the averaged model of `novelty: drift` and of `rehearsal`; it costs the parameters
            once more, and a forward of the novel texts. Of `ARTRegularizer` alone, as those that follow.
        rehearsed_texts: of 32 tokens, drawn anew in each training step; a category that current texts have not come to
            for twice as long is drawn twice as often. All batches of a step rehearse the same ones, and count alike.
        learn_at_most: of each step's embeddings on each rank, evenly spread: with `pooling: token` there are many.
    """

    novelty_penalty: float = 0.1
    fast_learning_rate: float = 0.5
    fast_inputs: int = 0
    merge_at: float = 0.5
    choice_alpha: float = 0.001
    average_decay: float = 0.999
    rehearsed_texts: int = 4
    learn_at_most: int = 256

    @classmethod
    def of(cls, given: AdvancedART | dict[str, Any]) -> AdvancedART:
        """Descriptions have it in plain types."""
        return cls(**given) if isinstance(given, dict) else given


class ART(nn.Module):
    """Categories of embeddings, which open and move as embeddings are learned, and pull embeddings to them.

    With `cosine` the match is the cosine with a prototype; with `fuzzy` that of Fuzzy ART (`art.rules.FuzzyRule`) on
    the sigmoid of the embedding. State is in buffers alone: it travels in the checkpoint, and `loss` changes nothing.

    Args:
        width: D.
        kind: `cosine` or `fuzzy`.
        vigilance: the match from which on an input is known; 0.8 unless a quantile is given.
        vigilance_quantile: instead of it: the vigilance follows the matches of the last 256 inputs, so that this
            share of them counts as novel. So it follows whatever comes: after a change of text the new one soon counts
            as known. `calibrate` ends that.
        normalize: what is taken out of embeddings before they are compared, see `Standardised`; statistics run along.
            With `fuzzy`, `center` divides by the standard deviation too.
        novelty: the loss of an input that is novel. `drift`: 1 - cos(e, the same embedding by an exponentially averaged
            model), so that it stays where it was; `margin`: relu(match with the winner - vigilance +
            `novelty_penalty`), away from a category that it does not belong to; `constant`: `novelty_penalty`, which
            has no gradient and changes nothing but the number.
        capacity: of categories; beyond it the one with the fewest inputs makes room.
        learning_rate: how far a prototype goes towards an input, (0, 1]; 1 is ART's fast learning.
        advanced: see `AdvancedART`; in a description a dict.

    Raises:
        InputError: an option outside its range, or two that contradict each other.
    """

    prototypes: Tensor
    ids: Tensor
    counts: Tensor
    born: Tensor
    used: Tensor
    size: Tensor
    seen: Tensor
    opened: Tensor
    known: Tensor
    threshold: Tensor
    texts: Tensor
    text_match: Tensor

    def __init__(
        self,
        width: int,
        *,
        kind: Kind = "cosine",
        vigilance: float | None = None,
        vigilance_quantile: float | None = None,
        normalize: Normalize = "none",
        novelty: Novelty = "drift",
        capacity: int = 1000,
        learning_rate: float = 0.05,
        advanced: AdvancedART = AdvancedART(),
    ):
        super().__init__()
        rare = AdvancedART.of(advanced)
        self._options = {name: x for name, x in locals().items() if name not in ("self", "width", "rare", "__class__")}
        self._options["advanced"] = asdict(rare)
        _check(kind, vigilance, vigilance_quantile, {**self._options, **asdict(rare)})
        self.rule = CosineRule() if kind == "cosine" else FuzzyRule(rare.choice_alpha)
        self.kind, self.novelty = kind, novelty
        self.novelty_penalty, self.merge_at = rare.novelty_penalty, rare.merge_at
        self.rates = Rates(learning_rate, rare.fast_learning_rate, rare.fast_inputs)
        self.quantile = vigilance_quantile
        self.standardised = Standardised(width, normalize, scale=kind == "fuzzy")
        W = width if kind == "cosine" else 2 * width
        start = -torch.inf if vigilance_quantile is not None else VIGILANCE if vigilance is None else vigilance
        self.register_buffer("prototypes", torch.zeros(capacity, W))
        self.register_buffer("ids", torch.full((capacity,), -1))
        for name in ("counts", "born", "used"):
            self.register_buffer(name, torch.zeros(capacity, dtype=torch.int64))
        for name in ("size", "seen", "opened"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("known", torch.full((0 if vigilance_quantile is None else KNOWN,), torch.nan))
        self.register_buffer("threshold", torch.tensor(float(start)))
        self.register_buffer("texts", torch.full((capacity, TEXTS, SPAN), -1, dtype=torch.int32))
        self.register_buffer("text_match", torch.full((capacity, TEXTS), -torch.inf))

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` but for the width, in plain types."""
        return dict(self._options)

    def __len__(self) -> int:
        """Number of categories."""
        return int(self.size)

    @property
    def width(self) -> int:
        """D."""
        return self.prototypes.shape[1] // (2 if self.kind == "fuzzy" else 1)

    @property
    def vigilance(self) -> float:
        """The match from which on an input is known; -inf before a quantile has anything to go by."""
        return float(self.threshold)

    def _apply(self, fn: Any, recurse: bool = True) -> ART:
        """Moves between devices; `.half()` and the like leave all types as they are: small steps would be lost."""

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    # What is computed

    def code(self, embeddings_ND: Tensor) -> Tensor:
        """(N, D) -> (N, W), what is compared with prototypes."""
        features = self.standardised(embeddings_ND.float())
        return self.rule.code(features.sigmoid() if self.kind == "fuzzy" else features)

    @torch.no_grad()
    def resonate(self, embeddings_ND: Tensor) -> Resonance:
        """The category (a slot) of each embedding, its match, and whether it is known. Changes nothing."""
        with torch.autocast(embeddings_ND.device.type, enabled=False):
            return self._resonate(self.code(embeddings_ND))

    def _resonate(self, inputs_NW: Tensor) -> Resonance:
        return resonate(self.rule, inputs_NW, self.prototypes[: len(self)], vigilance=self.vigilance)

    def is_novel(self, embeddings_ND: Tensor) -> Tensor:
        """(N,) bool."""
        return ~self.resonate(embeddings_ND).resonant

    def averaged(self, embeddings_ND: Tensor, rows_N: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, D) for `loss`: by an averaged model, of texts in which something is novel; the embeddings elsewhere.

        Args:
            rows_N: the text of each embedding.
            embed: numbers of texts, ascending -> all of their embeddings by that model, in the same order.
        """
        novel = rows_N[self.is_novel(embeddings_ND)].unique()
        averaged = embeddings_ND.clone()
        if len(novel):
            averaged[torch.isin(rows_N, novel)] = embed(novel)
        return averaged

    def loss(self, embeddings_ND: Tensor, averaged_ND: Tensor | None = None) -> Tensor:
        """Mean over the embeddings: 1 - match where one resonates, else the term of `novelty`; 0 without categories.

        Args:
            averaged_ND: the same by an averaged model; `drift` needs it where an embedding is novel, elsewhere it is
                not looked at.
        """
        if len(self) == 0 or len(embeddings_ND) == 0:
            return embeddings_ND.new_zeros(())
        with torch.autocast(embeddings_ND.device.type, enabled=False):
            inputs = self.code(embeddings_ND)
            found = self._resonate(inputs.detach())
            match = self.rule.match(inputs, self.prototypes[found.slots])
            return torch.where(found.resonant, 1 - match, self._novelty_loss(inputs, match, averaged_ND)).mean()

    def _novelty_loss(self, inputs_NW: Tensor, match_N: Tensor, averaged_ND: Tensor | None) -> Tensor:
        if self.novelty == "constant":
            return torch.full_like(match_N, self.novelty_penalty, requires_grad=False)
        if self.novelty == "margin":
            return (match_N - self.vigilance + self.novelty_penalty).relu()
        if averaged_ND is None:
            raise ValueError("novelty drift needs the embeddings of an averaged model")
        return 1 - nn.functional.cosine_similarity(inputs_NW, self.code(averaged_ND), dim=-1)

    # What is learned

    @torch.no_grad()
    def learn(self, embeddings_ND: Tensor, spans_NS: Tensor | None = None) -> dict[str, float]:
        """Learn from embeddings, one by one in their order: exactly what N calls with one of each would learn.

        Exactly, given mean, covariance, vigilance and merging, which follow once per call, and typical texts, which are
        matched with the prototypes after it.

        Args:
            spans_NS: (N, S) token ids of the texts that they stand for, -1 where there is none.

        Returns: births, known (share), match (mean), drift (mean 1 - cosine of the prototypes that moved) of this call;
            nothing without embeddings, or before enough were seen to take their mean out.

        Raises:
            InputError: an embedding that is not finite; then nothing is learned.
        """
        if not (finite := embeddings_ND.isfinite().all(-1)).all():
            rows = (~finite).nonzero()[:, 0].tolist()
            raise InputError(f"embeddings {rows} of {len(finite)} are not finite: nothing is learned from them")
        self.standardised.update(embeddings_ND.float())
        if not self.standardised.ready or len(embeddings_ND) == 0:
            return {}
        inputs, size = self.code(embeddings_ND), len(self)
        usage = Usage(self.counts, self.born, self.used, size, int(self.seen))
        learned = learn(self.rule, inputs, self.prototypes, usage, vigilance=self.vigilance, rates=self.rates)
        moved = ~torch.isin(learned.changed, learned.slots[learned.opened])
        drift = 1 - nn.functional.cosine_similarity(
            self.prototypes[learned.changed[moved]], learned.prototypes[moved], dim=-1
        )
        self.prototypes[learned.changed] = learned.prototypes
        self._count(learned.usage)
        for i, (slot, opened) in enumerate(zip(learned.slots.tolist(), learned.opened.tolist(), strict=True)):
            if opened:
                self.ids[slot] = self.opened
                self.opened += 1
                self.texts[slot], self.text_match[slot] = -1, -torch.inf
            if spans_NS is not None:
                self._remember(slot, spans_NS[i], inputs[i])
        self._merge(learned.changed)
        self._follow(learned.match[learned.match.isfinite()])
        return {
            "births": float(learned.opened.sum()),
            "known": 1 - float(learned.opened.float().mean()),
            "match": float(learned.match.clamp_min(-1).mean()) if size else 0.0,
            "drift": float(drift.mean()) if len(drift) else 0.0,
        }

    def _count(self, usage: Usage) -> None:
        for name in ("counts", "born", "used"):
            getattr(self, name).copy_(getattr(usage, name))
        self.size.fill_(usage.size)
        self.seen.fill_(usage.seen)

    def _remember(self, slot: int, span: Tensor, input_W: Tensor) -> None:
        """Keep the text among the typical ones of its category, if it matches the prototype better than one of them."""
        match = self.rule.match(input_W[None], self.prototypes[slot][None])[0]
        self.text_match[slot] -= (1 - FADING) * self.text_match[slot].abs()
        padded = nn.functional.pad(span[:SPAN].int(), (0, SPAN - len(span[:SPAN])), value=-1)
        same = (self.texts[slot] == padded).all(-1)
        worst = int(same.int().argmax() if same.any() else self.text_match[slot].argmin())
        if same.any() or match > self.text_match[slot, worst]:
            self.text_match[slot, worst] = match
            self.texts[slot, worst] = padded

    def _merge(self, changed: Tensor) -> None:
        """Let categories that came to overlap become one."""
        if self.merge_at >= 1 or self.vigilance == -torch.inf:
            return
        if self.kind == "fuzzy" and self.quantile is None:  # none ever do: the search would be for nothing
            return
        at, n = self.vigilance + self.merge_at * (1 - self.vigilance), len(self)
        prototypes = self.prototypes[:n]
        pairs = overlapping(self.rule, prototypes, self.counts, changed, at=at, vigilance=self.vigilance)
        for kept, gone in pairs:
            counts = int(self.counts[kept]), int(self.counts[gone])
            self.prototypes[kept] = self.rule.joined(self.prototypes[kept], self.prototypes[gone], counts)
            self.counts[kept] += self.counts[gone]
            self.born[kept] = torch.minimum(self.born[kept], self.born[gone])
            self.used[kept] = torch.maximum(self.used[kept], self.used[gone])
            best = torch.cat([self.text_match[kept], self.text_match[gone]]).topk(TEXTS)
            self.texts[kept] = torch.cat([self.texts[kept], self.texts[gone]])[best.indices]
            self.text_match[kept] = best.values
        for gone in sorted((gone for _, gone in pairs), reverse=True):
            self._remove(gone)

    def _remove(self, slot: int) -> None:
        """The last category takes the place that becomes free; its id stays its own."""
        last = len(self) - 1
        for name in ("prototypes", "ids", "counts", "born", "used", "texts", "text_match"):
            buffer = getattr(self, name)
            buffer[slot] = buffer[last].clone()
        self.counts[last], self.ids[last] = 0, -1
        self.size -= 1

    def calibrate(self, embeddings_ND: Tensor) -> None:
        """Set the vigilance so that `vigilance_quantile` of these, which are known but were not learned, are novel.

        From then on it is fixed. Without a quantile, embeddings or categories nothing happens.
        """
        if self.quantile is None or len(embeddings_ND) == 0 or len(self) == 0:
            return
        self.threshold.copy_(self.resonate(embeddings_ND).match.quantile(self.quantile))
        self.known.fill_(torch.nan)

    @property
    def is_fixed(self) -> bool:
        """Whether the vigilance no longer follows the newest matches: it was given, or calibrated."""
        return bool(self.threshold.isfinite() & self.known.isnan().all())

    def _follow(self, match_N: Tensor) -> None:
        """Let the vigilance follow the newest matches."""
        if self.is_fixed or len(match_N) == 0:
            return
        newest = torch.cat([self.known, match_N])[-KNOWN:]
        self.known.copy_(newest)
        self.threshold.copy_(newest.nanquantile(cast(float, self.quantile)))

    # What is remembered

    def drawn_texts(self, n: int, *, seed: int) -> Tensor:
        """(n, S) typical texts, -1 behind their ends, or (0, S) if there are none. Changes nothing.

        A category is drawn by how many inputs ago it had its last one, and then one of its texts.
        """
        texts = self.texts[: len(self)]
        there = (texts[..., 0] >= 0).cpu()  # (C, K)
        if not there.any():
            return texts.new_empty(0, texts.shape[-1]).long()
        generator = torch.Generator().manual_seed(seed)
        since = (self.seen - self.used[: len(self)]).cpu().double() * there.any(-1)
        slots = torch.multinomial(since, n, replacement=True, generator=generator)
        which = torch.multinomial(there[slots].double(), 1, generator=generator)[:, 0]
        return texts[slots, which].long()

    # What is shown

    def typical(self, slot: int) -> list[list[int]]:
        """Token ids of the typical texts of a category, the best match first, each text once."""
        order = self.text_match[slot].argsort(descending=True)
        texts = [tuple(i for i in text if i >= 0) for text in self.texts[slot, order].tolist()]
        return [list(text) for text in dict.fromkeys(texts) if text]


def _check(kind: str, vigilance: float | None, quantile: float | None, options: dict[str, Any]) -> None:
    for name, known in (("kind", Kind), ("normalize", Normalize), ("novelty", Novelty)):
        if options[name] not in get_args(known):
            raise InputError(f"{name} is {options[name]!r}; there are {', '.join(get_args(known))}")
    if vigilance is not None and quantile is not None:
        raise InputError(f"vigilance is {vigilance} and vigilance_quantile {quantile}: give one of them")
    lowest = -1 if kind == "cosine" else 0
    if vigilance is not None and not lowest <= vigilance <= 1:
        raise InputError(f"vigilance is {vigilance}; with {kind} ART it must lie in [{lowest}, 1]")
    if quantile is not None and not 0 < quantile < 1:
        raise InputError(f"vigilance_quantile is {quantile}; it must lie between 0 and 1")
    for name in ("learning_rate", "fast_learning_rate"):
        if not 0 < options[name] <= 1:
            raise InputError(f"{name} is {options[name]}; it must lie in (0, 1]")
    if not 0 <= options["merge_at"] <= 1:
        raise InputError(f"merge_at is {options['merge_at']}; it must lie in [0, 1]")
    for name, least in (("capacity", 1), ("fast_inputs", 0), ("novelty_penalty", 0)):
        if options[name] < least:
            raise InputError(f"{name} is {options[name]}; it must be at least {least}")


def check_term(*, pooling: str, **options: float) -> None:
    """Refuse options of ART as a term of a training's loss that are outside their range."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling is {pooling!r}; there are {', '.join(get_args(Pooling))}")
    for name, value in options.items():
        least, most = int(name in ("learn_at_most", "rehearsed_texts")), 1 if name == "average_decay" else math.inf
        if not least <= value <= most or value == math.inf:
            raise InputError(f"{name} is {value}; it must be at least {least}" + (", at most 1" * (most == 1)))
