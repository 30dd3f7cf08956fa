"""`python main.py serve`: a trained model behind OpenAI's HTTP interface, and a page to try it on."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lightning_app.errors import InputError
from lightning_app.reports.run_folder import RunFolder
from lightning_app.serving.server.app import create_app
from lightning_app.serving.server.engine import Engine
from lightning_app.serving.server.service import Limits, Service
from lightning_app.serving.turns import take_turns
from lightning_app.training import arguments
from lightning_app.utf8 import as_text

API_KEY = "LIGHTNING_APP_API_KEY"  # the environment's variable
# seconds for the answers under way: a client that reads no further shall not keep the server for ever
LONGEST_END = 300
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # names of this machine


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(prog="main.py serve", description=__doc__, allow_abbrev=False)
    arguments.add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help=f"another address than loopback needs a key in {API_KEY}")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--name", help="of the model, for clients; that of its run without it")
    arguments.add_chat_template(parser)
    parser.add_argument(
        "--chat_stop", type=as_text, action="append", help="ends an answer of a chat; may be given several times"
    )
    parser.add_argument("--max_prompt_tokens", type=int, default=limits.max_prompt_tokens)
    parser.add_argument("--max_new_tokens", type=int, default=limits.max_new_tokens)
    parser.add_argument("--max_body", type=int, default=limits.max_body, help="bytes")
    parser.add_argument("--max_requests", type=int, default=limits.max_requests, help="texts that wait or run")
    parser.add_argument("--batch_size", type=int, default=limits.batch_size, help="texts that are continued at once")
    return parser


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def command(argv: Sequence[str]) -> None:
    """Parse the arguments and serve until SIGTERM or Ctrl-C; answers that are under way are ended first."""
    args = _parser().parse_args(argv)
    api_key = os.environ.get(API_KEY) or None
    if not is_loopback(args.host) and api_key is None:
        raise InputError(
            f"host is {args.host}, which others can reach: set a key in the environment's variable {API_KEY}, or "
            "serve on 127.0.0.1"
        )
    limits = Limits(args.max_prompt_tokens, args.max_new_tokens, args.max_body, args.max_requests, args.batch_size)
    given = arguments.chat_template(args)
    own = f"[{args.host}]" if ":" in args.host else args.host
    hosts = (*LOOPBACK, own) if is_loopback(args.host) and api_key is None else ()
    with _listen(args.host, args.port) as listener:
        path, module, tokenizer = arguments.load(args)
        name = args.name or _name(path)
        template = take_turns(module, tokenizer, given, stop=args.chat_stop)
        engine = Engine(module, tokenizer, batch_size=limits.batch_size, max_waiting=limits.max_requests)
        service = Service(module, tokenizer, engine, name, int(path.stat().st_mtime), limits, template)
        _serve(create_app(service, api_key=api_key, hosts=hosts), listener, name=name)


def _name(checkpoint: Path) -> str:
    """runs/article_gpt/version_0/checkpoints/best.ckpt -> article_gpt; Qwen2.5-0.5B -> Qwen2.5-0.5B."""
    place = checkpoint.resolve()
    run = RunFolder.of(place)
    return run.name if run else place.name if place.is_dir() else place.stem


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
