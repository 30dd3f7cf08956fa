"""A Python that has imported everything: what it is asked to run starts in a copy of it, at once.

`python -m tests.page_server SOCKET` waits; `shim(SOCKET)` is a program `python` that hands its words over, so that a
shell's code runs as it is written, and an import of Lightning's (seconds) is done once for all commands of all pages.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST = {"--trainer.max_steps": 4, "--data.block_size": 32, "--stride": 16}  # of what a command line says
SHORT = "3 seconds"  # in place of what --fit_in says
SHIM = """#!{python} -S
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({socket!r})
    words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    fds = array.array("i", [0, 1, 2])
    asked.sendmsg([len(words).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    asked.sendall(words)
    sys.exit(int(asked.recv(16) or b"1"))
"""


def shim(place: Path, folder: Path) -> None:
    """Write `folder/python`."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "python"
    program.write_text(SHIM.format(python=sys.executable, socket=str(place)), encoding="utf-8")
    program.chmod(0o755)


def small(words: list[str]) -> list[str]:
    """The command line with fewer steps, less time and a port that is free."""
    made = list(words)
    for i, (key, value) in enumerate(zip(words, [*words[1:], ""], strict=True)):
        if key in MOST:
            made[i + 1] = str(min(int(value), MOST[key]))
        elif key == "--fit_in":
            made[i + 1] = SHORT
    return [*made, "--port", "0"] if words[0] == "serve" and "--port" not in words else made


def end_once_it_serves() -> None:
    """SIGTERM, as soon as that would end it with exit code 0."""
    import uvicorn

    started: list[uvicorn.Server] = []
    begin = uvicorn.Server.startup

    async def startup(server: uvicorn.Server, **options: Any) -> None:
        await begin(server, **options)
        started.append(server)

    uvicorn.Server.startup = startup  # type: ignore[method-assign]
    while not started:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


def run(words: list[str]) -> None:
    """`python WORDS` in this process."""
    sys.path.insert(0, os.getcwd())
    if words[0] == "main.py":
        from lightning_app.cli import main

        if words[1] == "serve":
            threading.Thread(target=end_once_it_serves, daemon=True).start()
        sys.argv = words
        main(small(words[1:]))
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def in_a_copy(words: list[str], folder: str, environment: dict[str, str], fds: list[int]) -> int:
    """The exit code of `python WORDS` in a fork of this process."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        for here, given in enumerate(fds):
            os.dup2(given, here)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        run(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(asked: socket.socket) -> None:
    head, ancillary, _, _ = asked.recvmsg(8, socket.CMSG_SPACE(3 * 4))
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data)
    with asked.makefile("rb") as stream:
        words, folder, environment = json.loads(stream.read(int.from_bytes(head, "big")))
    code = in_a_copy(words, folder, environment, list(fds))
    for fd in fds:
        os.close(fd)
    asked.sendall(str(code).encode())
    asked.close()


def import_everything() -> None:
    """What commands import. What takes half of a small fit's time at its end is made small, as in tests/conftest.py."""
    import torch

    from lightning_app import closing

    for name in ("app", "export.command", "reports.compare.command", "serving.generate"):
        importlib.import_module(f"lightning_app.{name}")

    torch.set_num_threads(1)
    closing.SAMPLED_TOKENS, closing.CONTINUED_TOKENS = 8, 2
    draw: Callable[..., Any] = lambda records, path, title: path.touch()  # noqa: E731
    closing.draw_loss = draw
    warnings.simplefilter("ignore")  # advice for runs of this size
    gc.collect()
    gc.freeze()


def serve(place: str) -> None:
    import_everything()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        print("ready", flush=True)
        while True:
            answer(listening.accept()[0])


if __name__ == "__main__":
    serve(sys.argv[1])
