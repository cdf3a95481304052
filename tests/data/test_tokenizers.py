import dataclasses
import importlib.util
import json
import re

import engines
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_flax.data.pipeline import tokenize
from hybrid_flax.data.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    cut_words,
    make_tokenizer,
    register_tokenizer,
    stream_decoder,
    tokenizer_from_dict,
)
from hybrid_flax.registration import TOKENIZERS

KINDS = ("byte", "char", "word", *(("bpe",) if importlib.util.find_spec("tokenizers") else ()))
NEXT = {kind: KINDS[i - 1] for i, kind in enumerate(KINDS)}
# Characters of 1, 2, 3 and 4 bytes, and all that the pieces of words are made of.
TEXT = st.one_of(
    st.text(st.sampled_from("ab Z9_'\n\t.,\u2019éß\u0301語\U0001f600\ufffd"), max_size=60),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
SEEN = "It's a lie,\nisn't it? A lie, a  lie.\n\tNaïve 語 \U0001f600_x_ 1623\n"


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_text_of_the_vocabulary_comes_back(name, text):
    tokenizer = make_tokenizer(name, [SEEN, text])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown_id is None or tokenizer.unknown_id not in ids.tolist()
    assert all(0 <= i < tokenizer.vocab_size for i in ids.tolist())


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_widths_cover_the_original_text_known_or_not(name, text):
    tokenizer = make_tokenizer(name, [SEEN])
    num_chars, num_bytes = tokenizer.widths(text)
    assert num_chars.shape == num_bytes.shape == tokenizer.encode(text).shape
    assert num_chars.sum() == len(text)
    assert num_bytes.sum() == len(text.encode())
    if name not in ("byte", "bpe"):
        ends = np.cumsum(num_chars)
        covered = [text[start:end] for start, end in zip([0, *ends[:-1]], ends)]
        assert [len(piece.encode()) for piece in covered] == num_bytes.tolist()
        for piece, i in zip(covered, tokenizer.encode(text).tolist()):
            assert tokenizer.decode([i]) == (piece if i else "\ufffd")


@pytest.mark.parametrize("name", KINDS)
def test_a_dict_through_json_gives_an_equal_tokenizer(name):
    tokenizer = make_tokenizer(name, [SEEN])
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again is not tokenizer and again == tokenizer and hash(again) == hash(tokenizer)
    assert again.encode(SEEN).tolist() == tokenizer.encode(SEEN).tolist()
    assert tokenizer_from_dict(tokenizer.to_dict()) == tokenizer
    assert again != make_tokenizer(NEXT[name], [SEEN])


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT, data=st.data())
def test_the_stream_decoder_joins_to_the_whole(name, text, data):
    tokenizer = make_tokenizer(name, [SEEN])
    ids = tokenizer.encode(text)
    ids = ids[: data.draw(st.integers(0, len(ids)))]  # perhaps in the middle of a character
    decode, parts, start = stream_decoder(tokenizer), [], 0
    while start < len(ids):
        end = start + data.draw(st.integers(1, 4))
        parts.append(decode(ids[start:end].tolist()))
        start = end
    assert "".join(parts) + decode([], final=True) == tokenizer.decode(ids)


def test_the_stream_decoder_holds_back_half_a_character():
    decode = stream_decoder(ByteTokenizer())
    assert [decode([byte]) for byte in "é\U0001f600".encode()] == ["", "é", "", "", "", "\U0001f600"]
    assert decode([0xC3, ord("a")]) == "\ufffda"


def test_char_vocabulary_is_sorted_and_zero_is_unknown():
    tokenizer = make_tokenizer("char", ["ba", "cé"])
    assert tokenizer == CharTokenizer("abcé") and tokenizer.vocab_size == 5
    # z and the emoji lie inside and beyond the table of code points.
    assert tokenizer.encode("éaz\U0001f600").tolist() == [4, 1, 0, 0]
    assert tokenizer.decode([1, 0, 4]) == "a\ufffdé"


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_words_are_lossless_pieces(text):
    pieces = cut_words(text)
    assert "".join(pieces) == text
    for piece in pieces:
        letters = piece.removeprefix(" ")
        assert len(piece) == 1 or all(c.isalnum() or c in "'\u2019" for c in letters)
        assert piece == "\n" or "\n" not in piece
        assert "_" not in piece or piece == "_"


