"""`python main.py memory {build,add,list,search,delete,check}`: make a kNN memory for a checkpoint, and edit memories.

Nothing is trained. An edit is written to the same file, or to --output, whole or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_app.data.chat_encoding import WrittenChats, template_of
from lightning_app.data.corpus import Document
from lightning_app.errors import InputError
from lightning_app.memory.build_options import OF_PROMPTS, BuildOptions
from lightning_app.memory.extension import name_of
from lightning_app.memory.readers import KNNReader, NGramReader, PromptReader
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.tools.build import (
    Filled,
    Text,
    Tuned,
    count_entries,
    documents_at,
    documents_of_run,
    fill,
    tune,
    wanted,
)
from lightning_app.memory.tools.checkpoint import Opened, with_capacity, with_reader
from lightning_app.memory.tools.inspect import (
    NOISE,
    Neighbour,
    entries_by_document,
    keys_of,
    n_bytes,
    problems,
    recall,
    remove_documents,
    search,
)
from lightning_app.reports.tables import format_table, one_line
from lightning_app.training.command_options import CheckpointOptions, ModelOptions
from lightning_app.training.find_checkpoint import find_checkpoint
from lightning_app.training.loading import move

VECTORS_PER_CLUSTER = 39  # fewer and k-means of `ivf` has too little to learn from
MOST_CLUSTERS = 1024
CACHE = ".cache/tokens"
NEIGHBOURS = {"KNNReader": 256, "PromptReader": 16}  # k where none is given


# build, add


def build(model: ModelOptions, options: BuildOptions) -> None:
    """Wrap the model in a VardaGPT with a KNNReader, fill it with the text, tune it, and write a new checkpoint."""
    started, plain = time.perf_counter(), _opened(model)
    output = options.output or plain.path.with_name(f"{plain.path.stem}-memory.ckpt")
    if output.resolve() == plain.path.resolve():
        raise InputError(f"--output {output} is the checkpoint itself: give another path, it is not overwritten")
    documents = _documents(plain, options.text, split="train", option="--text")
    text = _text(plain, documents, stride=options.stride)
    numbers, skipped = wanted(text, ())
    opened = with_reader(plain, _options(options, count_entries(text, numbers)), options.reader)
    move(opened.module, model.device)
    filled = fill(opened.memory, opened.knn, text, numbers, skipped=skipped)
    tuned = _tune(opened, options)
    opened.write(output, with_config=True)
    rows = [*_filled_rows(filled), *_memory_rows(opened.knn), *([] if options.of_prompts else _tuned_rows(tuned))]
    rows += [("time", f"{time.perf_counter() - started:.0f} s"), ("its config", str(output.with_suffix(".yaml")))]
    print(format_table(rows, title=f"{output}: a memory for {plain.path}"))


def add(model: ModelOptions, text: str, *, output: Path | None, stride: int | None) -> None:
    """Store further documents; those that are there already are left as they are. The memory grows if it must."""
    opened = _opened(model)
    held = entries_by_document([opened.knn.bank.shared])
    further = _text(opened, documents_at(text, opened.config()), stride=stride)
    numbers, skipped = wanted(further, held)
    opened = with_capacity(opened, opened.knn.bank.size() + count_entries(further, numbers))
    move(opened.module, model.device)
    filled = fill(opened.memory, opened.knn, further, numbers, skipped=skipped)
    _write(opened, output)
    print(format_table([*_filled_rows(filled), *_memory_rows(opened.knn)], title=str(output or opened.path)))


def _opened(model: CheckpointOptions) -> Opened:
    return Opened.read(find_checkpoint(model.ckpt_path, model.runs_dir))


def _documents(opened: Opened, path: str | None, *, split: str, option: str) -> Iterable[Document]:
    if path is not None:
        return documents_at(path, opened.config())
    documents = documents_of_run(opened.config(), split)
    if documents is None:
        raise InputError(f"no config of the run lies beside {opened.path}: say which text by {option} PATH")
    return documents


def _text(opened: Opened, documents: Iterable[Document], *, stride: int | None) -> Text:
    written = WrittenChats(documents, lambda: template_of(opened.tokenizer, opened.module.chat_template))
    return Text.of(written, opened.tokenizer, CACHE, block_size=opened.block_size(), stride=stride)


def _options(options: BuildOptions, n: int) -> dict[str, Any]:
    """The options of the KNNReader for `n` entries: what was given, and clusters that fit."""
    names = ("num_search_results", "index_type", "num_clusters", "nprobe", "dtype", "span_length", "lam", "temperature")
    own = OF_PROMPTS if options.of_prompts else ()
    given = {name: value for name in (*names, *own) if (value := getattr(options, name)) is not None}
    size = max(n, 1) if options.memory_size is None else options.memory_size
    if options.index_type.startswith("ivf"):
        clusters = given.setdefault("num_clusters", max(1, min(MOST_CLUSTERS, size // VECTORS_PER_CLUSTER)))
        given.setdefault("nprobe", min(clusters, max(8, clusters // 16)))
    k = given.get("num_search_results", NEIGHBOURS[options.reader])
    given["num_search_results"] = min(k, size)  # the default is for larger texts
    return {"memory_size": size, **given}


def _tune(opened: Opened, options: BuildOptions) -> Tuned | None:
    """On the text that was given, else on the run's validation text; None: both numbers were given, or no text is."""
    if options.lam is not None or options.of_prompts:  # which has none
        return None
    config = opened.config()
    documents = documents_at(options.tune, config) if options.tune else documents_of_run(config, "val")
    return (
        None if documents is None else tune(opened.memory, opened.knn, _text(opened, documents, stride=options.stride))
    )


