"""`python main.py memory ...` end to end, on a model of a few hundred tokens."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app import closing
from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.cli import main as command
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, KNNReader, NGramReader, PromptReader, Reader
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory
from lightning_app.memory.tools.build import Text, fill, tune
from lightning_app.memory.tools.checkpoint import Opened, fitting, with_capacity, with_reader
from lightning_app.memory.tools.command import _line
from lightning_app.memory.tools.inspect import Neighbour, problems, recall
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.model_copy import ModelCopy
from lightning_app.plasticity.kinds import units_in
from lightning_app.serving.generate import continue_text
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from lightning_app.training.side_files import named_by
from tests.made_models import decoder, learned_mixture, learned_pointer, ready

TEXTS = {
    "fox": "The quick brown fox jumps over the lazy dog while 13 wizards vex bad nymphs.",
    "sea": "Waves come in from the sea and go out again, and the sand keeps no mark of them.",
    "tax": "A tax on windows made people brick them up; light was the price of saving.",
}
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed_everything": 3,
    "data": {
        "train": {"path": "texts"},
        "val": {"path": "val.txt"},
        "test": {"path": "val.txt"},
        "tokenizer": "bytes",
        "block_size": 16,
        "dataloader": {"batch_size": 4},
    },
    "model": {
        "class_path": "ArticleGPT",
        "init_args": {"backbone": {"embedding_dim": 16, "layers": 1, "heads": 2}, "scheduler": None},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 1,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    },
}
LEARNED = {
    "class_path": "VardaGPT",
    "init_args": {
        "backbone": {
            "class_path": "Decoder",
            "init_args": {"embedding_dim": 16, "layers": 1, "heads": 2},
        },
        "segment_length": 8,
        "readers": [
            {
                "class_path": "AttentionReader",
                "init_args": {"memory_size": 200, "num_search_results": 3, "span_length": 4},
            }
        ],
        "scheduler": None,
    },
}
CKPT = "runs/{}/version_0/checkpoints/last.ckpt"
PLAIN, MEMORY, LEARNED_CKPT = CKPT.format("tiny"), "memory.ckpt", CKPT.format("learned")
ENTRIES = sum(len(text) for text in TEXTS.values())  # bytes, of which each predicts the next; the last the end of text


def run(*words: object) -> str:
    """What a command printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        command([str(word) for word in words])
    return printed.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, two short trainings, and a memory for the first."""
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        patch.setattr(closing, "SAMPLED_TOKENS", 20)
        patch.setattr(closing, "CONTINUED_TOKENS", 5)
        Path("texts").mkdir()
        for name, text in TEXTS.items():
            Path(f"texts/{name}.txt").write_text(text)
        Path("val.txt").write_text("The quick red fox sleeps by the sea, and people go out again from the light.")
        Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        Path("learned.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "learned", "model": LEARNED}))
        for config in ("tiny.yaml", "learned.yaml"):
            run("fit", "--config", config)
        Path("built.txt").write_text(
            run(
                "memory",
                "build",
                "--ckpt_path",
                PLAIN,
                "--output",
                MEMORY,
                "--tune",
                "val.txt",
                "--num_search_results",
                8,
            )
        )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return tmp_path


def opened(path: str = MEMORY) -> VardaGPT:
    module, _ = load_module(path)
    assert isinstance(module, VardaGPT)
    return module


def memory_of(path: str = MEMORY) -> AssociativeMemory:
    return opened(path).backbone.readers[0].bank.shared


def names_and_counts(listed: str) -> dict[str, int]:
    return {name: int(n) for name, n in re.findall(r"^(texts/\S+|\S+\.txt) +(\d+) entries$", listed, re.MULTILINE)}


# build


def test_every_token_is_stored_once_with_what_is_known_of_it(folder: Path):
    module = opened()
    memory = module.backbone.readers[0].bank.shared
    known = memory.payload(memory.ids())
    assert memory.size() == memory.memory_size == ENTRIES
    assert {module.memory.documents[key] for key in known.documents.tolist()} == {f"texts/{name}.txt" for name in TEXTS}
    key = next(key for key, name in module.memory.documents.items() if name == "texts/fox.txt")
    text = [*TEXTS["fox"].encode(), 256]
    mine = known.documents == key
    assert known.positions[mine].tolist() == list(range(len(text) - 1))
    assert known.tokens[mine].tolist() == text[1:]
    assert known.spans[mine][30].tolist() == text[15:31]
    assert known.spans[mine][3].tolist() == [-1] * 12 + text[:4]


def test_what_is_stored_are_the_states_of_the_trained_model(folder: Path):
    plain, _ = load_module(PLAIN)
    module = opened()
    memory = module.backbone.readers[0].bank.shared
    key = next(key for key, name in module.memory.documents.items() if name == "texts/sea.txt")
    mine = memory.ids()[memory.payload(memory.ids()).documents == key]
    ids = torch.tensor([[*TEXTS["sea"].encode()]])
    with torch.no_grad():
        states = [plain.backbone.hidden(plain.backbone.embed(ids[:, i : i + 16])).last[0] for i in (0, 8)]
    assert torch.allclose(memory[mine[:16]], states[0], atol=1e-5)
    assert torch.allclose(memory[mine[16:24]], states[1][8:], atol=1e-5)  # with half a block of context at least


def test_weight_and_temperature_are_tuned_and_stored(folder: Path):
    reader = opened().backbone.readers[0]
    printed = Path("built.txt").read_text()
    without, with_it = map(float, re.findall(r"([\d.]+) without memory, ([\d.]+) with it", printed)[0])
    assert with_it < without
    assert 0 < float(reader.lam) < 1
    assert f"lam {float(reader.lam):.4g}" in re.sub(" +", " ", printed)
    options = yaml.safe_load(Path("memory.yaml").read_text())["model"]["init_args"]["readers"][0]["init_args"]
    assert options["lam"] == pytest.approx(float(reader.lam))
    assert options["temperature"] == pytest.approx(float(reader.temperature))


@pytest.mark.parametrize("stage", ["validate", pytest.param("test", marks=pytest.mark.slow)])
def test_the_config_beside_it_evaluates_it(folder: Path, stage: str):
    words = (stage, "--config", "memory.yaml", "--ckpt_path", MEMORY, "--trainer.limit_val_batches", 4)
    printed = run(*words)
    name = {"validate": "val", "test": "test"}[stage]
    measured = {key: float(x) for key, x in re.findall(rf"{name}/(\w+) +│ +([\d.]+)", printed)}
    assert measured["memory_found"] == 1
    assert measured["ce"] < measured["ce_without_memory"]


@pytest.mark.slow
def test_it_goes_into_another_fit(folder: Path):
    run("fit", "--config", "memory.yaml", "--name", "next", "--init_from", MEMORY, "--trainer.max_steps", 1)
    after = opened(CKPT.format("next"))
    assert after.memory.documents == opened().memory.documents
    assert torch.equal(after.backbone.readers[0].bank.shared.vectors, memory_of().vectors)


def test_generate_uses_the_memory(folder: Path):
    run("memory", "build", "--ckpt_path", PLAIN, "--output", "strong.ckpt", "--lam", 0.99, "--temperature", 0.01)
    words = ("--prompt", TEXTS["fox"][:6], "--temperature", 0, "--max_new_tokens", 12)
    printed = run("generate", "--ckpt_path", "strong.ckpt", *words)
    assert TEXTS["fox"][:16] in printed
    module, tokenizer = load_module(PLAIN)
    greedy = GenerationOptions(max_new_tokens=10, temperature=0)
    assert "".join(continue_text(TEXTS["fox"][:6], module, tokenizer, greedy)) != TEXTS["fox"][6:16]


def test_options_of_a_build(folder: Path):
    options = ("--index_type", "ivf", "--dtype", "float16", "--memory_size", 100, "--span_length", 3, "--stride", 4)
    printed = run("memory", "build", "--ckpt_path", PLAIN, "--text", "texts", "--output", "o.ckpt", *options)
    memory = memory_of("o.ckpt")
    assert memory.vectors.dtype == torch.float16
    assert memory.size() == 100  # the newest
    assert memory.spans.shape == (100, 3)
    assert memory.config()["num_clusters"] == 2
    assert "100 of at most 100" in printed


def test_a_memory_beside_one_that_is_learned(folder: Path):
    words = ("--ckpt_path", LEARNED_CKPT, "--output", "both.ckpt", "--lam", 0.5, "--temperature", 1)
    run("memory", "build", *words)
    first, second = (reader.bank.shared for reader in opened("both.ckpt").backbone.readers)
    assert torch.equal(first.vectors, memory_of(LEARNED_CKPT).vectors)
    assert second.size() == ENTRIES
    run("memory", "build", "--ckpt_path", "both.ckpt", "--text", "texts/fox.txt", "--output", "again.ckpt")
    assert [reader.bank.size() for reader in opened("again.ckpt").backbone.readers] == [
        first.size(),
        len(TEXTS["fox"]),
    ]


@pytest.mark.parametrize("module", [ArticleGPT, ARTGPT2])
def test_a_model_whose_art_keeps_an_average_gets_a_memory(module: type[LanguageModule]):
    art = ARTRegularizer(vigilance=0.5, novelty="drift")
    kept = {"extensions": [art]} if module is ArticleGPT else {"art": art}
    plain = Opened(Path("x.ckpt"), {}, *ready(module(decoder(), **kept)))
    found = with_reader(plain, {"memory_size": 8}).module
    assert isinstance(found, VardaGPT if module is ArticleGPT else ARTGPT2)
    averages = (next(part for part in one.modules() if isinstance(part, ModelCopy)) for one in (plain.module, found))
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in averages), strict=True))
    config = fitting({}, found)["model"]["init_args"]
    assert ("readers" in config) is (module is ArticleGPT)


def mixing(*readers: Reader) -> Opened:
    """A model whose mixture has learned."""
    return Opened(Path("x.ckpt"), {}, *ready(VardaGPT(decoder(), [*readers, learned_mixture()])))


def test_texts_before_prompts_join_a_mixture_and_change_nothing():
    given = mixing(CacheReader(streams=1), learned_pointer(streams=1))
    found = with_reader(given, {"memory_size": 8, "num_search_results": 4}, "PromptReader").module
    assert isinstance(found, VardaGPT)
    kinds = [type(reader).__name__ for reader in found.memory.readers]
    assert kinds == ["CacheReader", "PointerReader", "PromptReader", "GatedMixture"]
    batch = Batch.of(torch.arange(17)[None])
    with torch.no_grad():
        one, two = (module.eval().outputs(batch).logits for module in (given.module, found))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("before", "part"), [(CacheReader, "KNNReader"), (KNNReader, "PromptReader")], ids=["one more", "one less"]
)
def test_a_mixture_keeps_the_readers_that_it_has_learned_of(before: type[Reader], part: str):
    given = mixing(before(memory_size=8, num_search_results=4))  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"GatedMixture, which has learned .* no KNNReader can join them or go now"):
        with_reader(given, {"memory_size": 8}, part)


def test_a_mixture_has_its_own_kind_of_reader_filled():
    given = mixing(KNNReader(memory_size=8, num_search_results=4))
    found = with_reader(given, {"memory_size": 20}, "KNNReader").module
    assert isinstance(found, VardaGPT)
    assert [reader.bank.size() for reader in found.memory.readers] == [0, 0]
    assert found.memory.readers[0].bank.shared.memory_size == 20
    gates = [module.state_dict() for module in (given.module, found)]
    assert all(torch.equal(gates[0][name], gates[1][name]) for name in gates[0] if ".gate." in name)


def test_a_memory_grows_beside_counts_which_stay():
    counts = NGramReader(order=3)
    module = VardaGPT(decoder(), [KNNReader(memory_size=8, num_search_results=4), counts])
    given = Opened(Path("x.ckpt"), {}, *ready(module))
    counts.bank.hold(torch.arange(20) % 7)
    found = with_capacity(given, 30).module
    assert isinstance(found, VardaGPT)
    assert found.memory.readers[0].bank.shared.memory_size == 30
    assert torch.equal(found.memory.readers[1].bank.text, counts.bank.text)
    assert len(counts.bank.text) == 20


def test_texts_are_stored_few_at_a_time_where_few_rows_have_a_memory(tmp_path: Path):
    """As behind a fit of 2 rows with a cache each."""
    knn = KNNReader(memory_size=300, num_search_results=3)
    cache = CacheReader(streams=2)
    module, tokenizer = ready(VardaGPT(decoder(), [cache, knn]))
    cache.bank.of(0).add(torch.ones(1, 16))
    documents = [Document(text, name=name) for name, text in TEXTS.items()]
    text = Text.of(documents, tokenizer, str(tmp_path), block_size=16, stride=None)
    fill(module.memory, knn, text, range(len(documents)), skipped=[])
    assert knn.bank.size() == ENTRIES
    assert tune(module.memory, knn, text).tokens > 0


def test_a_config_with_an_option_that_is_gone_was_in_force(tmp_path: Path):
    options = {"trainer": {"callbacks": [{"class_path": "Samples", "init_args": {"seed": 3}}]}}
    path = tmp_path / "best-memory.yaml"
    path.write_text(yaml.safe_dump(options))
    assert Opened(path.with_suffix(".ckpt"), {}, *ready(ArticleGPT(decoder()))).config() == options


def test_a_pruned_model_gets_a_memory_that_grows(folder: Path):
    pruned, _ = load_module(PLAIN)
    units_in(pruned, "heads")[0].remove(torch.tensor([[False, True]]))
    checkpoint = {**read_checkpoint(PLAIN), "state_dict": pruned.state_dict()}
    pruned.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, "pruned.ckpt")
    run("memory", "build", "--ckpt_path", "pruned.ckpt", "--text", "texts/fox.txt", "--output", "small.ckpt")
    run("memory", "add", "--ckpt_path", "small.ckpt", "--text", "texts/sea.txt", "--output", "large.ckpt")
    module = opened("large.ckpt")
    assert module.backbone.readers[0].bank.shared.size() == len(TEXTS["fox"]) + len(TEXTS["sea"])
    ids = torch.tensor([[*TEXTS["tax"].encode()[:16]]])
    with torch.no_grad():
        states = [model.hidden(model.embed(ids)).last for model in (pruned.backbone, module.backbone.backbone)]
    assert torch.equal(*states)


# add, list, delete


def test_add(folder: Path):
    before = memory_of()
    Path("new.txt").write_text("Short.")
    Path("copy.txt").write_text(TEXTS["fox"])
    printed = run("memory", "add", "--ckpt_path", MEMORY, "--text", "[cn]*[wy].txt", "--output", "more.ckpt")
    assert re.search(r"documents stored +1\n", printed)
    assert re.search(r"skipped +copy.txt", printed)
    after = memory_of("more.ckpt")
    assert after.size() == after.memory_size == ENTRIES + len("Short.")
    assert torch.equal(after[before.ids()], before.get_all_embeddings())
    assert names_and_counts(run("memory", "list", "--ckpt_path", "more.ckpt"))["new.txt"] == len("Short.")
    run("validate", "--config", "more.yaml", "--ckpt_path", "more.ckpt", "--trainer.limit_val_batches", 1)
    assert memory_of().size() == ENTRIES  # the input is as it was


def test_list(folder: Path):
    printed = run("memory", "list", "--ckpt_path", MEMORY)
    assert names_and_counts(printed) == {f"texts/{name}.txt": len(text) for name, text in TEXTS.items()}
    rows = dict(re.findall(r"^(\w+) +(\S.*)$", printed, re.MULTILINE))
    assert rows["entries"] == f"{ENTRIES} of at most {ENTRIES}"
    assert int(rows["bytes"].replace(",", "")) > ENTRIES * 16 * 4
    assert float(rows["lam"]) > 0
    assert "... and 2 more" in run("memory", "list", "--ckpt_path", MEMORY, "--documents", 1)


def test_delete_takes_all_of_a_document_and_nothing_else(folder: Path):
    before = memory_of()
    key = next(key for key, name in opened().memory.documents.items() if name == "texts/fox.txt")
    kept = before.ids()[before.payload(before.ids()).documents != key]
    printed = run("memory", "delete", "--ckpt_path", MEMORY, "--document", "fox.txt")  # the end of its path is enough
    assert f"removed {len(TEXTS['fox'])} entries of texts/fox.txt" in printed
    module = opened()
    after = module.backbone.readers[0].bank.shared
    assert torch.equal(after.ids(), kept)
    assert torch.equal(after[kept], before[kept])
    assert key not in module.memory.documents
    assert set(names_and_counts(run("memory", "list", "--ckpt_path", MEMORY))) == {"texts/sea.txt", "texts/tax.txt"}
    assert "yes" in run("memory", "check", "--ckpt_path", MEMORY)
    with torch.no_grad():  # not a trace of it is left in the file
        gone = before[before.ids()[before.payload(before.ids()).documents == key]]
        assert torch.cdist(gone, after.vectors).min() > 0


def test_what_is_deleted_stays_in_counts_and_that_is_said(folder: Path):
    given, checkpoint = opened(), read_checkpoint(MEMORY)
    counts = NGramReader(order=3)
    module = VardaGPT(given.backbone.backbone, [KNNReader(memory_size=8, num_search_results=2), counts])
    counts.bank.hold(torch.tensor([*TEXTS["fox"].encode()]))
    fox = torch.tensor([key for key, name in given.memory.documents.items() if name.endswith("fox.txt")])
    module.memory.documents |= given.memory.documents
    module.memory.readers[0].bank.shared.add(torch.ones(1, 16), Entries(documents=fox, positions=torch.zeros_like(fox)))
    checkpoint["state_dict"] = module.state_dict()
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, "counts.ckpt")
    printed = run("memory", "delete", "--ckpt_path", "counts.ckpt", "--document", "fox.txt")
    assert "removed 1 in all; 0 are left" in printed
    assert "NGramReader still counts" in printed
    assert "still counts" not in run("memory", "delete", "--ckpt_path", MEMORY, "--document", "fox.txt")


def test_delete_several_and_keep_the_input(folder: Path):
    words = ("--document", "texts/fox.txt", "--document", "texts/sea.txt", "--output", "less.ckpt")
    run("memory", "delete", "--ckpt_path", MEMORY, *words)
    assert memory_of("less.ckpt").size() == len(TEXTS["tax"])
    assert memory_of().size() == ENTRIES
    assert Path("less.yaml").is_file()


def test_an_edit_leaves_nothing_but_the_file_and_its_config(folder: Path):
    before = {path.name for path in folder.iterdir()}
    run("memory", "delete", "--ckpt_path", MEMORY, "--document", "fox.txt")
    assert {path.name for path in folder.iterdir()} == before


# search, check


def test_search_finds_a_stored_text_at_distance_0(folder: Path):
    printed = run("memory", "search", "--ckpt_path", MEMORY, "--query", TEXTS["tax"][:13], "-k", 3)
    first, *others = printed.splitlines()[1:]
    assert re.match(r" +0\.0000  A tax on wind \[o\]  \(texts/tax.txt, token 12\)", first)
    assert len(others) == 2
    assert [float(line.split()[0]) for line in others] == sorted(float(line.split()[0]) for line in others)


def test_a_text_that_was_found_is_one_line_that_no_terminal_obeys():
    found = Neighbour(id=1, distance=0.5, span="a\tb\x1b[31m", next="\n", document="d", position=3)
    assert _line(found) == "    0.5000  a\\tb\\x1b[31m [\\n]  (d, token 3)"


def test_a_learned_memory_is_listed_searched_checked_and_deleted_from(folder: Path):
    held = memory_of(LEARNED_CKPT).size()
    listed = names_and_counts(run("memory", "list", "--ckpt_path", LEARNED_CKPT))
    assert sum(listed.values()) == held > 0
    assert set(listed) <= {f"texts/{name}.txt" for name in TEXTS}
    assert len(run("memory", "search", "--ckpt_path", LEARNED_CKPT, "--query", "The").splitlines()) == 6
    assert "yes" in run("memory", "check", "--ckpt_path", LEARNED_CKPT)
    name = next(iter(listed))
    run("memory", "delete", "--ckpt_path", LEARNED_CKPT, "--document", name)
    assert memory_of(LEARNED_CKPT).size() == held - listed[name]
    assert "optimizer_states" in read_checkpoint(LEARNED_CKPT)  # a training can go on from it


def test_check_measures_recall(folder: Path):
    printed = run("memory", "check", "--ckpt_path", MEMORY, "-k", 4)
    assert re.search(r"stored vectors, at 4, \d+ queries +1\.0000", printed)
    assert re.search(r"noise of 0.1, at 4, \d+ queries +1\.0000", printed)


def test_recall_of_an_index_that_looks_at_too_little():
    options: dict[str, Any] = {"index_type": "ivf", "num_clusters": 20, "nprobe": 1}
    memory = AssociativeMemory(memory_size=2000, memory_dim=8, **options)
    memory.add(torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)))
    found = recall(memory, k=20)
    assert 0.2 < found.noisy < 0.9
    assert found.k == 20


def test_recall_of_few_entries():
    memory = AssociativeMemory(memory_size=10, memory_dim=4)
    memory.add(torch.eye(4)[:3])
    assert recall(memory, k=8).k == 3
    assert recall(memory, k=8).noisy == 1


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("tokens", 99, "1 next tokens lie outside of the 50"),
        ("vectors", torch.nan, "1 vectors are not finite"),
        ("positions", -1, "1 documents are known without the position"),
        ("positions", 1, "1 entries stand at a place that another one has"),
        ("slot_ids", 7, "1 ids are not below the next one"),
        ("spans", 50, "1 spans hold ids outside"),
    ],
)
def test_problems(column: str, value: float, words: str):
    memory = AssociativeMemory(memory_size=8, memory_dim=2, span_length=1)
    each = torch.arange(3)
    memory.add(torch.ones(3, 2), Entries(each, torch.full((3,), 5), each, each[:, None]))
    assert problems(memory, vocab_size=50, distinct=True) == []
    getattr(memory, column)[2] = value
    memory.forget_caches()
    assert [problem for problem in problems(memory, vocab_size=50, distinct=True) if words in problem]


def test_a_damaged_memory_is_found(folder: Path, fails: Callable[..., str]):
    checkpoint = read_checkpoint(MEMORY)
    checkpoint["state_dict"]["backbone.readers.0.bank.memories.0.tokens"][0] = 10_000
    AtomicCheckpointIO().save_checkpoint(checkpoint, MEMORY)
    assert "1 next tokens lie outside of the 257 ids" in fails("memory", "check", "--ckpt_path", MEMORY)


# Large memories


def named_by_checkpoints(folder: Path) -> set[str]:
    """The side files of best, last, and the generation before each."""
    found = [named_by(torch.load(path, weights_only=True)) for path in folder.glob("*.ckpt")]
    assert len(found) > 1
    return set().union(*found)


@pytest.mark.slow
def test_vectors_beside_the_checkpoint_go_everywhere_with_it(folder: Path, fails: Callable[..., str]):
    plugin = {
        "class_path": "AtomicCheckpointIO",
        "init_args": {"side_file_bytes": 1000},
    }
    Path("large.yaml").write_text(yaml.safe_dump({"name": "large", "trainer": {"plugins": [plugin]}}))
    run("fit", "--config", "learned.yaml", "--config", "large.yaml")
    path, before = CKPT.format("large"), memory_of(CKPT.format("learned"))
    sides = Path(path).parent / "memory"
    assert {file.name for file in sides.iterdir()} == named_by_checkpoints(sides.parent)
    assert torch.equal(memory_of(path).vectors, before.vectors)
    run("memory", "check", "--ckpt_path", path)
    words = ("--config", "learned.yaml", "--config", "large.yaml", "--ckpt_path", path)
    run("validate", *words)
    run("fit", *words, "--trainer.max_steps", 3)
    assert memory_of(path).size() > before.size()
    assert {file.name for file in sides.iterdir()} == named_by_checkpoints(sides.parent)
    for file in sides.iterdir():
        file.unlink()
    assert re.search(r"memory/[0-9a-f]{64}\.npy, which is missing", fails("generate", "--ckpt_path", path))


# Bad input


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("list", "--ckpt_path", PLAIN), r"holds a ArticleGPT without a memory: make one by .* memory build"),
        (("add", "--ckpt_path", LEARNED_CKPT, "--text", "val.txt"), r"has no KNNReader .* but AttentionReader"),
        (("delete", "--ckpt_path", MEMORY, "--document", "cat"), r"no document 'cat'; there are: texts/fox.txt, .*tax"),
        (("delete", "--ckpt_path", MEMORY, "--document", ""), r"no document ''"),
        (("search", "--ckpt_path", MEMORY, "--query", ""), "the query is empty"),
        (("search", "--ckpt_path", MEMORY, "--query", "a", "-k", "0"), "k is 0"),
        (("build", "--ckpt_path", PLAIN, "--output", PLAIN), "is the checkpoint itself"),
        (("build", "--ckpt_path", PLAIN, "--stride", "0"), "stride is 0; it must lie between 1 and the block of 16"),
        (("build", "--ckpt_path", PLAIN, "--text", "nowhere.txt"), "no such file: nowhere.txt"),
        (("build", "--ckpt_path", PLAIN, "--memory_size", "0"), "memory_size is 0: give at least 1"),
        (
            ("build", "--ckpt_path", PLAIN, "--lam", "2", "--temperature", "1"),
            "lam is 2.0; it must lie between 0 and 1",
        ),
        (("build", "--ckpt_path", PLAIN, "--reader", "PromptReader", "--tune", "val.txt"), "PromptReader has no lam"),
        (
            ("build", "--ckpt_path", PLAIN, "--reader", "PromptReader", "--lam", "0.5", "--temperature", "1"),
            "PromptReader has no lam .* leave out --lam and --temperature",
        ),
        (("build", "--ckpt_path", PLAIN, "--passages", "2"), "a KNNReader has no passages: .* leave out --passages"),
        (("build", "--ckpt_path", PLAIN, "--device", "abacus"), "device 'abacus' cannot be used here"),
        (("build", "--ckpt_path", "nowhere.ckpt"), "there is no checkpoint nowhere.ckpt"),
        (("build", "--ckpt_path", "alone.ckpt"), "no config of the run lies beside alone.ckpt: .* --text PATH"),
        (("forget", "--ckpt_path", MEMORY), 'unknown command "forget"'),
        (("list",), "memory list needs --ckpt_path"),
    ],
)
def test_bad_input(folder: Path, fails: Callable[..., str], words: tuple[str, ...], error: str):
    shutil.copy(PLAIN, "alone.ckpt")
    before = Path(MEMORY).read_bytes()
    assert re.search(error, fails("memory", *words))
    assert Path(MEMORY).read_bytes() == before


def test_an_end_that_fits_two_documents(folder: Path, fails: Callable[..., str]):
    for place in ("a", "b"):
        Path(place).mkdir()
        Path(f"{place}/same.txt").write_text(f"Twice, in {place}.")
    run("memory", "add", "--ckpt_path", MEMORY, "--text", "[ab]/same.txt")
    error = fails("memory", "delete", "--ckpt_path", MEMORY, "--document", "same.txt")
    assert "2 documents end in 'same.txt'; those are: a/same.txt, b/same.txt" in error


def test_of_several_memories_one_may_be_empty(folder: Path):
    """As a cache is in every checkpoint: it fills in an evaluation, which forgets it."""
    run("memory", "build", "--ckpt_path", LEARNED_CKPT, "--output", "both.ckpt", "--lam", 0.5, "--temperature", 1)
    both = Opened.read("both.ckpt")
    both.memories[0].remove(both.memories[0].ids())
    both.write("both.ckpt", with_config=False)
    found = run("memory", "search", "--ckpt_path", "both.ckpt", "--query", "The", "-k", 2).splitlines()
    assert found[0] == "AttentionReader: 0 of 0 entries, nearest first"
    assert found[1] == f"KNNReader: 2 of {ENTRIES} entries, nearest first"
    assert len(found) == 4


def test_an_empty_memory_finds_nothing(folder: Path, fails: Callable[..., str]):
    words = [word for name in TEXTS for word in ("--document", f"{name}.txt")]
    run("memory", "delete", "--ckpt_path", MEMORY, *words)
    assert "the memory is empty" in fails("memory", "search", "--ckpt_path", MEMORY, "--query", "The")
    assert "yes" in run("memory", "check", "--ckpt_path", MEMORY)


def test_counts_of_ngrams_are_listed_and_nothing_else(folder: Path, fails: Callable[..., str]):
    """They are no memory that is empty: there is nothing in them to search, delete or check."""
    counts = "[{class_path: NGramReader, init_args: {order: 3}}]"
    run("fit", "--config", "tiny.yaml", "--name", "counts", "--model.init_args.extensions", counts)
    path = CKPT.format("counts")
    for words in (("search", "--query", "The"), ("delete", "--document", "fox.txt"), ("check",)):
        error = fails("memory", words[0], "--ckpt_path", path, *words[1:])
        assert "counts of its training text (NGramReader) and no vectors" in error
        assert "empty" not in error
    listed = run("memory", "list", "--ckpt_path", path)
    assert re.search(rf"tokens counted +{ENTRIES + 3} of", listed)  # with an end of each text
    assert "documents" not in listed


def test_a_memory_whose_texts_stand_before_prompts(folder: Path):
    """Built, added to and deleted from as any other; its answers are those of the model that sees the text."""
    words = ("--output", "prompt.ckpt", "--reader", "PromptReader", "--passages", 2)
    assert "--tune" not in run("memory", "build", "--ckpt_path", PLAIN, *words)  # which it refuses
    module, tokenizer = load_module("prompt.ckpt")
    assert isinstance(module, VardaGPT)
    (reader,) = module.memory.readers
    assert isinstance(reader, PromptReader)
    assert (reader.passages, reader.bank.shared.num_search_results, reader.metric) == (2, 16, "cosine")
    found = module.found_for("the quick brown fox", tokenizer)
    assert found[0].text == TEXTS["fox"]
    assert len(found) == 2
    run("memory", "delete", "--ckpt_path", "prompt.ckpt", "--document", "fox.txt")
    Path("new.txt").write_text(changed := TEXTS["fox"].replace("jumps", "leaps"))
    run("memory", "add", "--ckpt_path", "prompt.ckpt", "--text", "new.txt")
    module, _ = load_module("prompt.ckpt")
    assert module.found_for("the quick brown fox", tokenizer)[0].text == changed
    assert "PromptReader" in run("memory", "list", "--ckpt_path", "prompt.ckpt")
    run("validate", "--config", "prompt.yaml", "--ckpt_path", "prompt.ckpt")


@pytest.mark.slow
def test_a_reader_of_a_config_is_filled_after_the_fit(folder: Path):
    """It learns nothing and writes nothing: the texts are those that are added."""
    reader = {"class_path": "PromptReader", "init_args": {"passage_length": 8, "memory_size": 5, "depth": 1.0}}
    init_args = {**LEARNED["init_args"], "readers": [reader], "segment_length": None}
    Path("asked.yaml").write_text(
        yaml.safe_dump({**CONFIG, "name": "asked", "model": {**LEARNED, "init_args": init_args}})
    )
    run("fit", "--config", "asked.yaml")
    module, tokenizer = load_module(CKPT.format("asked"))
    assert module.finds
    assert module.found_for("the quick brown fox", tokenizer) == []
    run("memory", "add", "--ckpt_path", CKPT.format("asked"), "--text", "texts")
    module, _ = load_module(CKPT.format("asked"))
    (found,) = module.found_for("jumps over the lazy dog", tokenizer)
    assert len(found.text) <= 12
    assert found.text in TEXTS[Path(found.document).stem]