def test_word_vocabulary_is_the_most_frequent_pieces():
    assert cut_words("It's a  lie,\nisn't it?") == [
        "It's",
        " a",
        " ",
        " lie",
        ",",
        "\n",
        "isn't",
        " it",
        "?",
    ]
    texts = [" b b b a a c c d", " a."]
    assert make_tokenizer("word", texts).pieces == (" a", " b", " c", " d", ".")
    assert make_tokenizer("word", texts, vocab_size=3).pieces == (" a", " b")
    assert make_tokenizer("word", texts, vocab_size=3).vocab_size == 3
    assert make_tokenizer("word", texts, min_count=2).pieces == (" a", " b", " c")
    assert make_tokenizer("word", texts[::-1]) == make_tokenizer("word", texts)
    tokenizer = WordTokenizer((" a", "."))
    assert tokenizer.encode(" a e.").tolist() == [1, 0, 2]
    assert tokenizer.decode(np.array([1, 0, 2])) == " a\ufffd."


def test_words_of_sentences_and_tokens():
    texts = ["It's GOOD, it's...  good!\n"]
    tokenizer = make_tokenizer("word", texts, cut="sentence", lowercase=True)
    assert tokenizer.pieces == (".", "good", "it's", "!", ",")
    assert tokenizer.encode("Good?  IT'S").tolist() == [2, 0, 3]
    assert tokenizer.decode([2, 0, 3]) == "good \ufffd it's"
    assert tokenizer.widths(" a  b\n")[0].tolist() == [2, 4]
    whole = make_tokenizer("word", ["U.N.", "New York"], cut="token")
    assert whole.pieces == ("New York", "U.N.") and whole.encode(" U.N.").tolist() == [2]
    for made in (tokenizer, whole):
        again = tokenizer_from_dict(json.loads(json.dumps(made.to_dict())))
        assert again == made and hash(again) == hash(made)
    assert tokenizer_from_dict({"name": "word", "pieces": ["a"]}) == WordTokenizer(("a",))


def test_spelling():
    tokenizer = make_tokenizer("word", ["ba", "ab Cab"], cut="sentence", lowercase=True, spells=True)
    assert tokenizer.characters == "Cab" and tokenizer.num_characters == 5
    assert tokenizer.spell("ab Cx", 3).tolist() == [[3, 4, 0], [2, 1, 0]]
    assert tokenizer.spell("abCabb", 4).tolist() == [[3, 4, 4, 4]]
    assert tokenizer.spell("abCabb", 3).tolist() == [[3, 4, 4]] and tokenizer.spell("abC", 1).tolist() == [[3]]
    assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
    assert make_tokenizer("word", ["ab"], cut="sentence").num_characters == 0


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_whitespace_pieces(text):
    tokenizer = make_tokenizer("whitespace", [SEEN])
    written = [piece for line in re.split("(\n)", text) for piece in ([line] if line == "\n" else line.split())]
    ids = tokenizer.encode(text)
    assert [tokenizer.pieces[i - 1] if i else 0 for i in ids] == [w if w in tokenizer.pieces else 0 for w in written]
    num_chars, num_bytes = tokenizer.widths(text)
    assert num_chars.shape == num_bytes.shape == ids.shape
    if len(ids):
        assert (num_chars.sum(), num_bytes.sum()) == (len(text), len(text.encode()))


def test_whitespace_reads_wikitext():
    """Words as they are, a piece for every line end, <unk> the unknown piece itself."""
    text = " = Robert <unk> = \n\n he is , \n"
    tokenizer = make_tokenizer("whitespace", [text])
    assert tokenizer.vocab_size == 7
    assert tokenizer.decode(tokenizer.encode(text)) == " = Robert <unk> =\n\n he is ,\n"
    assert tokenizer.encode("<unk> she").tolist() == [0, 0]
    assert tokenizer.widths(text)[0].tolist() == [2, 7, 6, 2, 2, 1, 3, 3, 2, 2]
    assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


def test_whitespace_counts_of_wikitext2():
    """The published counts, line ends included: 2,088,628 tokens of 33,278 kinds (Merity et al. 2017, table 1)."""
    text = (engines.data_sets("wikitext2") / "train.txt").read_text(encoding="utf-8")
    tokenizer = make_tokenizer("whitespace", [text], vocab_size=100_000)
    assert tokenizer.vocab_size == 33_278
    assert len(tokenizer.encode(text)) == 2_088_628


