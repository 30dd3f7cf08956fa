import pytest

from lightning_app.inference.generate import until


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        (["ab", "cd"], [], "abcd"),
        (["ab", "cd"], ["bc"], "a"),  # across two pieces
        (["a", "b", "c", "d"], ["bcd"], "a"),
        (["abcd"], ["d", "b"], "a"),  # the first in the text, not in the list
        (["ab", "b"], ["abc"], "abb"),  # what was held back comes at the end
    ],
)
def test_until_the_first_stop(pieces: list[str], stop: list[str], text: str):
    assert "".join(until(pieces, stop)) == text


def test_pieces_are_passed_on_as_soon_as_they_can_be():
    stream = until(iter(["abc", "def"]), ["xy"])
    assert next(stream) == "ab"  # "c" might begin a stop
