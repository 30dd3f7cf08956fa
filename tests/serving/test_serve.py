"""The command: what it refuses before a model is read, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import yaml

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.addresses import API_KEY, is_loopback
from lightning_app.serving.generate import continue_text
from lightning_app.serving.serve import _name, _prompts
from lightning_app.training.checkpoint import load_module

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine(host, loopback):
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7"])
@pytest.mark.parametrize("key", [None, ""])
def test_another_address_needs_a_key(fails, monkeypatch, tiny_checkpoint, host, key):
    monkeypatch.delenv(API_KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(API_KEY, key)
    message = fails("serve", "--ckpt_path", tiny_checkpoint, "--host", host)
    assert f"host is {host}, which others can reach: set a key" in message
    assert API_KEY in message


def test_bad_options(fails, tiny_checkpoint, tmp_path):
    words = ["serve", "--ckpt_path", tiny_checkpoint]
    assert "max_new_tokens is 0; it must be at least 1" in fails(*words, "--max_new_tokens", 0)
    assert "port is 70000" in fails(*words, "--port", 70000)
    assert "there is no checkpoint" in fails("serve", "--port", 0, "--ckpt_path", tmp_path / "none.ckpt")
    assert "is not a readable chat template" in fails(*words, "--chat_template", tmp_path / "none.jinja")


def test_a_port_that_is_taken_is_named(fails, tiny_checkpoint):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = fails("serve", "--ckpt_path", tiny_checkpoint, "--port", port)
        assert f"cannot listen on 127.0.0.1:{port}" in message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/runs/article_gpt/version_3/checkpoints/best.ckpt", "article_gpt"),
        ("/x/mine.ckpt", "mine"),
        ("/x/exported/last.ckpt", "last"),
    ],
)
def test_a_model_is_called_like_its_run(path, name):
    assert _name(Path(path)) == name


@pytest.mark.parametrize("given", ["Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct/../Qwen2.5-0.5B-Instruct/."])
def test_a_directory_is_called_by_its_whole_name(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    Path("Qwen2.5-0.5B-Instruct").mkdir()
    assert _name(Path(given)) == "Qwen2.5-0.5B-Instruct"
    monkeypatch.chdir("Qwen2.5-0.5B-Instruct")
    assert _name(Path(".")) == "Qwen2.5-0.5B-Instruct"


@pytest.mark.slow
def test_on_sigterm_answers_under_way_are_ended_and_no_new_ones_begun(tiny_checkpoint):
    """A process of its own: the signal comes in the middle of a stream, which still gets all of its tokens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "main.py", "serve", "--ckpt_path", str(tiny_checkpoint), "--port", "0"]
    server = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.]+:[1-9]\d*", line)))
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        assert model == "tiny"
        body = {"model": model, "prompt": "the", "max_tokens": 1000, "stream": True, "seed": 1}
        lines, began = [], threading.Event()

        def read() -> None:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    began.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert began.wait(60)
        server.send_signal(signal.SIGTERM)
        reader.join(60)
        assert server.wait(30) == 0
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        expected = continue_text("the", *load_module(tiny_checkpoint), GenerationOptions(1000, temperature=1.0, seed=1))
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "".join(expected)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert "Traceback" not in server.stdout.read()
    finally:
        server.kill()
        server.communicate()


def test_examples_are_the_prompts_of_the_run(tmp_path: Path, tiny_checkpoint: Path):
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    samples = {"class_path": "Samples", "init_args": {"prompts": ["a", "b", "c", "d"]}}
    (run / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "X"}, samples]}}))
    assert _prompts(run / "checkpoints" / "best.ckpt") == ["a", "b", "c"]
    assert _prompts(tmp_path / "model") == []
