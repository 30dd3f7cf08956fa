"""The page of a server in a browser: what it asks for, shows, and says when something fails."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.serving.explain import explain
from lightning_app.serving.server.app import PAGE, content_security_policy, create_app
from lightning_app.serving.server.engine import Engine
from lightning_app.serving.server.service import Service
from lightning_app.training.module import LanguageModule

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
Made = tuple[LanguageModule, Tokenizer]
SOURCE = "the model learns what the teacher shows"
ATTACK = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"


@pytest.fixture
def visit(tab: Any, open_in: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`visit(url, width=400)` opens it; afterwards it has asked nobody else, and no script of others has run."""
    asked: list[str] = []
    errors: list[str] = []
    urls: list[str] = []
    heard: dict[str, Callable[[Any], None]] = {
        "pageerror": lambda error: errors.append(str(error)),
        "console": lambda said: errors.append(said.text) if "Content Security" in said.text else None,
        "request": lambda request: asked.append(request.url),
    }
    tab.set_default_timeout(20_000)
    for name, hear in heard.items():
        tab.on(name, hear)

    def run(url: str, **more: Any) -> Any:
        urls.append(url)
        return open_in(url, **more)

    yield run
    for name, hear in heard.items():
        tab.remove_listener(name, hear)
    assert errors == []
    assert [url for url in asked if not url.startswith((*urls, "data:"))] == []


# A server that says what a test tells it to


class Scripted(ThreadingHTTPServer):
    """Answers each path by its part of `script`: a status and bytes, which go out one by one.

    Attributes:
        asked: method, path, headers and body of each request.
    """

    daemon_threads = True

    def __init__(self, script: dict[str, Any]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.asked = script, list[dict[str, Any]]()
        self.go_on, self.gone = threading.Event(), threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/":
            self._answer({})
            return
        page = PAGE.read_bytes()
        self.send_response(200)
        self.send_header("Content-Security-Policy", content_security_policy(page.decode()))
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        self.server.asked.append({"path": self.path, "headers": dict(self.headers), "body": body})
        script = self.server.script[self.path]
        status, parts = script(self.headers) if callable(script) else script
        self.send_response(status)
        self.end_headers()
        try:
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
                self.server.go_on.wait(10)
        except OSError:
            self.server.gone.set()


def of_json(found: dict[str, Any], status: int = 200) -> tuple[int, list[bytes]]:
    return status, [json.dumps(found).encode()]


def event(found: dict[str, Any] | str) -> bytes:
    return f"data: {found if isinstance(found, str) else json.dumps(found)}\n\n".encode()


def text_event(text: str, reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})


def streamed(*texts: str) -> tuple[int, list[bytes]]:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    end = [text_event("", "length"), event({"choices": [], "usage": usage}), event("[DONE]")]
    return 200, [*(text_event(text) for text in texts), *end]


ABOUT = {"name": "tiny", "kind": "CausalLM", "facts": ["3 parameters"], "prompts": ["Once", "The"]}


def refused(status: int, message: str) -> tuple[int, list[bytes]]:
    return of_json({"error": {"message": message, "type": "x", "param": None, "code": None}}, status)


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """`scripted(completions=..., explain=..., about=...)` is a server of these answers."""
    servers = []

    def run(**answers: Any) -> Scripted:
        about = answers.get("about", of_json(ABOUT))
        found = answers.get("explain", of_json({"tokens": [], "surprise": []}))
        script = {"/about": about, "/explain": found, "/v1/completions": answers.get("completions")}
        script["/v1/chat/completions"] = answers.get("chat")
        servers.append(Scripted(script))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield run
    for server in servers:
        server.go_on.set()
        server.shutdown()
        server.server_close()


def ended(page: Any) -> None:
    playwright.expect(page.locator("#generate")).to_be_enabled(timeout=20_000)


def shows(page: Any, where: str, text: str) -> None:
    """Wait until it does; the page's policy forbids `wait_for_function`."""
    playwright.expect(page.locator(where)).to_have_text(text)


def generate(page: Any, prompt: str = "Say: ") -> None:
    page.fill("#prompt", prompt)
    page.click("#generate")


