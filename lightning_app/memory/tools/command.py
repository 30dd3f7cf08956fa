"""`python main.py memory {build,add,list,search,delete,check}`: make a kNN memory for a checkpoint, and edit memories.

Nothing is trained. An edit is written to the same file, or to --output, whole or not at all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from lightning_app.data.chat_encoding import WrittenChats, template_of
from lightning_app.data.corpus import Document
from lightning_app.errors import InputError
from lightning_app.memory.extension import name_of
from lightning_app.memory.options import IndexType, Storage
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
from lightning_app.memory.tools.checkpoint import FILLED, Opened, with_capacity, with_reader
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
from lightning_app.training.find_checkpoint import find_checkpoint

VECTORS_PER_CLUSTER = 39  # fewer and k-means of `ivf` has too little to learn from
MOST_CLUSTERS = 1024
CACHE = ".cache/tokens"
SHOWN = 30  # documents
NEIGHBOURS = {"KNNReader": 256, "PromptReader": 16}  # k where none is given
OF_PROMPTS = ("passages", "passage_length")
OF_WEIGHT = ("lam", "temperature", "tune")


def command(argv: Sequence[str]) -> None:
    """Parse the arguments and carry out one command."""
    args = _parser().parse_args(argv)
    COMMANDS[args.command](args)


# build, add


def build(args: argparse.Namespace) -> None:
    """Wrap the model in a VardaGPT with a KNNReader, fill it with the text, tune it, and write a new checkpoint."""
    _check_options_of_reader(args)
    started, plain = time.perf_counter(), _opened(args)
    output = Path(args.output or plain.path.with_name(f"{plain.path.stem}-memory.ckpt"))
    if output.resolve() == plain.path.resolve():
        raise InputError(f"--output {output} is the checkpoint itself: give another path, it is not overwritten")
    text = _text(plain, _documents(plain, args.text, split="train", option="--text"), args)
    numbers, skipped = wanted(text, ())
    n = count_entries(text, numbers)
    opened = with_reader(plain, _options(args, n), args.reader)
    _check_numbers(args)  # first: to fill a memory takes minutes
    filled = _fill(opened, text, numbers, skipped, args)
    tuned = _tune(opened, args)
    opened.write(output, with_config=True)
    rows = [*_filled_rows(filled), *_memory_rows(opened.knn), *([] if _of_prompts(args) else _tuned_rows(tuned))]
    rows += [("time", f"{time.perf_counter() - started:.0f} s"), ("its config", str(output.with_suffix(".yaml")))]
    print(format_table(rows, title=f"{output}: a memory for {plain.path}"))


def add(args: argparse.Namespace) -> None:
    """Store further documents; those that are there already are left as they are. The memory grows if it must."""
    opened = _opened(args)
    held = entries_by_document([opened.knn.bank.shared])
    text = _text(opened, documents_at(args.text, opened.config()), args)
    numbers, skipped = wanted(text, held)
    opened = with_capacity(opened, opened.knn.bank.size() + count_entries(text, numbers))
    filled = _fill(opened, text, numbers, skipped, args)
    _write(opened, args)
    print(format_table([*_filled_rows(filled), *_memory_rows(opened.knn)], title=str(args.output or opened.path)))


def _opened(args: argparse.Namespace) -> Opened:
    return Opened.read(find_checkpoint(args.ckpt_path, Path(args.runs_dir)))


def _documents(opened: Opened, path: str | None, *, split: str, option: str) -> Iterable[Document]:
    if path is not None:
        return documents_at(path, opened.config())
    documents = documents_of_run(opened.config(), split)
    if documents is None:
        raise InputError(f"no config of the run lies beside {opened.path}: say which text by {option} PATH")
    return documents


def _text(opened: Opened, documents: Iterable[Document], args: argparse.Namespace) -> Text:
    written = WrittenChats(documents, lambda: template_of(opened.tokenizer, opened.module.chat_template))
    return Text.of(written, opened.tokenizer, CACHE, block_size=opened.block_size(), stride=args.stride)


def _of_prompts(args: argparse.Namespace) -> bool:
    return str(args.reader) == "PromptReader"


def _check_options_of_reader(args: argparse.Namespace) -> None:
    """Refuse what the reader that is asked for does not have."""
    foreign = OF_WEIGHT if _of_prompts(args) else OF_PROMPTS
    if wrong := [name for name in foreign if getattr(args, name) is not None]:
        flags = " and ".join(f"--{name}" for name in wrong)
        lacks = "lam and no temperature to give or tune" if _of_prompts(args) else "passages: --reader PromptReader has"
        raise InputError(f"a {args.reader} has no {lacks}; leave out {flags}")


def _check_numbers(args: argparse.Namespace) -> None:
    given = [args.lam is not None, args.temperature is not None]
    if any(given) and (args.tune is not None or not all(given)):
        raise InputError(
            f"lam is {args.lam}, temperature {args.temperature} and tune {args.tune}: "
            "give both numbers without --tune, or neither"
        )


def _options(args: argparse.Namespace, n: int) -> dict[str, Any]:
    """The options of the KNNReader for `n` entries: what was given, and clusters that fit."""
    names = ("num_search_results", "index_type", "num_clusters", "nprobe", "dtype", "span_length", "lam", "temperature")
    own = OF_PROMPTS if _of_prompts(args) else ()
    given = {name: value for name in (*names, *own) if (value := getattr(args, name)) is not None}
    size = max(n, 1) if args.memory_size is None else args.memory_size
    if str(args.index_type).startswith("ivf"):
        clusters = given.setdefault("num_clusters", max(1, min(MOST_CLUSTERS, size // VECTORS_PER_CLUSTER)))
        given.setdefault("nprobe", min(clusters, max(8, clusters // 16)))
    k = given.get("num_search_results", NEIGHBOURS[args.reader])
    given["num_search_results"] = min(k, size)  # the default is for larger texts
    return {"memory_size": size, **given}


def _fill(opened: Opened, text: Text, numbers: Sequence[int], skipped: list[str], args: argparse.Namespace) -> Filled:
    try:
        opened.module.to(args.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {args.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return fill(opened.memory, opened.knn, text, numbers, skipped=skipped)


def _tune(opened: Opened, args: argparse.Namespace) -> Tuned | None:
    """On the text that was given, else on the run's validation text; None: both numbers were given, or no text is."""
    if args.lam is not None or _of_prompts(args):  # which has none
        return None
    config = opened.config()
    documents = documents_at(args.tune, config) if args.tune else documents_of_run(config, "val")
    return None if documents is None else tune(opened.memory, opened.knn, _text(opened, documents, args))


