import pytest

from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.serving.streaming import TextStream
from tests import tokenizers as kinds

BYTES = load_tokenizer("bytes")


def pushed(text: str, *, most: int = 99, stop=(), end: bool = False) -> tuple[list[str], str | None, int]:
    """The pieces for a text that comes byte by byte, the finish reason, and how many tokens were taken."""
    stream = TextStream(BYTES, max_new_tokens=most, stop=stop)
    pieces = []
    for token in [*BYTES.encode(text), *([BYTES.eot] if end else [])]:
        pieces.append(stream.push(token))
        if stream.finish_reason:
            break
    return pieces, stream.finish_reason, stream.tokens


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("abcd", [], "abcd"),
        ("abcd", ["bc"], "a"),
        ("abcd", ["bcd"], "a"),
        ("abcd", ["d", "b"], "a"),  # the first in the text, not in the list
        ("abb", ["abc"], "abb"),  # what was held back comes at the end
        ("aab", ["ab"], "a"),
        ("xé|y", ["é|"], "x"),
    ],
)
def test_the_text_ends_before_the_first_stop(text, stop, shown):
    pieces, reason, tokens = pushed(text, stop=stop, end=True)
    assert "".join(pieces) == shown
    assert reason == "stop"
    assert tokens <= len(BYTES.encode(text)) + 1


def test_nothing_is_taken_beyond_a_stop():
    assert pushed("abcdef", stop=["bc"]) == (["", "a", ""], "stop", 3)


def test_pieces_are_passed_on_as_soon_as_they_can_be():
    assert pushed("abc", stop=["xy"])[0] == ["", "a", "b"]  # the last might begin a stop
    assert pushed("abc")[0] == ["a", "b", "c"]


def test_a_character_comes_when_it_is_whole():
    pieces, reason, tokens = pushed("é€", end=True)
    assert pieces == ["", "é", "", "", "€", ""]
    assert (reason, tokens) == ("stop", 6)


def test_half_a_character_at_the_end_is_marked():
    assert pushed("é", most=1) == (["\ufffd"], "length", 1)


def test_the_limit_ends_a_text_and_shows_what_was_held_back():
    assert pushed("abcd", most=3, stop=["cx"]) == (["", "a", "bc"], "length", 3)


def test_a_stop_with_the_last_token_allowed_is_a_stop():
    pieces, reason, _ = pushed("abc", most=3, stop=["bc"])
    assert ("".join(pieces), reason) == ("a", "stop")


def test_a_first_word_keeps_its_space_unless_it_begins_a_document():
    """LLaMA's kind writes a space before each word, and before a document's first one, too."""
    tokenizer = kinds.made("llama")
    for prompt, expected in (("The", " model é"), ("", "model é")):
        before = tokenizer.prompt(prompt)
        stream = TextStream(tokenizer, max_new_tokens=50, continues=tokenizer.goes_on(before))
        new = [*tokenizer.encode("model é"), tokenizer.eot]
        assert "".join(map(stream.push, new)) == expected
        assert stream.finish_reason == "stop"