def test_errors_are_one_line_that_says_what_is_valid():
    message = error_of(make_tokenizer, "chars", [SEEN])
    assert "byte, char, word" in message and "nearest: char" in message
    assert "byte, char, word" in error_of(tokenizer_from_dict, {"name": "bytes"})
    assert "lower case goes with" in error_of(make_tokenizer, "char", [SEEN], lowercase=True)
    assert "text, sentence, token" in error_of(WordTokenizer, ("a",), "words")
    assert "byte, char, word" in error_of(tokenizer_from_dict, {})
    assert "pieces" in error_of(tokenizer_from_dict, {"name": "word", "words": []})
    assert "text" in error_of(make_tokenizer, "char", [])
    assert "min_count 9" in error_of(make_tokenizer, "word", [SEEN], min_count=9)
    assert "vocab_size 1 " in error_of(make_tokenizer, "word", [SEEN], vocab_size=1)
    assert "sorted" in error_of(CharTokenizer, "ba")
    assert "different" in error_of(WordTokenizer, ("a", "a"))
    for name in KINDS:
        tokenizer = make_tokenizer(name, [SEEN])
        size = tokenizer.vocab_size
        assert re.search(rf"id {size} .* {size} ids", error_of(tokenizer.decode, [1, size]))
        assert "id -1 " in error_of(tokenizer.decode, [-1])
        assert f"id {size} " in error_of(stream_decoder(tokenizer), [size])


@dataclasses.dataclass(frozen=True)
class Pairs(Tokenizer):
    """Two characters at a time; those that are not known are 0."""

    pairs: tuple[str, ...]
    name = "pairs"
    unknown_id = 0

    @property
    def vocab_size(self):
        return 1 + len(self.pairs)

    def _cut(self, text):
        return [text[start : start + 2] for start in range(0, len(text), 2)]

    def encode(self, text):
        return np.array([1 + self.pairs.index(p) if p in self.pairs else 0 for p in self._cut(text)], np.int32)

    def decode(self, ids):
        return "".join(("\ufffd", *self.pairs)[i] for i in ids)

    def widths(self, text):
        return tuple(np.array([len(f(p)) for p in self._cut(text)], np.int32) for f in (str, str.encode))

    def to_dict(self):
        return {"name": self.name, "pairs": list(self.pairs)}

    @classmethod
    def made(cls, texts, vocabulary, *, most: int = 100):
        found = sorted({pair for text in texts for pair in cls._cut(cls, text)})
        return cls(tuple(found[: min(most, vocabulary.vocab_size - 1)]))


def load_pairs(saved):
    return Pairs(tuple(saved["pairs"]))


@settings(max_examples=30)
@given(TEXT.filter(bool))
def test_a_tokenizer_of_ones_own(text):
    register_tokenizer("pairs", Pairs.made, load_pairs)
    ours = make_tokenizer("pairs", [text])
    assert tokenizer_from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    decode = stream_decoder(ours)
    assert "".join(decode([i]) for i in ours.encode(text)) == ours.decode(ours.encode(text)) == text
    tokens = tokenize([text], ours)
    assert (tokens.num_chars.sum(), tokens.num_bytes.sum()) == (len(text), len(text.encode()))
    few = make_tokenizer(TOKENIZERS.choose("pairs", {"most": 1}), [text])
    assert few.vocab_size == 2


def test_a_tokenizer_of_bytes_is_decoded_over_pieces():
    """One that has `join` is one of bytes, whoever wrote it."""

    class Own(ByteTokenizer):
        name = "own"

    decode = stream_decoder(Own())
    parts = [decode([i]) for i in "é語".encode()] + [decode([], final=True)]
    assert parts == ["", "é", "", "", "語", ""]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"to_dict": lambda self: {"name": "pair", "pairs": []}},
            "from its to_dict: that holds name='pairs'",
        ),
        ({"to_dict": lambda self: {"name": "pairs", "pairs": ["x"]}}, "must come back from its to_dict"),
        ({"to_dict": lambda self: {"name": "pairs", "pairs": {1}}}, r"fails: TypeError: .*set is not JSON"),
        ({"to_dict": lambda self: {"name": "pairs"}}, r"fails: KeyError: pairs"),
        (
            {"widths": lambda self, text: (np.ones(1, np.int32),) * 2},
            "sum to 1 and 1, for a text of 4 characters",
        ),
    ],
)
def test_what_a_tokenizer_gives_is_checked(monkeypatch, changes, wanted):
    register_tokenizer("pairs", Pairs.made, load_pairs)
    for name, value in changes.items():
        monkeypatch.setattr(Pairs, name, value)
    with pytest.raises(ValueError, match=wanted):
        tokenize(["abcd"], make_tokenizer("pairs", ["abcd"]))


def test_a_tokenizer_that_is_none():
    register_tokenizer("three", lambda texts, vocabulary: 3, load_pairs)
    with pytest.raises(ValueError, match=r"tokenizer three made int, no hybrid_flax.data.tokenizers.Tokenizer"):
        make_tokenizer("three", ["a"])
    with pytest.raises(ValueError, match="lower case goes with the tokenizers word and bpe, not with three"):
        make_tokenizer("three", ["a"], lowercase=True)
