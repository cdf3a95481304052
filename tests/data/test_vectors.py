"""Word vectors: both text formats, and one line for what is none of them."""

import numpy as np
import pytest

from hybrid_flax.data.tokenizers import ByteTokenizer, WhitespaceTokenizer, WordTokenizer
from hybrid_flax.data.vectors import read_vectors

TOKENIZER = WordTokenizer(("the", "The", " Dog", "cat", "new york"), cut="token")
LINES = "the 1 2\nother 0 0\ndog 3 -4.5e-1\nThe 5 6\nthe 9 9\nnew york 7 8\n"


def written(folder, content):
    path = folder / "vectors.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("header", ["", "6 2\n"])
def test_known_words_have_their_vectors(header, tmp_path):
    found = read_vectors(written(tmp_path, header + LINES), TOKENIZER, 2)
    assert found.ids.tolist() == [1, 2, 3, 5] and found.lowered == 1
    np.testing.assert_allclose(found.rows, [[1, 2], [5, 6], [3, -0.45], [7, 8]])
    spaced = read_vectors(written(tmp_path, "dog 1 2 \r\n"), WhitespaceTokenizer(("dog",)), 2)
    blank = read_vectors(written(tmp_path, header + LINES + "\n \r\n"), TOKENIZER, 2)
    assert np.array_equal(blank.rows, found.rows)
    assert spaced.ids.tolist() == [1] and spaced.rows.tolist() == [[1, 2]]


def test_files_that_are_no_vectors(tmp_path):
    for content, wanted in (
        (LINES + "short 1\n", "vectors.txt:7: 1 numbers after the word, not 2"),
        ("the 1 2\ncat 1 x\n", "vectors.txt:2: the vector of 'cat' is not 2 finite numbers"),
        ("the 1 2\ncat 1 nan\n", "vectors.txt:2: the vector of 'cat' is not 2 finite numbers"),
        ("the 1 2 3\n", "vectors.txt:1: vectors of width 3, the embedding has 2"),
        ("400 300\nthe 1 2\n", "vectors.txt:1: vectors of width 300, the embedding has 2"),
        (b"the 1 2\n\xff\xfe 1 2\n", "vectors.txt:2: no UTF-8"),
        ("the 1 2\n" + "1 " * 100_000, "vectors.txt:2: a line of 100,000 bytes or more"),
        ("zebra 1 2\n", "a vector for none of the 5 words"),
    ):
        with pytest.raises(ValueError) as caught:
            read_vectors(written(tmp_path, content), TOKENIZER, 2)
        assert wanted in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no file or folder"):
        read_vectors(str(tmp_path / "nothing.txt"), TOKENIZER, 2)
    with pytest.raises(ValueError, match="word or whitespace, not byte"):
        read_vectors(written(tmp_path, LINES), ByteTokenizer(), 2)
