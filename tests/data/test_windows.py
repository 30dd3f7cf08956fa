"""Windows and pairs against batches worked out by hand; every prediction is made once."""

import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.data.windows import PairSamples, TokenWindows
from lightning_app.errors import InputError

E = 256  # end of text
X = -100  # not to be predicted


@pytest.fixture
def make(tmp_path):
    """Token array of byte tokens; a tuple is a (prompt, target) pair."""

    def make(*texts):
        documents = [Document(t) if isinstance(t, str) else Document(t[1], t[0]) for t in texts]
        return prepare_tokens(documents, load_tokenizer("bytes"), tmp_path)

    return make


def rows(dataset, name):
    return vars(dataset.__getitems__(list(range(len(dataset)))))[name].tolist()


def targets_at(dataset):
    """Position -> target for everything that is predicted; asserts that it is predicted once and rightly."""
    batch = dataset.__getitems__(list(range(len(dataset))))
    ids = dataset.tokens.ids.tolist()
    found = []
    for i, row in enumerate(batch.targets.tolist()):
        for t, target in enumerate(row):
            if target != X:
                position = (int(dataset._starts[i]) + t + getattr(dataset, "offset", 0)) % len(ids)
                assert batch.input_ids[i, t] == ids[position]
                assert target == ids[position + 1]
                found.append(position + 1)
    assert len(found) == len(set(found))
    return sorted(found)


def test_a_batch_by_hand(make):
    windows = TokenWindows(make("abcde", "fg"), 5)
    batch = windows.__getitems__([1, 0])
    first, second = batch.document_keys[0, :2].tolist()
    assert 0 < first != second > 0
    assert {name: value.tolist() for name, value in vars(batch).items()} == {
        "input_ids": [[E, 102, 103, E, E], [97, 98, 99, 100, 101]],
        "targets": [[102, 103, E, X, X], [98, 99, 100, 101, E]],
        "attention_mask": [[True, True, True, True, False], [True] * 5],
        "document_ids": [[0, 1, 1, 1, -1], [0] * 5],
        "document_keys": [[first, second, second, second, -1], [first] * 5],
        "positions": [[5, 0, 1, 2, -1], [0, 1, 2, 3, 4]],
    }
    dtypes = [value.dtype for value in vars(batch).values()]
    assert dtypes == [torch.int64, torch.int64, torch.bool, torch.int64, torch.int64, torch.int64]


def test_the_key_of_a_document_follows_from_its_tokens_alone(make):
    one, other = TokenWindows(make("abc", "de"), 3), TokenWindows(make("xy", "de"), 3)
    keys = [{w.tokens.keys_of(np.array([i]))[0] for i in (0, 1)} for w in (one, other)]
    assert len(keys[0] & keys[1]) == 1
    assert len(keys[0] | keys[1]) == 3


@pytest.mark.parametrize(
    ("block_size", "targets"),
    [
        (3, [[98, 99, 100], [101, E, 102], [103, E, X]]),
        (4, [[98, 99, 100, 101], [E, 102, 103, E]]),  # windows fill the text exactly
        (8, [[98, 99, 100, 101, E, 102, 103, E]]),
    ],
)
def test_targets_follow_and_no_token_is_lost(make, block_size, targets):
    windows = TokenWindows(make("abcde", "fg"), block_size)
    assert rows(windows, "targets") == targets
    assert targets_at(windows) == list(range(1, 9))


def test_a_sliding_window_scores_the_last_stride_targets(make):
    windows = TokenWindows(make("abcde", "fg"), 4, stride=2)
    assert rows(windows, "input_ids") == [[97, 98, 99, 100], [99, 100, 101, E], [101, E, 102, 103]]
    assert rows(windows, "targets") == [[98, 99, 100, 101], [X, X, E, 102], [X, X, 103, E]]
    assert rows(TokenWindows(make("abcdef"), 4, stride=3), "targets") == [[98, 99, 100, 101], [X, 102, E, X]]


@pytest.mark.parametrize("respect_documents", [False, True])
def test_every_token_is_scored_once_for_all_shapes(make, respect_documents):
    tokens = make("a", "bc", "defghijklmnop", "q" * 9)
    first = {0, *tokens.offsets[:-1]} if respect_documents else {0}
    for block_size in range(1, 30):
        for stride in range(1, block_size + 1):
            if block_size + 1 <= tokens.n_tokens:
                windows = TokenWindows(tokens, block_size, stride=stride, respect_documents=respect_documents)
                assert targets_at(windows) == [p for p in range(tokens.n_tokens) if p not in first]


def test_respected_documents_are_not_crossed(make):
    windows = TokenWindows(make("abcde", "f", "gh"), 4, respect_documents=True)
    assert rows(windows, "input_ids") == [[97, 98, 99, 100], [101, E, E, E], [102, E, E, E], [103, 104, E, E]]
    assert rows(windows, "targets") == [[98, 99, 100, 101], [E, X, X, X], [E, X, X, X], [104, E, X, X]]
    assert rows(windows, "document_ids") == [[0, 0, 0, 0], [0, 0, -1, -1], [1, 1, -1, -1], [2, 2, 2, -1]]