def _write(opened: Opened, output: Path | None) -> None:
    """To --output, else over the same file; the config goes with it where the input has one of its own."""
    own_config = opened.path.with_suffix(".yaml").is_file()
    opened.write(output or opened.path, with_config=own_config)


# list, search, delete, check


def list_documents(model: CheckpointOptions, *, documents: int) -> None:
    """Print options, size and documents of every memory of a checkpoint."""
    opened = _opened(model)
    for reader in opened.readers:
        held = entries_by_document(reader.bank.memories)
        rows = [
            (name_of(key, opened.memory.documents), f"{entries:,} entries")
            for key, entries in list(held.items())[:documents]
        ]
        if len(held) > len(rows):
            rows.append((f"... and {len(held) - len(rows)} more", f"--documents {len(held)} shows all"))
        title = f"{opened.path}: {type(reader).__name__}"
        counted = [("documents", f"{len(held):,}")] if reader.bank.memories else []  # others know none
        print(format_table([*_memory_rows(reader), *counted, *rows], title=title))


def search_text(model: CheckpointOptions, query: str, *, k: int) -> None:
    """Print the stored neighbours of what comes behind a text."""
    opened = _opened(model)
    if not any(memory.size() for memory in opened.memories):  # of several a cache is empty in every checkpoint
        raise InputError("the memory is empty: nothing can be found; `memory add` or `memory build` fills it")
    for reader in opened.searched:
        found = search(opened.memory, reader, opened.tokenizer, query, k=k, block=opened.block_size())
        print(f"{type(reader).__name__}: {len(found)} of {reader.bank.size():,} entries, nearest first")
        for neighbour in found:
            print(_line(neighbour))


def _line(neighbour: Neighbour) -> str:
    text = f"{one_line(neighbour.span)} [{one_line(neighbour.next)}]"
    return f"{neighbour.distance:10.4f}  {text}  ({neighbour.document}, token {neighbour.position})"


def delete(model: CheckpointOptions, document: Sequence[str], *, output: Path | None) -> None:
    """Remove all entries of source documents."""
    opened = _opened(model)
    held, names = entries_by_document(opened.memories), opened.memory.documents
    keys = {key for one in document for key in keys_of(one, held, names)}
    removed = remove_documents(opened.memories, keys)
    _write(opened, output)
    left = sum(memory.size() for memory in opened.memories)
    for key in sorted(keys, key=lambda key: name_of(key, names)):
        print(f"removed {held[key]:,} entries of {name_of(key, names)}")
    print(f"removed {removed:,} in all; {left:,} are left in {output or opened.path}")
    if any(isinstance(reader, NGramReader) and reader.bank.size() for reader in opened.readers):
        print("NGramReader still counts what it counted, with these documents where they were in its training text")