def test_the_settings_are_asked_for_and_the_text_is_streamed(scripted: Callable[..., Scripted], visit: Any):
    server = scripted(completions=streamed("one", " tw", "o"))
    page = visit(server.url)
    shows(page, "#model", "tiny")
    for name, value in {"max_tokens": 7, "temperature": 0, "top_k": 3, "top_p": 0.9, "min_p": 0.1}.items():
        page.fill(f"#{name}", str(value))
    page.fill("#repetition_penalty", "1.2")
    page.fill("#seed", "5")
    page.fill("#stops", "end\n\\n\\n")
    server.go_on.clear()
    generate(page)
    shows(page, "#output", "Say: one")
    assert page.inner_text("#status") == "Generating …"
    assert page.get_attribute("#output", "aria-live") == "polite"
    server.go_on.set()
    ended(page)
    assert page.text_content("#output") == "Say: one two"
    status = page.inner_text("#status")
    assert status.startswith("3 tokens read, 4 written")
    assert "tokens/s" in status
    completion, looked = server.asked[1:]
    how = {"max_tokens": 7, "temperature": 0, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    assert completion["body"] == {
        "model": "tiny",
        "prompt": "Say: ",
        "seed": 5,
        "stop": ["end", "\n\n"],
        **how,
        **stream,
    }
    assert looked["body"] == {"text": "Say: one two"}
    assert "Authorization" not in completion["headers"]


@pytest.mark.slow
def test_all_tokens_and_any_seed_are_not_asked_for(scripted: Callable[..., Scripted], visit: Any):
    server = scripted(completions=streamed("x"))
    page = visit(server.url)
    page.fill("#top_k", "0")
    generate(page)
    ended(page)
    assert not {"top_k", "seed", "stop"} & server.asked[1]["body"].keys()


def test_a_stream_may_be_cut_anywhere(scripted: Callable[..., Scripted], visit: Any):
    whole = b": a comment\r\n\r\n" + b"".join(streamed("café", "\n€")[1]).replace(b"\\u00e9", "é".encode())
    whole = whole.replace(b"\n\n", b"\r\n\r\n", 1)
    assert "é".encode() in whole
    server = scripted()
    page = visit(server.url)
    for cut in (1, 9, 30):
        server.script["/v1/completions"] = 200, [whole[i : i + cut] for i in range(0, len(whole), cut)]
        generate(page, f"{cut}: ")
        ended(page)
        assert page.text_content("#output") == f"{cut}: café\n€"
        assert page.is_hidden("#error")


FAILURES: dict[str, tuple[Any, str]] = {  # by what is said: the answer, and the text that stays
    "max_tokens is 9, and may be 5": (refused(400, "max_tokens is 9, and may be 5"), ""),
    "too many requests": (refused(429, "too many requests"), ""),
    "The server answered with error 500.": ((500, [b"<html>"]), ""),
    "it broke": ((200, [text_event("so"), event({"error": {"message": "it broke"}})]), "so"),
    "The connection was lost before the text had ended.": ((200, [text_event("so")]), "so"),
    "The server sent something that this page does not understand.": ((200, [text_event("so"), event("{")]), "so"),
}


def test_what_fails_is_said_in_plain_words_and_the_text_stays(scripted: Callable[..., Scripted], visit: Any):
    server = scripted()
    page = visit(server.url)
    for message, (answer, text) in FAILURES.items():
        server.script["/v1/completions"] = answer
        generate(page)
        shows(page, "#error", message)
        ended(page)
        assert page.text_content("#output") == f"Say: {text}"
        assert "broke off" in page.inner_text("#status")
    assert page.get_attribute("#error", "role") == "alert"


@pytest.mark.slow
def test_a_server_that_is_gone(scripted: Callable[..., Scripted], visit: Any):
    server = scripted()
    page = visit(server.url)
    server.shutdown()
    server.server_close()
    generate(page)
    ended(page)
    assert page.inner_text("#error") == "The server does not answer. Is it still running?"


def test_a_key_is_asked_for_kept_for_the_tab_and_sent(scripted: Callable[..., Scripted], visit: Any):
    def about(headers: Any) -> Any:
        if headers["Authorization"] != "Bearer sesame":
            return refused(401, "no key")
        return of_json(ABOUT)

    server = scripted(about=about, completions=streamed("in"))
    page = visit(server.url)
    playwright.expect(page.locator("#key")).to_be_focused()
    assert page.inner_text("#error") == "The server asks for an API key."
    page.keyboard.type("wrong")
    page.keyboard.press("Tab")
    shows(page, "#error", "The server does not accept this API key.")
    page.fill("#key", "sesame")
    page.keyboard.press("Tab")
    shows(page, "#model", "tiny")
    assert page.is_hidden("#error")
    page.reload()
    shows(page, "#model", "tiny")
    generate(page)
    ended(page)
    assert server.asked[-2]["headers"]["Authorization"] == "Bearer sesame"
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize("how", [pytest.param("button", marks=pytest.mark.slow), "Escape"])
def test_stop_ends_the_request_and_keeps_the_text(how: str, scripted: Callable[..., Scripted], visit: Any):
    server = scripted(completions=(200, [text_event("on and ")] * 5000))
    page = visit(server.url)
    shows(page, "#model", "tiny")
    server.go_on.clear()
    page.focus("#prompt")
    page.keyboard.type("Go: ")
    page.keyboard.press("Control+Enter")
    shows(page, "#output", "Go: on and")
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    server.go_on.set()
    assert server.gone.wait(10)
    ended(page)
    assert page.text_content("#output").startswith("Go: on and ")
    assert "stopped after" in page.inner_text("#status")
    assert page.is_hidden("#error")
    assert server.asked[-1]["path"] == "/explain"


def test_tokens_are_coloured_by_surprise(scripted: Callable[..., Scripted], visit: Any):
    found = {"tokens": ["y", ": ", "", "é", "!"], "surprise": [None, 0.5, 2.0, 3.5, 9.0]}
    page = visit(scripted(completions=streamed("é!"), explain=of_json(found)).url)
    generate(page, "Say: ")
    page.wait_for_selector("#panels section")
    spans = page.eval_on_selector_all(
        "#output span", "all => all.map((one) => [one.textContent, one.className, one.title])"
    )
    assert [span[:2] for span in spans] == [
        *(["Sa", "prompt"], ["y", "s0 prompt"], [": ", "s0 prompt"], ["é", "s3"], ["!", "s4"]),
    ]
    assert [span[2][:9] for span in spans] == ["", "", "0.50 nats", "5.50 nats", "9.00 nats"]
    assert "mean 3.75 nats, perplexity 42.5" in page.inner_text("#surprise")
    ground = "getComputedStyle(document.querySelector('#output .s4')).backgroundColor"
    colour = page.evaluate(ground)
    page.uncheck("#colour")
    assert page.evaluate(ground) != colour
    assert page.is_hidden("#surprise")


def test_a_token_tells_what_was_likelier_and_the_keyboard_reaches_all_of_them(
    scripted: Callable[..., Scripted], visit: Any
):
    found = {
        "tokens": ["S", "a", "y", ": ", "o", "k"],
        "surprise": [None, 0.5, 1.0, 0.1, 2.302585, 0.0],
        "likeliest": [None, *[[["x", 1.0]]] * 3, [["no", 0.5], ["\n", 0.25], ["o", 0.1]], [["k", 1.0]]],
    }
    page = visit(scripted(completions=streamed("ok"), explain=of_json(found)).url)
    generate(page, "Say: ")
    page.wait_for_selector("#panels section")
    tokens = page.locator("#output [role=button]")
    assert tokens.all_inner_texts() == ["a", "y", ": ", "o", "k"]
    assert [tokens.nth(i).get_attribute("tabindex") for i in range(5)] == ["0", "-1", "-1", "-1", "-1"]
    tokens.nth(3).click()
    said = page.inner_text("#token")
    assert said.startswith("o has a probability of 10.0\u00a0% here (2.30 nats). The likeliest in its place:")
    assert page.locator("#token li > :first-child").all_inner_texts() == ["no", "↵", "o"]
    assert page.inner_text("#token mark") == "o"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#token").startswith("k has a probability of 100.0")
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.textContent") == "a"
    assert page.get_attribute("#output [aria-pressed=true]", "tabindex") == "0"


def test_examples_again_and_copy(scripted: Callable[..., Scripted], visit: Any):
    server = scripted(completions=streamed("x"))
    page = visit(server.url)
    assert page.inner_text("header p") == "tiny CausalLM · 3 parameters"
    assert page.is_disabled("#again")
    page.click("text=Once")
    assert page.input_value("#prompt") == "Once"
    page.fill("#seed", "5")
    page.click("#generate")
    ended(page)
    page.click("#again")
    ended(page)
    seeds = [asked["body"]["seed"] for asked in server.asked if asked["path"] == "/v1/completions"]
    assert seeds == [5, 6]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    shows(page, "#copy", "Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "Oncex"
    page.context.clear_permissions()


def test_a_conversation(scripted: Callable[..., Scripted], visit: Any):
    def spoken(*texts: str) -> tuple[int, list[bytes]]:
        each = [event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}) for text in texts]
        return 200, [*each, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), event("[DONE]")]

    server = scripted(chat=spoken("I", " am"))
    page = visit(server.url)
    page.click("#as-chat")
    assert page.is_hidden("#look")
    generate(page, "who?")
    ended(page)
    turns = page.locator(".turn")
    assert turns.all_inner_texts() == ["You\nwho?", "tiny\nI am"]
    assert page.input_value("#prompt") == ""
    server.script["/v1/chat/completions"] = spoken("No.")
    page.click("#again")
    ended(page)
    assert turns.all_inner_texts() == ["You\nwho?", "tiny\nNo."]
    server.script["/v1/chat/completions"] = refused(400, "too long")
    generate(page, "and?")
    shows(page, "#error", "too long")
    ended(page)
    assert page.input_value("#prompt") == "and?"
    server.script["/v1/chat/completions"] = spoken("Yes")
    page.click("#generate")
    ended(page)
    asked = [one["body"]["messages"] for one in server.asked if one["path"] == "/v1/chat/completions"]
    me, no = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "No."}
    assert asked == [[me], [me], [me, no, {"role": "user", "content": "and?"}], *asked[-1:]]
    assert asked[-1] == asked[-2]
    page.click("#fresh")
    assert turns.count() == 0
    page.click("#as-text")
    assert page.inner_text("#generate") == "Generate"


