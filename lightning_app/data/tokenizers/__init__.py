"""Text <-> token ids: tiktoken's, one that is trained here, plain bytes, or any of Hugging Face's."""

from lightning_app.data.tokenizers.base import StreamDecoder, Tokenizer, pieces
from lightning_app.data.tokenizers.hugging_face import HuggingFaceTokenizer
from lightning_app.data.tokenizers.load import BYTES, load_tokenizer
from lightning_app.data.tokenizers.tiktoken import TiktokenTokenizer

__all__ = [
    "BYTES",
    "HuggingFaceTokenizer",
    "StreamDecoder",
    "TiktokenTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "pieces",
]