def check(model: CheckpointOptions, *, k: int | None) -> None:
    """Compare the index with brute force, and look for damage."""
    opened, wrong = _opened(model), []
    for reader in opened.searched:
        for memory in reader.bank.memories:
            vocab_size, distinct = opened.memory.lm.vocab_size, reader.writes == "never"
            of_this = problems(memory, vocab_size=vocab_size, distinct=distinct)
            wrong += of_this
            rows = _memory_rows(reader)
            if memory.size():
                found = recall(memory, k=k or memory.num_search_results)
                of = f"at {found.k}, {found.queries} queries"
                rows += [
                    (f"recall of stored vectors, {of}", f"{found.stored:.4f}"),
                    (f"recall with noise of {NOISE}, {of}", f"{found.noisy:.4f}"),
                ]
            rows.append(("consistent", "no" if of_this else "yes"))
            print(format_table(rows, title=f"{opened.path}: {type(reader).__name__}"))
    if wrong:
        raise InputError(f"the memory of {opened.path} is damaged: {'; '.join(wrong)}; build it anew")


# What is printed


def _filled_rows(filled: Filled) -> list[tuple[str, str]]:
    rows = [("documents stored", f"{filled.documents:,}"), ("entries stored", f"{filled.entries:,}")]
    if filled.skipped:
        rows.append(("there already, skipped", ", ".join(filled.skipped[:5]) + ("..." if filled.skipped[5:] else "")))
    return rows


def _memory_rows(reader: Reader) -> list[tuple[str, str]]:
    if isinstance(reader, NGramReader):
        counted = ("tokens counted", f"{reader.bank.size():,} of at most {reader.memory_size:,}")
        return [counted, ("n-grams", f"up to {reader.order} tokens"), ("lam", f"{float(reader.lam):.3f}")]
    if not reader.bank.memories:
        return [("entries", "none: it mixes what the others say")]
    memory, n = reader.bank.shared, reader.bank.size()
    several = f" in {len(reader.bank.memories)} memories" if len(reader.bank.memories) > 1 else ""
    options = memory.config()
    rows = [
        ("entries", f"{n:,} of at most {memory.memory_size * len(reader.bank.memories):,}{several}"),
        ("bytes", f"{sum(n_bytes(memory) for memory in reader.bank.memories):,}"),
        ("vectors", f"{memory.memory_dim} x {options['dtype']}, metric {memory.metric}"),
        ("index", _index(options)),
        ("num_search_results", str(memory.num_search_results)),
    ]
    if isinstance(reader, PromptReader):
        rows += [("passages", f"{reader.passages} of {reader.passage_length} tokens")]
    elif isinstance(reader, KNNReader):
        rows += [("lam", f"{float(reader.lam):.4g}"), ("temperature", f"{float(reader.temperature):.4g}")]
    return rows


def _index(options: dict[str, Any]) -> str:
    names = {"ivf": ("num_clusters", "nprobe"), "ivfpq": ("num_clusters", "nprobe", "pq_m", "pq_bits")}
    names["hnsw"] = ("m", "ef_construction", "ef_search")
    shown = ", ".join(f"{name} {options[name]}" for name in names.get(options["index_type"], ()))
    return f"{options['index_type']} ({shown})" if shown else f"{options['index_type']} (exact)"


def _tuned_rows(tuned: Tuned | None) -> list[tuple[str, str]]:
    if tuned is None:
        return [("tuned", "no: give --tune PATH, a text that is in neither training nor test")]
    gain = f"{tuned.nats_without:.4f} without memory, {tuned.chosen.nats:.4f} with it"
    return [(f"nats per token, {tuned.tokens:,} tokens tuned on", gain)]
