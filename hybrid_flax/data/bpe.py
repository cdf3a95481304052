"""Byte-pair encoding by the `tokenizers` library: trained on text, kept as its JSON."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Bpe", "load", "train"]

_BYTES = 256


class Bpe(NamedTuple):
    """encode: text -> ids. pieces: the bytes under every id."""

    encode: Callable[[str], list[int]]
    pieces: tuple[bytes, ...]


def train(texts: Iterable[str], vocab_size: int) -> str:
    """The JSON of an encoding with up to `vocab_size` ids, the 256 bytes among them.

    Raises ValueError for fewer ids, and where the library is not installed.
    """
    if vocab_size < _BYTES:
        raise ValueError(f"a bpe tokenizer has an id for each of {_BYTES} bytes: vocab_size {vocab_size} is too small")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def load(model: str) -> Bpe:
    """The encoding of a JSON by `train`. Raises ValueError for another text, and where the library is not installed."""
    library = _library()
    try:
        tokenizer = library.Tokenizer.from_str(model)
    except Exception as error:  # the library raises no narrower one
        raise ValueError(f"no bpe tokenizer: {error}") from None
    byte_of = _byte_of_letter()
    pieces = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return Bpe(
        lambda text: tokenizer.encode_batch_fast([text])[0].ids,
        tuple(bytes(byte_of[letter] for letter in piece) for piece in pieces),
    )


def _byte_of_letter() -> dict[str, int]:
    """How byte-level encodings write bytes: printable Latin-1 as itself, the others in order from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _library():
    try:
        import tokenizers
    except ImportError:
        raise ValueError("data.tokenizer=bpe needs the extra hub: pip install 'hybrid_flax[hub]'") from None
    return tokenizers