def test_max_samples_keeps_the_first_windows(make):
    tokens = make("abcdefghij")
    assert rows(TokenWindows(tokens, 4, max_samples=2), "targets") == [[98, 99, 100, 101], [102, 103, 104, 105]]
    assert len(TokenWindows(tokens, 4, max_samples=50)) == 3
    sliding = TokenWindows(tokens, 4, stride=2, max_samples=2)
    assert rows(sliding, "targets") == [[98, 99, 100, 101], [X, X, 102, 103]]
    shifted = TokenWindows(tokens, 4, max_samples=2, shift=True)
    shifted.offset = 3
    assert max(max(row) for row in rows(shifted, "input_ids")) <= 105  # no token that max_samples leaves out


def test_a_shift_reads_the_array_as_a_circle(make):
    windows = TokenWindows(make("abcdefghi"), 4, shift=True)  # 10 tokens
    windows.offset = 3
    assert rows(windows, "input_ids") == [[100, 101, 102, 103], [104, 105, E, 97], [98, 99, E, E]]
    assert rows(windows, "targets") == [[101, 102, 103, 104], [105, E, X, 98], [99, 100, X, X]]
    assert rows(windows, "attention_mask")[2] == [True, True, False, False]
    for size in range(5, 30):
        windows = TokenWindows(make("x" * (size - 1)), 4, shift=True)
        lost = 1 if (size - 1) % 4 == 0 else 0
        for windows.offset in range(4):
            assert len(targets_at(windows)) == size - 1 - (lost if windows.offset else 0)


def test_epochs_shift_by_a_function_of_seed_and_epoch(make):
    tokens = make("abcdefghi" * 10)
    windows, other = TokenWindows(tokens, 16, shift=True), TokenWindows(tokens, 16, shift=True)
    offsets = []
    for epoch in range(20):
        windows.set_epoch(epoch, 1)
        offsets.append(windows.offset)
    assert len(set(offsets)) > 5
    assert max(offsets) < 16
    other.set_epoch(7, 1)
    assert other.offset == offsets[7]
    fixed = TokenWindows(tokens, 16)
    fixed.set_epoch(7, 1)
    assert fixed.offset == 0


def test_contradictions_are_refused(make):
    tokens = make("abc")
    for options, said in [
        ({"block_size": 4}, "the text has 4 tokens, but one window of block_size 4 needs 5"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 2, "max_samples": 0}, "max_samples 0"),
        ({"block_size": 2, "stride": 3}, "stride is 3; set it to 1 up to block_size, which is 2"),
        ({"block_size": 2, "stride": 0}, "stride is 0"),
        ({"block_size": 2, "stride": 1, "shift": True}, r"shift: true leave out .*stride \(is 1\)"),
        ({"block_size": 2, "respect_documents": True, "shift": True}, r"respect_documents \(is True\)"),
    ]:
        with pytest.raises(InputError, match=said):
            TokenWindows(tokens, **options)
    with pytest.raises(InputError, match="no prompts"):
        PairSamples(tokens, 3)


def test_pairs_by_hand(make):
    samples = PairSamples(make(("ab", "cd"), ("e", "f")), 5)
    assert rows(samples, "input_ids") == [[97, 98, 99, 100, E], [101, 102, E, E, E]]
    assert rows(samples, "targets") == [[X, 99, 100, E, X], [102, E, X, X, X]]
    assert rows(samples, "attention_mask") == [[True] * 5, [True, True, True, False, False]]
    assert rows(samples, "document_ids") == [[0] * 5, [1, 1, 1, -1, -1]]
    assert samples.truncated == 0


def test_long_pairs_lose_the_prompts_start_then_the_targets_end(make, caplog):
    caplog.set_level(logging.WARNING)
    tokens = make(("abc", "de"), ("abcdef", "gh"), ("a", "bcdefg"), ("abc", "defgh"))
    samples = PairSamples(tokens, 4)
    assert rows(samples, "input_ids") == [
        [98, 99, 100, 101],
        [101, 102, 103, 104],
        [97, 98, 99, 100],
        [99, 100, 101, 102],
    ]
    assert rows(samples, "targets") == [[X, 100, 101, E], [X, 103, 104, E], [98, 99, 100, 101], [100, 101, 102, 103]]
    assert (samples.truncated_prompts, samples.truncated_targets, samples.truncated) == (3, 2, 4)
    assert "4 of 4 pairs are longer than block_size 4: 3 lost the start of the prompt, 2" in caplog.text
    assert len(PairSamples(tokens, 4, max_samples=1)) == 1


def test_torch_loaders_fetch_batches_whole(make):
    windows = TokenWindows(make("abcdefghijklmnop"), 4)
    loader = DataLoader(windows, batch_size=3, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [batch.input_ids.shape for batch in batches] == [(3, 4), (1, 4)]
    assert torch.equal(windows[3].targets, batches[1].targets[0])
    with pytest.raises(IndexError):
        windows[4]


def test_samples_do_not_share_memory_with_the_file(make):
    windows = TokenWindows(make("abcdefgh"), 4)
    before = np.array(windows.tokens.ids)
    batch = windows.__getitems__([0])
    batch.input_ids.fill_(0)
    assert np.array_equal(windows.tokens.ids, before)
