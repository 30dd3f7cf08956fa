import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_one_line_per_sequence_in_order_whatever_the_batch_size(main: Callable, config: Callable, trained: Path):
    written = []
    for size in (1, 64):
        changed = config({"data": {"dataloader": {"batch_size": size}}})
        main("predict", "--config", changed, "--ckpt_path", "last")
        written.append(
            [json.loads(line) for line in Path("runs/tiny/version_0/predictions.jsonl").read_text().splitlines()]
        )
    assert len(written[0]) == len(written[1]) > 5
    assert [row["window"] for row in written[0]] == list(range(len(written[0])))
    for rows in written[1:]:
        for one, two in zip(written[0], rows, strict=True):
            assert one.keys() == {"window", "document", "tokens", "bytes", "ce", "bpb"} == two.keys()
            assert all(abs(one[name] - two[name]) < 1e-4 for name in one)


@pytest.mark.slow
def test_the_validation_text_is_not_asked_for(main: Callable, config: Callable, trained: Path):
    data = {"val": {"path": "gone.txt"}, "predict": {"path": "train.txt"}}
    main("predict", "--config", config({"data": data}), "--ckpt_path", "last")
    assert len(Path("runs/tiny/version_0/predictions.jsonl").read_text().splitlines()) > 5
