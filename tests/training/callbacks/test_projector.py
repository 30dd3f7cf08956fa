from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lightning_app.errors import InputError
from lightning_app.training.callbacks.projector import Projector
from lightning_app.training.checkpoint import load_module

Main = Callable[..., None]
VARDA = {
    "class_path": "VardaGPT",
    "init_args": {
        "scheduler": None,
        "backbone": {
            "class_path": "Decoder",
            "init_args": {"embedding_dim": 16, "layers": 1, "heads": 2},
        },
        "readers": [
            {
                "class_path": "KNNReader",
                "init_args": {"memory_size": 300, "num_search_results": 3, "span_length": 4, "writes": "always"},
            }
        ],
    },
}


@pytest.fixture
def varda(folder: Path) -> str:
    """The small config with a memory."""
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("varda.yaml").write_text(yaml.safe_dump({**config, "model": VARDA}))
    return "varda.yaml"


def test_stored_vectors_with_their_texts(folder: Path, main: Main, varda: str):
    main("fit", "--config", varda)
    run = folder / "runs" / "tiny" / "version_0"
    (labels,) = run.rglob("metadata.tsv")
    header, *rows = [line.split("\t") for line in labels.read_text().splitlines()]
    module, tokenizer = load_module(run / "checkpoints" / "last.ckpt")
    memory = module.backbone.readers[0].bank.shared
    known = memory.payload(memory.ids())
    assert header == ["text", "next", "document", "position"]
    assert len(rows) == memory.size() > 100
    assert [row[1] for row in rows] == [repr(tokenizer.decode([i]))[1:-1] for i in known.tokens.tolist()]
    assert {row[2] for row in rows} == {"train.txt"}
    assert all(len(row) == 4 for row in rows)
    vectors = [
        [float(x) for x in line.split("\t")] for line in (labels.parent / "tensors.tsv").read_text().splitlines()
    ]
    assert vectors == memory.get_all_embeddings().tolist()
    assert labels.parent.name in (run / "projector_config.pbtxt").read_text()


@pytest.mark.slow
def test_only_a_part_of_a_large_memory(folder: Path, main: Main, varda: str):
    callbacks = [{"class_path": "Projector", "init_args": {"vectors": 20}}]
    Path("part.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    main("fit", "--config", varda, "--config", "part.yaml")
    (labels,) = folder.rglob("metadata.tsv")
    assert len(labels.read_text().splitlines()) == 21


@pytest.mark.slow  # with stored vectors: fast
def test_prototypes_with_the_text_that_matches_each_best(folder: Path, main: Main, config: Callable[..., str]):
    regularizers = [
        {
            "class_path": "ARTRegularizer",
            "init_args": {"vigilance": 0.99, "novelty": "margin", "name": name},
        }
        for name in ("art", "second")
    ]
    main("fit", "--config", config({"model": {"init_args": {"extensions": regularizers}}}))
    run = folder / "runs" / "tiny" / "version_0"
    shown = {file.parent.name: file for file in run.rglob("metadata.tsv")}
    module, tokenizer = load_module(run / "checkpoints" / "last.ckpt")
    assert sorted(shown) == ["art", "second"]
    art, labels = module.regularizers[0].art, shown["art"]
    header, *rows = [line.split("\t") for line in labels.read_text().splitlines()]
    assert header == ["text", "category", "inputs", "age"]
    assert len(rows) == len(art) > 2
    best = [art.texts[slot, art.text_match[slot].argmax()] for slot in range(len(art))]
    assert [row[0] for row in rows] == [repr(tokenizer.decode(text[text >= 0].tolist()))[1:-1] for text in best]
    columns = zip(art.ids.tolist(), art.counts.tolist(), (art.seen - art.born).tolist(), strict=True)
    assert [tuple(map(int, row[1:])) for row in rows] == list(columns)[: len(art)]
    vectors = [
        [float(x) for x in line.split("\t")] for line in (labels.parent / "tensors.tsv").read_text().splitlines()
    ]
    assert vectors == art.prototypes[: len(art)].tolist()


def test_nothing_where_nothing_is_stored(tiny_run: Path):
    assert not list(tiny_run.rglob("*.tsv"))


@pytest.mark.slow
def test_nothing_without_a_logger(folder: Path, main: Main, varda: str):
    main("fit", "--config", varda, "--trainer.logger", "false")
    assert not list(folder.rglob("*.tsv"))


def test_bad_number():
    with pytest.raises(InputError, match="vectors is 0; it must be at least 1"):
        Projector(vectors=0)