def test_prompt_settings_and_theme_survive_a_reload(scripted: Callable[..., Scripted], visit: Any):
    page = visit(scripted().url)
    shows(page, "#model", "tiny")
    page.fill("#prompt", "a prompt\nof two lines")
    page.fill("#temperature", "0.3")
    page.click("#theme")
    dark = page.get_attribute("html", "data-theme")
    page.uncheck("#colour")
    page.reload()
    shows(page, "#model", "tiny")
    assert page.input_value("#prompt") == "a prompt\nof two lines"
    assert page.input_value("#temperature") == "0.3"
    assert page.get_attribute("html", "data-theme") == dark in ("light", "dark")
    assert not page.is_checked("#colour")
    page.evaluate("localStorage.setItem('lightning_app', '{')")
    page.reload()
    shows(page, "#model", "tiny")
    assert page.input_value("#temperature") == "0.8"


def test_texts_of_models_and_memories_are_no_html(scripted: Callable[..., Scripted], visit: Any):
    entry = {"id": 1, "text": ATTACK, "next_token": ATTACK, "document": ATTACK, "position": 2, "weight": 0.5}
    read = {"position": 0, "token": ATTACK, "weight": 0.5, "entries": [{**entry, "distance": 1.0}]}
    category = {"name": ATTACK, "layer": None, "categories": 1, "category": 0, "similarity": 0.5, "novel": False}
    found = {
        "tokens": [ATTACK, ATTACK],
        "surprise": [None, 1.0],
        "likeliest": [None, [[ATTACK, 0.5], ["b", 0.25]]],
        "memory": [{"reader": ATTACK, "entries": 1, "reads": [read]}],
        "categories": [{**category, "vigilance": 0.4, "inputs": 1, "texts": [ATTACK]}],
        "heads": {"attention": [[True]], "masked": [[False]]},
    }
    about = of_json({"name": ATTACK, "kind": ATTACK, "facts": [ATTACK], "prompts": [ATTACK]})
    page = visit(scripted(about=about, completions=streamed(ATTACK), explain=of_json(found)).url)
    generate(page, ATTACK)
    page.wait_for_selector("#panels section")
    assert page.text_content("#output") == ATTACK + ATTACK
    page.locator("#output [role=button]").click()
    assert page.text_content("#token").count(ATTACK) == 2
    assert page.text_content("body").count(ATTACK) >= 13
    assert page.locator("img, body script:not(:last-child)").count() == 0
    assert "onerror" in page.title()  # that of the model: it was not changed


