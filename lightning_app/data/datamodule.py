"""The data of a run: sources, tokenizer, token caches, and the loaders that Lightning asks for."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L

from lightning_app.data.accumulation import accumulated, accumulation_schedule
from lightning_app.data.bpe import Texts
from lightning_app.data.chat_encoding import WrittenChats, template_of
from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.corpus import Document
from lightning_app.data.counts import Counts, table
from lightning_app.data.joined_tokens import JoinedTokens
from lightning_app.data.loader import Order as LoaderOrder
from lightning_app.data.loader import ResumableLoader
from lightning_app.data.mixture import Mixture
from lightning_app.data.overlap import overlap
from lightning_app.data.sources import (
    SPLITS,
    Dataloader,
    Source,
    Split,
    Splits,
    as_options,
    as_sources,
    check_dataloader,
    check_least,
)
from lightning_app.data.strategies import shards_parameters
from lightning_app.data.stream import Reader, TokenStream
from lightning_app.data.stream_loader import StreamLoader
from lightning_app.data.token_cache import TokenArray, prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer, pieces
from lightning_app.data.tokenizers.sources import is_hugging_face
from lightning_app.data.windows import PairSamples, TokenDataset, TokenWindows
from lightning_app.errors import InputError

log = logging.getLogger(__name__)

STREAMED_FOR_TOKENIZER = 10_000  # documents of a stream that a tokenizer is trained on

Order = Literal["windows", "streams"]
# What each of the Trainer's functions reads. A fit may do without val; whoever asks for its loader may not.
USED = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


_SAVED: ContextVar[dict[str, Any] | None] = ContextVar("the state of a checkpoint's data", default=None)


@contextmanager
def adopting_tokenizer(state: dict[str, Any] | None) -> Iterator[None]:
    """A data module that is made within adopts the tokenizer of this state before anyone asks for its own, which
    may be gone. Whoever parses a config does not call the constructor, so it cannot be given there."""
    token = _SAVED.set(state)
    try:
        yield
    finally:
        _SAVED.reset(token)


class TextDataModule(L.LightningDataModule):
    """Text -> tokens -> batches (see `lightning_app.data.windows` for what a batch is).

    Args:
        train: what to train on: a source, or several with weights.
        val: what to validate on; several are measured one by one, too.
        test: what to test on.
        predict: what to predict on; test, else val, if null.
        tokenizer: "bytes", a tiktoken encoding, a .tiktoken file (trained if missing and vocab_size is given), a
            directory or tokenizer.json of Hugging Face's, hf:NAME on its hub, or "model": that of `pretrained`.
        chat_template: a file in Jinja that writes conversations; null: the tokenizer's, else lines of "User: ...".
        vocab_size: number of ids, the end of text included; null takes the tokenizer's.
        pad_vocab_to: round vocab_size up to a multiple of this; 64 suits GPUs.
        special_tokens: names of special and added tokens in a text become those tokens; else they are ordinary text.
        block_size: tokens per sample.
        dataloader: how batches are made.
        order: "windows"; or "streams", where row i of a batch continues row i of the one before, for memories.
        shift: move the training windows by another offset in each epoch.
        respect_documents: windows do not cross a document's end.
        split: fractions of train's documents for val and test, where these are not given.
        cache_dir: where token caches are written.
        num_proc: processes that tokenise; the tokens do not depend on their number.
        clean: unify line ends, spaces at line ends and runs of empty lines. Not in prompt/target pairs.
        seed: of order, shift and split; null takes the run's seed (seed_everything), else 0.

    Raises:
        InputError: an option out of range, or two that contradict each other.
    """

    def __init__(
        self,
        train: Source | list[Source] | None = None,
        val: Source | list[Source] | None = None,
        test: Source | list[Source] | None = None,
        predict: Source | None = None,
        tokenizer: str = "bytes",
        chat_template: str | None = None,
        vocab_size: int | None = None,
        pad_vocab_to: int = 1,
        special_tokens: bool = False,
        block_size: int = 128,
        dataloader: Dataloader = Dataloader(),  # noqa: B008  (frozen)
        order: Order = "windows",
        shift: bool = False,
        respect_documents: bool = False,
        split: Split | None = None,
        cache_dir: str = ".cache/tokens",
        num_proc: int = 1,
        clean: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        given = {"train": train, "val": val, "test": test, "predict": predict}
        sources = {name: as_sources(value) for name, value in given.items() if value is not None}
        self.splits = Splits(sources, None if split is None else as_options(Split, split), clean=clean)
        self.dataloader = as_options(Dataloader, dataloader)
        self.tokenizer_name = tokenizer
        self._given_template = None if chat_template is None else ChatTemplate.read(chat_template)
        self._vocab_size = vocab_size
        self.pad_vocab_to = pad_vocab_to
        self.special_tokens = special_tokens
        self.block_size = block_size
        self.order = order
        self.shift = shift
        self.respect_documents = respect_documents
        self.cache_dir = cache_dir
        self.num_proc = num_proc
        self._seed = seed
        self._tokenizer: Tokenizer | None = None
        self._adopted = False
        self._tokens: dict[str, TokenArray] = {}
        self._datasets: dict[str, TokenDataset] = {}
        check_dataloader(self.dataloader)
        self._check()
        if self.streamed("train") and shift:
            raise InputError("data.shift is true, but a streamed text is never cut the same way twice; leave it out")
        if (saved := _SAVED.get()) is not None:
            self.adopt_tokenizer(saved)

    def _check(self) -> None:
        for name, value, least in [
            ("block_size", self.block_size, 2),
            ("pad_vocab_to", self.pad_vocab_to, 1),
            ("num_proc", self.num_proc, 1),
            ("seed", self._seed, 0),
        ]:
            check_least(name, value, least)
        if self.order not in get_args(Order):
            raise InputError(f"data.order is {self.order!r}; choose one of {', '.join(get_args(Order))}")
        if self.order == "streams" and self.splits.origin("train") and len(self.splits.parts("train")) > 1:
            raise InputError(
                "data.order is streams, where each window continues the one before, and data.train has several "
                "sources, whose windows are mixed; give one of them, or order: windows"
            )

    @property
    def seed(self) -> int:
        """The one given, else that of `seed_everything`, else 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed

    @property
    def vocab_size(self) -> int:
        """Number of ids that a model needs, padding included. Trains nothing.

        Raises:
            InputError: fewer are asked for than the tokenizer has; now, where it is a model's own.
        """
        size = self._vocab_size
        if size is None or is_hugging_face(self.tokenizer_name):
            size = self.tokenizer.vocab_size if size is None else max(size, self.tokenizer.vocab_size)
        return -(-size // self.pad_vocab_to) * self.pad_vocab_to

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded when first asked for; trained by `prepare_data` only.

        Raises:
            InputError: it cannot be loaded, for example because it was not trained yet.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return self._tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """What writes conversations."""
        return template_of(self.tokenizer, self._given_template)

    def _load_tokenizer(self, texts: Texts | None = None) -> Tokenizer:
        return load_tokenizer(
            self.tokenizer_name,
            vocab_size=self._vocab_size,
            training_texts=texts,
            special_text=self.special_tokens,
        )

    def adopt_tokenizer(self, state_dict: dict[str, Any]) -> None:
        """Take the tokenizer out of a checkpoint (its `state_dict()`) if it has our name: then none is trained anew."""
        saved = state_dict["tokenizer"]
        if saved["name"] == self.tokenizer_name and saved.get("special_text", False) == self.special_tokens:
            self._tokenizer, self._adopted = Tokenizer.from_state(state_dict["tokenizer"]), True

    def prepare_data(self) -> None:
        """Train the tokenizer if need be, and write the token caches that the Trainer's function needs, else all."""
        self.splits.forget()
        names = [name for name in self._used() if self.splits.origin(name)]
        training = "train" in names or not Path(self.tokenizer_name).exists()
        texts = self._training_texts if training and self.splits.origin("train") else None
        if not self._adopted:
            self._tokenizer = self._load_tokenizer(texts)
        self._tokens.clear()
        self._datasets.clear()
        for name in names:
            if self.streamed(name):
                next(Reader(self.splits.source(name), 0, 1))  # a mistake is named now, not by a worker
            else:
                for part in self.splits.parts(name):
                    self.tokens(part)
        self._say_unused_template(names)
        self._say_overlap(names)

    def _say_unused_template(self, names: Sequence[str]) -> None:
        parts = [part for name in names if not self.streamed(name) for part in self.splits.parts(name)]
        if self._given_template is not None and all(self.tokens(part).scored is None for part in parts):
            log.warning("data.chat_template is %s, and no source has conversations", self._given_template.name)

    def _say_overlap(self, names: Sequence[str]) -> None:
        """Whether evaluation reads what training does."""
        if "train" not in names or self.streamed("train"):
            return
        for name in [name for name in ("val", "test") if name in names]:
            both = [self.splits.documents(split, seed=self.seed) for split in (name, "train")]
            said = overlap(*both).sentence(name)
            if said is not None:
                log.warning(said)

    def streamed(self, name: str) -> bool:
        """Whether a split is read while it is trained on: then there is no `tokens`, `dataset` or `texts` of it."""
        return self.splits.streamed(name)

    def _used(self) -> tuple[str, ...]:
        function = self.trainer.state.fn if self.trainer is not None else None
        return SPLITS if function is None else USED[function.value]

    def setup(self, stage: str | None = None) -> None:
        """Map the tokens and make the datasets of a stage ("fit", "validate", "test", "predict"; None: all there are).

        Raises:
            InputError: the stage has no source, or its text is too short or damaged.
        """
        self._share_tokenizer()
        if stage is None:
            names = [name for name in SPLITS if self.splits.origin(name)]
        else:
            names = [name for name in USED[stage] if self.splits.origin(name) or not (stage == "fit" and name == "val")]
        for name in names:
            if self.streamed(name):
                self._check_length()
            else:
                self.dataset(name)

    def _share_tokenizer(self) -> None:
        """Every rank takes the first one's, which knows in which file it lies."""
        if self.trainer is not None and self.trainer.world_size > 1:
            state = self.tokenizer.state() if self.trainer.is_global_zero else None
            self._tokenizer = Tokenizer.from_state(self.trainer.strategy.broadcast(state))

    def _check_length(self) -> None:
        if self.trainer is not None and self.trainer.max_steps < 1:
            raise InputError(
                "data.train is streamed, so nobody knows how long an epoch is: set trainer.max_steps "
                f"(now {self.trainer.max_steps}) to the number of optimizer steps to train for"
            )
        schedule = None if self.trainer is None else accumulation_schedule(self.trainer)
        if schedule is not None and schedule.epochs != [0]:
            raise InputError(
                f"data.train is streamed, which is one epoch, but GradientAccumulationScheduler changes at epochs "
                f"{schedule.epochs[1:]}: give trainer.accumulate_grad_batches instead"
            )

    def dataset(self, name: str) -> TokenDataset:
        """The samples of "train", "val", "test" or "predict". Raises as `setup` does."""
        if name not in self._datasets:
            several = len(self.splits.parts(name)) > 1
            self._datasets[name] = self._mixture(name) if several else self._make_dataset(name)
        return self._datasets[name]

    def _mixture(self, name: str) -> Mixture:
        """The samples of several sources, mixed."""
        parts = self.splits.parts(name)
        weights = [weight for part in parts if (weight := self.splits.source(part).weight) is not None]
        shuffle = name == "train" and self.dataloader.shuffle and not self._overfits
        return Mixture([self._part(part) for part in parts], self.splits.labels(name), weights or None, shuffle=shuffle)

    def _part(self, name: str) -> TokenDataset:
        """The samples of one of several sources; an error names it."""
        try:
            return self.dataset(name)
        except InputError as error:
            raise InputError(f"data.{name} ({self.splits.source(name).path}): {error}") from error

    def _make_dataset(self, name: str) -> TokenDataset:
        source, tokens = self.splits.source(name), self.tokens(name)
        if tokens.prompt_lengths is not None:
            if source.stride or self.shift or self.respect_documents:
                log.warning("data.%s has pairs: its stride, shift and respect_documents have no effect", name)
            return PairSamples(tokens, self.block_size, source.max_samples)
        return TokenWindows(
            tokens,
            self.block_size,
            stride=source.stride,
            max_samples=source.max_samples,
            shift=self.shift and name.startswith("train") and not self._overfits,
            respect_documents=self.respect_documents,
        )

    def evaluated(self, stage: str) -> TokenArray | None:
        """What a stage of the Trainer ("fit", "validate", "test", "predict") measures on; None where there is none."""
        name = USED.get(stage, (stage,))[-1]
        return self.tokens(name) if self.splits.origin(name) and not self.streamed(name) else None

    def tokens(self, name: str) -> TokenArray:
        """The token array of a split that there is. Raises as `setup` does, and for a text that is streamed."""
        if self.streamed(name):
            raise InputError(f"data.{name} is streamed, so its tokens are never there as a whole; set streaming: false")
        if name not in self._tokens and len(parts := self.splits.parts(name)) > 1:
            self._tokens[name] = JoinedTokens([self.tokens(part) for part in parts])
        elif name not in self._tokens:
            documents = WrittenChats(self.splits.documents(name, seed=self.seed), lambda: self.chat_template)
            self._tokens[name] = prepare_tokens(documents, self.tokenizer, self.cache_dir, num_proc=self.num_proc)
        return self._tokens[name]

    def _training_texts(self) -> Iterator[str]:
        documents: Iterable[Document] = self.splits.documents("train", seed=self.seed)
        if self.streamed("train"):
            documents = self._first_streamed(STREAMED_FOR_TOKENIZER)
        for document in documents:
            yield from pieces(document.prompt or "")
            yield from pieces(document.text)

    def _first_streamed(self, n: int) -> Iterator[Document]:
        reader = Reader(self.splits.source("train"), 0, 1, clean=self.splits.clean, repeat=False)
        return (document for _, document in islice(reader, n))

    def train_dataloader(self) -> ResumableLoader | StreamLoader:
        return self._streaming_loader() if self.streamed("train") else self._loader("train")

    def val_dataloader(self) -> ResumableLoader:
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader("predict")

    def batches_per_epoch(self, name: str = "train") -> int:
        """Batches of a split on this rank; of a stream as many as the run takes. Leaves the Trainer's loaders alone."""
        return len(self._streaming_loader() if self.streamed(name) else self._loader(name))

    @property
    def _overfits(self) -> bool:
        """Whether each epoch is to see the same few batches: then nothing is shuffled or shifted."""
        return self.trainer is not None and self.trainer.overfit_batches > 0

    def _streaming_loader(self) -> StreamLoader:
        trainer, options = self.trainer, self.dataloader
        stream = TokenStream(
            self.splits.source("train"),
            self.tokenizer,
            self.block_size,
            options.batch_size,
            order=self.order,
            shuffle=options.shuffle and not self._overfits,
            seed=self.seed,
            respect_documents=self.respect_documents,
            clean=self.splits.clean,
        )
        return StreamLoader(
            stream,
            length=None if trainer is None else trainer.max_steps * accumulated(trainer, 0),
            num_workers=options.num_workers,
            prefetch_factor=options.prefetch_factor,
            pin_memory=options.pin_memory,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
        )

    def _loader(self, name: str) -> ResumableLoader:
        training, options = name == "train", self.dataloader
        in_order: LoaderOrder = "shuffled" if training and options.shuffle and not self._overfits else "sequential"
        return ResumableLoader(
            self.dataset(name),
            batch_size=options.batch_size,
            order="streams" if self.order == "streams" else in_order,
            seed=self.seed,
            num_workers=options.num_workers,
            prefetch_factor=options.prefetch_factor,
            drop_last=options.drop_last and training,
            pin_memory=options.pin_memory,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self.trainer.world_size if self.trainer is not None else 1,
            even=training or (self.trainer is not None and shards_parameters(self.trainer.strategy)),
        )

    def texts(self, name: str) -> Iterator[str]:
        """The documents of a split, as the model sees them (a pair's prompt and target joined)."""
        tokens = self.tokens(name)
        for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
            yield self.tokenizer.decode(tokens.ids[start : end - 1].tolist())  # a begin token has no text

    def counts(self, names: Sequence[str] = SPLITS) -> list[Counts]:
        """One row per split that there is and that is not streamed. Call `prepare_data` first if a tokenizer has to be
        trained."""
        return [self._count(name) for name in names if self.splits.origin(name) == name and not self.streamed(name)]

    def _count(self, name: str) -> Counts:
        tokens, dataset = self.tokens(name), self.dataset(name)
        return Counts(
            name,
            documents=tokens.n_documents,
            words=tokens.n_words,
            bytes=tokens.n_bytes,
            tokens=tokens.n_tokens,
            windows=len(dataset),
            truncated=dataset.truncated,
        )

    def summary(self) -> str:
        """`counts` as a table, headed by the tokenizer."""
        head = f"tokenizer {self.tokenizer_name}: {self.vocab_size:,} ids; block_size {self.block_size:,}"
        streamed = f"\ntrain is streamed from {self.splits.source('train').path}" if self.streamed("train") else ""
        parts = [
            self._count(part) for name in SPLITS if self.splits.origin(name) == name for part in self._several(name)
        ]
        return f"{head}{streamed}\n{table([*self.counts(), *parts])}"

    def _several(self, name: str) -> list[str]:
        """The parts of a split with several sources."""
        parts = self.splits.parts(name)
        return parts if len(parts) > 1 else []

    def state_dict(self) -> dict[str, Any]:
        """The tokenizer and a chat template beside it, so that a checkpoint is all that generating text needs."""
        state = self.tokenizer.saved()
        given = self._given_template
        return state if given is None else {**state, "chat_template": {"text": given.text, "name": given.name}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint's tokenizer is this one.

        Raises:
            InputError: it gives other ids.
        """
        try:
            own, size = self.tokenizer.fingerprint, str(self.tokenizer.vocab_size)
        except InputError:  # it would have to be trained first, and then be another one
            own, size = "", "not trained yet"
        if state_dict["fingerprint"] != own:
            saved = Tokenizer.from_state(state_dict["tokenizer"])
            raise InputError(
                f"the checkpoint was trained with tokenizer {saved.name!r} ({saved.vocab_size} ids), but "
                f"data.tokenizer is {self.tokenizer_name!r} ({size} ids), which gives other ids; "
                "use the same tokenizer, or start without the checkpoint"
            )