def _write(opened: Opened, args: argparse.Namespace) -> None:
    """To --output, else over the same file; the config goes with it where the input has one of its own."""
    own_config = opened.path.with_suffix(".yaml").is_file()
    opened.write(args.output or opened.path, with_config=own_config)


# list, search, delete, check


def list_documents(args: argparse.Namespace) -> None:
    """Print options, size and documents of every memory of a checkpoint."""
    opened = _opened(args)
    for reader in opened.readers:
        documents = entries_by_document(reader.bank.memories)
        rows = [
            (name_of(key, opened.memory.documents), f"{entries:,} entries")
            for key, entries in list(documents.items())[: args.documents]
        ]
        if len(documents) > len(rows):
            rows.append((f"... and {len(documents) - len(rows)} more", f"--documents {len(documents)} shows all"))
        title = f"{opened.path}: {type(reader).__name__}"
        counted = [("documents", f"{len(documents):,}")] if reader.bank.memories else []  # others know none
        print(format_table([*_memory_rows(reader), *counted, *rows], title=title))


def search_text(args: argparse.Namespace) -> None:
    """Print the stored neighbours of what comes behind a text."""
    opened = _opened(args)
    if args.k < 1:
        raise InputError(f"k is {args.k}: ask for at least 1 neighbour")
    if not any(memory.size() for memory in opened.memories):  # of several a cache is empty in every checkpoint
        raise InputError("the memory is empty: nothing can be found; `memory add` or `memory build` fills it")
    for reader in opened.searched:
        found = search(opened.memory, reader, opened.tokenizer, args.query, k=args.k, block=opened.block_size())
        print(f"{type(reader).__name__}: {len(found)} of {reader.bank.size():,} entries, nearest first")
        for neighbour in found:
            print(_line(neighbour))


def _line(neighbour: Neighbour) -> str:
    text = f"{one_line(neighbour.span)} [{one_line(neighbour.next)}]"
    return f"{neighbour.distance:10.4f}  {text}  ({neighbour.document}, token {neighbour.position})"