# The real server


@pytest.fixture
def served() -> Iterator[Callable[[Made], str]]:
    """`served((module, tokenizer))` is the address of a server of it."""
    running = []

    def run(made: Made) -> str:
        engine = Engine(*made, batch_size=4, max_waiting=4)
        app = create_app(Service(*made, engine, "small", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # a page may ask before the server does so
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield run
    for server, thread, listening in running:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def looked_at(page: Any, prompt: str, *, max_tokens: int = 8) -> str:
    """The text that is there once the model has continued the prompt."""
    page.evaluate("document.getElementById('options').open = true")
    page.fill("#max_tokens", str(max_tokens))
    page.fill("#seed", "1")
    generate(page, prompt)
    page.wait_for_selector("#panels section")
    ended(page)
    assert page.is_hidden("#error")
    return str(page.text_content("#output"))


@pytest.mark.parametrize("name", ["attention", pytest.param("knn", marks=pytest.mark.slow)])
def test_entries_that_were_read_are_shown_with_their_source(
    name: str, reading: Callable[..., Made], served: Callable[[Made], str], visit: Any
):
    made = reading(name, SOURCE)
    page = visit(served(made))
    text = looked_at(page, "the teach")
    assert text.startswith("the teach")
    (memory,) = explain(*made, text)["memory"]
    assert "23 entries" in page.inner_text("h3")
    chips = page.locator(".chips label")
    assert chips.count() == len(memory["reads"]) > 9
    assert page.is_checked(".chips label:last-child input")
    page.locator(".chips label").nth(4).click()
    entries, shown = memory["reads"][4]["entries"], page.locator(".reads li")
    assert shown.count() == len(entries) > 1
    for i, entry in enumerate(entries):
        words = shown.nth(i).text_content()
        assert words.startswith(entry["text"].lstrip() + (entry["next_token"].strip() or "␣"))
        assert f"source.txt, token {entry['position']}" in words
    page.keyboard.press("ArrowRight")
    assert page.locator(".chips label").nth(5).locator("input").is_checked()


@pytest.mark.slow  # its answer: tests/serving/server
def test_a_category_and_whether_it_is_novel(sorting: Callable[..., Made], served: Callable[[Made], str], visit: Any):
    made = sorting("the teacher learns", vigilance=0.99)
    page = visit(served(made))
    page.fill("#prompt", "the teacher learns")
    page.click("#look")
    page.wait_for_selector("#panels section")
    assert page.inner_text(".verdict") == "Known: category 0"
    assert page.inner_text(".texts") == "the teacher learns"
    text = looked_at(page, "1, 2")
    (category,) = explain(*made, text)["categories"]
    assert category["novel"]
    assert page.inner_text(".verdict").startswith("Novel: nearest is category 0")
    assert f"similarity {category['similarity']:.3f}, vigilance 0.990" in page.inner_text("#panels")


@pytest.mark.slow  # its answer: tests/serving/server
def test_heads_that_are_alive_masked_and_removed(pruned: Made, served: Callable[[Made], str], visit: Any):
    page = visit(served(pruned))
    looked_at(page, "the teacher")
    rows = page.eval_on_selector_all(
        "tbody tr", "all => all.map((row) => [...row.querySelectorAll('.away')].map((one) => one.textContent))"
    )
    assert rows == [["removed", "alive", "alive", "removed"], ["alive", "masked", "alive", "alive"]]
    said = page.inner_text("#panels")
    assert "5 of 8 attention heads are alive, 112 of 128 feed-forward neurons" in said
    assert "48 of 64" in said


@pytest.mark.slow
def test_of_a_plain_model_there_is_no_more(plain: Made, served: Callable[[Made], str], visit: Any):
    page = visit(served(plain))
    looked_at(page, "the teacher")
    assert "no memory, no categories" in page.inner_text("#panels")
    page.fill("#max_tokens", "9999")
    page.click("#generate")
    ended(page)
    assert "max_tokens is 9,999" in page.inner_text("#error")


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_on_a_phone_nothing_overflows_and_all_of_it_can_be_read(
    scheme: str, reading: Callable[..., Made], served: Callable[[Made], str], visit: Any
):
    page = visit(served(reading("attention", SOURCE)), width=400, scheme=scheme)
    assert page.is_hidden("#top_k")  # settings are folded
    looked_at(page, "a-very-long-word-without-any-place-to-break-it-and-more", max_tokens=30)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    boxes = "[...document.querySelectorAll('section, form, .output, .chips, li, textarea, p')]"
    assert page.evaluate(f"{boxes}.filter((one) => one.getBoundingClientRect().right > 400).length") == 0
    assert page.evaluate(CONTRASTS) == []


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgba(colour).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (rgba(colour)[3]) return colour;
    }
  };
  return [...document.querySelectorAll("body *")].filter((one) => one.innerText && one.checkVisibility()
      && !one.disabled && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((one) => {
      const [a, b] = [luminance(getComputedStyle(one).color), luminance(ground(one))].sort((x, y) => y - x);
      return [one.innerText.slice(0, 30), one.className, (a + 0.05) / (b + 0.05)];
    }).filter(([, , ratio]) => ratio < 4.5);
}"""


def test_the_keyboard_reaches_everything_in_its_order(scripted: Callable[..., Scripted], visit: Any):
    page = visit(scripted(completions=streamed("x")).url)
    reached = []
    shows(page, "#examples", "OnceThe")
    for _ in range(18):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    settings = ["max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stops"]
    first = ["Skip to the text", "as-text", "as-chat", "theme", "prompt", "Once", "The", "generate", "look", "Settings"]
    assert reached == [*first, *settings]
    unnamed = "[...document.querySelectorAll('input, textarea')].filter((one) => !one.labels.length).length"
    assert page.evaluate(unnamed) == 0
