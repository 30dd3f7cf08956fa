"""`python main.py serve`: a trained model behind OpenAI's HTTP interface, and a page to try it on."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lightning_app.errors import InputError
from lightning_app.reports.run_folder import RunFolder
from lightning_app.serving.addresses import is_loopback
from lightning_app.serving.server.app import create_app
from lightning_app.serving.server.engine import Engine
from lightning_app.serving.server.limits import Limits
from lightning_app.serving.server.service import EXAMPLES, Service
from lightning_app.serving.turns import take_turns
from lightning_app.training.command_options import ModelOptions
from lightning_app.training.loading import load, read_template

# seconds for the answers under way: a client that reads no further shall not keep the server for ever
LONGEST_END = 300
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # names of this machine


def serve_model(
    model: ModelOptions,
    limits: Limits,
    *,
    host: str,
    port: int,
    api_key: str | None,
    name: str | None,
    chat_template: Path | None,
    stop: list[str] | None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; answers that are under way are ended first. The options: see `commands.serve`."""
    given = read_template(chat_template)
    own = f"[{host}]" if ":" in host else host
    hosts = (*LOOPBACK, own) if is_loopback(host) and api_key is None else ()
    with _listen(host, port) as listener:
        path, module, tokenizer = load(model)
        name = name or _name(path)
        template = take_turns(module, tokenizer, given, stop=stop)
        engine = Engine(module, tokenizer, batch_size=limits.batch_size, max_waiting=limits.max_requests)
        prompts = _prompts(path) or EXAMPLES
        service = Service(module, tokenizer, engine, name, int(path.stat().st_mtime), limits, template, prompts)
        _serve(create_app(service, api_key=api_key, hosts=hosts), listener, name=name)


def _name(checkpoint: Path) -> str:
    """runs/article_gpt/version_0/checkpoints/best.ckpt -> article_gpt; Qwen2.5-0.5B -> Qwen2.5-0.5B."""
    place = checkpoint.resolve()
    run = RunFolder.of(place)
    return run.name if run else place.name if place.is_dir() else place.stem


def _prompts(checkpoint: Path) -> list[str]:
    """The prompts that the run drew samples of; none where its config is not there or has none."""
    run = RunFolder.of(checkpoint.resolve())
    callbacks = (run.config().get("trainer") or {}).get("callbacks") if run else None
    found = [one.get("init_args", {}).get("prompts") for one in callbacks or [] if isinstance(one, dict)]
    return [str(prompt) for prompts in found if isinstance(prompts, list) for prompt in prompts][: len(EXAMPLES)]


def _serve(app: FastAPI, listener: socket.socket, *, name: str) -> None:
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=LONGEST_END)
    )
    # uvicorn raises the signal anew once it has stopped: that shall not make a clean end look like a crash
    signal.signal(signal.SIGTERM, lambda *_: None)
    host, port = listener.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"{name} on {where} (the page, and /v1 for clients of OpenAI's interface); Ctrl-C stops", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Before a model is read, so that a port that is taken is said at once."""
    if not 0 <= port < 2**16:
        raise InputError(f"port is {port}; it must lie between 0 (any that is free) and {2**16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port} ({error}): choose another --port or --host") from None
