"""A run on conversations, from the file to the chat with what it has learned."""

import json
from pathlib import Path

import pytest

from lightning_app.training.checkpoint import load_module

ENDING = "{% for m in messages %}{{ m.role[0] }}>{{ m.content }}{{ eos_token }}{% endfor %}"
ENDING += "{{ 'a>' if add_generation_prompt }}"


def write_chats(path: Path, n: int) -> None:
    """Asked for a number, the assistant says a letter three times."""
    rows = [
        {"messages": [{"role": "user", "content": f"{i % 7}"}, {"role": "assistant", "content": "abcdefg"[i % 7] * 3}]}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(folder, config, main):
    write_chats(Path("chats.jsonl"), 210)
    write_chats(Path("val.jsonl"), 7)
    Path("own.jinja").write_text(ENDING)
    name = config(
        {
            "data": {
                "train": {"path": "chats.jsonl"},
                "val": {"path": "val.jsonl"},
                "chat_template": "own.jinja",
                "block_size": 24,
                "dataloader": {"batch_size": 7},
            },
            "model": {"init_args": {"backbone": {"embedding_dim": 32, "dropout": 0.0}}},
            "trainer": {"max_steps": 60, "val_check_interval": 60},
        }
    )
    main("fit", "--config", name, "--model.optimizer.lr", "0.01")
    return Path("runs/tiny/version_0/checkpoints/last.ckpt")


def test_what_was_learned_is_what_chat_says(run, main, monkeypatch, capsys):
    Path("own.jinja").unlink()  # the checkpoint is all that a chat needs
    module, tokenizer = load_module(run)
    assert module.end_ids == {tokenizer.eot}
    lines = iter(["3", "/prompt", "/reset", "5"])

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    capsys.readouterr()
    main("chat", "--ckpt_path", run, "--temperature", "0")
    said = capsys.readouterr().out
    assert "ddd\n" in said
    assert "u>3<|endoftext|>a>ddd<|endoftext|>a>" in said
    assert "fff" in said