def delete(args: argparse.Namespace) -> None:
    """Remove all entries of source documents."""
    opened = _opened(args)
    held, names = entries_by_document(opened.memories), opened.memory.documents
    keys = {key for document in args.document for key in keys_of(document, held, names)}
    removed = remove_documents(opened.memories, keys)
    _write(opened, args)
    left = sum(memory.size() for memory in opened.memories)
    for key in sorted(keys, key=lambda key: name_of(key, names)):
        print(f"removed {held[key]:,} entries of {name_of(key, names)}")
    print(f"removed {removed:,} in all; {left:,} are left in {args.output or opened.path}")
    if any(isinstance(reader, NGramReader) and reader.bank.size() for reader in opened.readers):
        print("NGramReader still counts what it counted, with these documents where they were in its training text")


def check(args: argparse.Namespace) -> None:
    """Compare the index with brute force, and look for damage."""
    opened, wrong = _opened(args), []
    for reader in opened.searched:
        for memory in reader.bank.memories:
            vocab_size, distinct = opened.memory.lm.vocab_size, reader.writes == "never"
            of_this = problems(memory, vocab_size=vocab_size, distinct=distinct)
            wrong += of_this
            rows = _memory_rows(reader)
            if memory.size():
                found = recall(memory, k=args.k or memory.num_search_results)
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


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py memory", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    made = {
        name: commands.add_parser(name, help=function.__doc__, description=function.__doc__, allow_abbrev=False)
        for name, function in COMMANDS.items()
    }
    for one in made.values():
        one.add_argument("--ckpt_path", required=True, help="a checkpoint; best or last: the newest in RUNS_DIR")
        one.add_argument("--runs_dir", default="runs", help="where best and last are looked for")
    for name in ("build", "add"):
        made[name].add_argument("--stride", type=int, help="tokens between two windows; half of the block")
        made[name].add_argument("--device", default="cpu", help="cpu, cuda, mps")
    for name in ("build", "add", "delete"):
        made[name].add_argument("--output", help="where the result goes")
    _add_build_options(made["build"])
    made["add"].add_argument("--text", required=True, help="file, folder, pattern, JSONL file or hf:name")
    made["list"].add_argument("--documents", type=int, default=SHOWN, help="how many are shown")
    made["search"].add_argument("--query", required=True, help="the text whose continuation is looked for")
    made["search"].add_argument("-k", type=int, default=5, help="neighbours")
    made["delete"].add_argument(
        "--document", action="append", required=True, help="as `memory list` names it, or the end of its path"
    )
    made["check"].add_argument("-k", type=int, help="results compared; those of a search")
    return parser


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", help="file, folder, pattern, JSONL file or hf:name; the run's training text")
    parser.add_argument(
        "--reader", choices=FILLED, default=FILLED[0], help="PromptReader puts what it finds before a prompt, as text"
    )
    parser.add_argument("--tune", help="text that lam and temperature are tuned on; the run's validation text")
    parser.add_argument("--memory_size", type=int, help="most entries; as many as the text has")
    parser.add_argument(
        "--num_search_results", type=int, help="k of each token's search; 256, and 16 of a PromptReader"
    )
    parser.add_argument("--index_type", choices=get_args(IndexType), default="flat", help="flat is exact")
    parser.add_argument(
        "--num_clusters", type=int, help="of ivf and ivfpq; a cluster for every 39 vectors, 1024 at most"
    )
    parser.add_argument("--nprobe", type=int, help="clusters that a query looks into; a sixteenth, 8 at least")
    parser.add_argument("--dtype", choices=get_args(Storage), default="float32", help="of the stored vectors")
    parser.add_argument("--span_length", type=int, default=16, help="tokens of text kept with each entry")
    parser.add_argument("--passages", type=int, help="that a PromptReader puts before a prompt; 1")
    parser.add_argument("--passage_length", type=int, help="tokens of one; 256")
    parser.add_argument("--lam", type=float, help="weight of the memory, instead of tuning (with --temperature)")
    parser.add_argument("--temperature", type=float, help="of the distances, instead of tuning (with --lam)")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "build": build,
    "add": add,
    "list": list_documents,
    "search": search_text,
    "delete": delete,
    "check": check,
}
