"""Where an answer ends: at the ids that the model's source names, and at the token that ends a turn."""

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from lightning_app.data.chat_template import PLAIN_STOP, ChatTemplate
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.models.generation import generate
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import build, describe
from lightning_app.serving.streaming import TextStream
from lightning_app.serving.turns import take_turns
from lightning_app.training.compositions import CausalLM

BYTES = load_tokenizer("bytes")


@pytest.fixture
def pretrained(tmp_path) -> PretrainedLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=256, eos_token_id=256))
    model.generation_config = GenerationConfig(eos_token_id=[257, 256], bos_token_id=256)
    model.save_pretrained(tmp_path)
    return PretrainedLM(pretrained=str(tmp_path)).eval()


def test_the_ends_of_a_generation_config_stay_in_a_checkpoint(pretrained):
    assert pretrained.end_ids == {256, 257}
    assert build(describe(pretrained)).end_ids == {256, 257}


def test_an_end_that_is_a_word_of_the_tokenizer_does_not_count(pretrained):
    pretrained.model.config.eos_token_id = [256, ord("a")]
    module = CausalLM(pretrained)
    module.use_tokenizer(BYTES)
    assert module.end_ids == {256}


def test_a_text_ends_at_any_of_them(pretrained):
    ids = torch.tensor([[1, 2, 3]])
    options = GenerationOptions(12, temperature=1.0)
    whole = [int(token) for token in generate(pretrained, ids, options)]
    for ends in ({whole[4]}, {whole[7], whole[4], 300}):
        first = min(whole.index(end) for end in ends if end in whole)
        assert [int(token) for token in generate(pretrained, ids, options, eot=ends)] == whole[: first + 1]
    stream = TextStream(BYTES, max_new_tokens=9, ends={ord("b"), ord("c")})
    assert "".join(stream.push(ord(sign)) for sign in "axc") == "ax"
    assert stream.finish_reason == "stop"


def test_the_given_template_before_that_of_the_training_before_the_plain_one(pretrained):
    module = CausalLM(pretrained)
    module.use_tokenizer(BYTES)
    plain = take_turns(module, BYTES)
    assert (plain.name, plain.stop, plain.turn_end) == ("the plain template", PLAIN_STOP, None)
    module.end_ids = frozenset()
    module.chat_template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", name="its")
    assert take_turns(module, BYTES).name == "its"
    assert module.end_ids == {BYTES.eot}
    assert take_turns(module, BYTES, ChatTemplate("{{ messages }}", name="given"), stop=["#"]).stop == ("#",)
