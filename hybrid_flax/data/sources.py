"""Sources: what a data set gives to training and evaluation, whatever it was made from."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hybrid_flax.data.corpora import Corpus, check_test_fraction, load_corpus
from hybrid_flax.data.examples import (
    eval_examples,
    fold_records,
    label_names,
    make_example_batches,
    make_examples,
    split_records,
    unseen_line,
    unseen_names,
)
from hybrid_flax.data.folders import given_splits
from hybrid_flax.data.hub import HUB, read_hub, read_hub_text
from hybrid_flax.data.pipeline import Batches, Tokens, eval_stream, eval_windows, make_batches, tokenize
from hybrid_flax.data.readers import Record, read_splits
from hybrid_flax.data.synthetic import eval_language, make_language, make_language_batches
from hybrid_flax.data.tokenizers import SymbolTokenizer, Tokenizer, make_tokenizer
from hybrid_flax.registration import Chosen
from hybrid_flax.typing import Batch

__all__ = ["SYNTHETIC", "Source", "Split", "cut_rows", "labelled_source", "language_source", "text_source"]

SYNTHETIC = "synthetic:"  # what a data.path that names a language begins with


class Split(NamedTuple):
    """What is evaluated together.

    batches: (batch_size, length, carried) -> batches, in order where states are carried. unknown: (tokens that
    the vocabulary has not, all tokens). lengths: tokens of every labelled example, whole. digest: of its tokens and
    targets, "" where they follow from the config.
    """

    batches: Callable[[int, int, bool], Sequence[Batch]]
    unknown: tuple[int, int] = (0, 0)
    lengths: tuple[int, ...] = ()
    digest: str = ""


def cut_rows(split: Split, length: int) -> str:
    """What to say of examples that do not fit into rows of `length` tokens; "" where all do."""
    cut = sum(tokens > length for tokens in split.lengths)
    rows = f"{cut:,} of {len(split.lengths):,} rows are cut at {length} tokens"
    return f"{rows}, the longest has {max(split.lengths)}" if cut else ""


class Source(NamedTuple):
    """A data set.

    train: (mode, batch_size, length, seed) -> the batches of a run; batch_size 0 is the whole set.
    splits: those with anything to evaluate, by name: "train", "valid", "test". labels: the names of what is predicted,
    () where it is numbers or symbols. unseen: labels of examples that are none of these; targets count on with them.
    """

    tokenizer: Tokenizer
    train: Callable[[str, int, int, int], Batches]
    splits: Mapping[str, Split]
    labels: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def contents(self) -> dict[str, str]:
        """How much every split holds and its digest, which differ where the data do; {} for synthetic languages."""
        return {name: f"{_size(split)}, {split.digest}" for name, split in self.splits.items() if split.digest}


def text_source(
    path: str,
    *,
    document: str,
    valid_fraction: float,
    test_fraction: float,
    encoding: str,
    tokenizer: Tokenizer | Chosen | str,
    vocab_size: int,
    min_count: int,
    lowercase: bool,
    text: str = "text",
    files: str = "",
) -> Source:
    """Text by `load_corpus` or `read_hub_text`, one token after another.

    tokenizer: one, or the kind to make of the training text. text: the column of a table, or of a data set of the hub.
    files: of a folder by split, as `given_splits` reads it.
    Raises FileNotFoundError and ValueError as `load_corpus` and `make_tokenizer` do.
    """
    options: dict[str, Any] = {"document": document, "valid_fraction": valid_fraction, "test_fraction": test_fraction}
    if path.startswith(HUB):
        given_splits(path, files)
        corpus = read_hub_text(path.removeprefix(HUB), text=text, **options)
    else:
        corpus = load_corpus(path, encoding=encoding, text=text, splits=files, **options)
    if not isinstance(tokenizer, Tokenizer):
        vocabulary: dict[str, Any] = {"vocab_size": vocab_size, "min_count": min_count, "lowercase": lowercase}
        tokenizer = make_tokenizer(tokenizer, corpus.train, **vocabulary)
    tokens = {name: tokenize(getattr(corpus, name), tokenizer) for name in Corpus._fields}

    def train(mode, batch_size, length, seed):
        # One epoch of windows, so that a step sees them all.
        batch_size = batch_size or max(1, len(tokens["train"].ids) // length - 1)
        return make_batches(mode, tokens["train"], batch_size=batch_size, length=length, seed=seed)

    splits = {name: _text_split(part, tokenizer.unknown_id) for name, part in tokens.items() if _has_targets(part)}
    return Source(tokenizer, train, splits)


def language_source(name: str, *, length: int, test_length: int) -> Source:
    """A synthetic language: it trains and validates on lengths up to `length` and is tested on longer ones.

    name: as `make_language` reads it. The test split has lengths from the next after `length` to `test_length`, and
    targets under every symbol are scored beyond `length` alone; where `test_length` is not more than `length` it is
    further examples of the lengths of validation. Rows of both splits are equally wide.
    Raises ValueError as `make_language`, and for a `test_length` that is greater but holds no longer example.
    """
    language = make_language(name)

    def train(mode, batch_size, length, seed):
        del mode
        if not batch_size:
            raise ValueError("a synthetic language has no end: data.batch_size must be at least 1")
        return make_language_batches(language, batch_size=batch_size, length=length, seed=seed)

    seen = (length if language.one_length else language.shortest, length)
    rows = partial(_language_batches, language, max(length, test_length))
    valid = Split(partial(rows, lengths=seen))
    longer = (length // language.every + 1) * language.every
    if length < test_length < longer:
        raise ValueError(
            f"eval.length={test_length} has no example of {name!r} that is longer than those of data.length={length}: "
            f"set it to {longer} or more, or to 0"
        )
    if test_length > length:
        test = Split(partial(rows, lengths=(longer, test_length), beyond=length))
    else:
        test = Split(partial(rows, lengths=seen, stream=2))
    return Source(SymbolTokenizer(language.symbols), train, {"valid": valid, "test": test})


def labelled_source(
    path: str,
    kind: str,
    *,
    text: str,
    label: str,
    valid_fraction: float,
    test_fraction: float,
    split_seed: int,
    folds: int = 0,
    fold: int = 0,
    encoding: str = "utf-8",
    tokenizer: Tokenizer | Chosen | str,
    vocab_size: int,
    min_count: int,
    lowercase: bool = False,
    word_length: int = 0,
    labels: tuple[str, ...] | None = None,
    files: str = "",
) -> Source:
    """Labelled examples by `read_splits` or `read_hub`; what has no splits is split at random by `split_seed`.

    kind: one of `examples.KINDS`. folds, fold: instead of a test fraction, as `fold_records`. word_length: characters
    of a word that its tokens hold, 0 for none. What a data set with splits of its own has not is taken from training.
    The ratings of "vader" are numbers, or for classes "positive" and "negative" by their sign. tokenizer, labels: those
    of a run, else they are made from the training examples. files: of a folder by split, as `given_splits` reads it.
    How many examples have a label that no training example has is printed. Raises FileNotFoundError and ValueError in
    one line.
    """
    columns: dict[str, Any] = {"text": text, "label": label, "tagged": kind == "tags"}
    if path.startswith(HUB):
        given_splits(path, files)
        splits = read_hub(path.removeprefix(HUB), **columns)
    else:
        splits = read_splits(path, encoding=encoding, splits=files, **columns)
    for record in (record for part in splits.values() for record in part if kind != "tags"):
        if not isinstance(record.text, str):
            raise ValueError(f"{record.where}: {text!r} is a list of tokens, not a text: use task.name=tag")
    if path == "vader" and kind == "class":
        splits = {name: [_by_sign(record) for record in part] for name, part in splits.items()}
    fractions: dict[str, Any] = {"valid_fraction": valid_fraction, "seed": split_seed}
    if folds and "all" not in splits:
        raise ValueError(f"data.folds={folds}: {path!r} has splits of its own ({', '.join(splits)}), so set it to 0")
    if folds:
        drawn = fold_records(splits.pop("all"), folds=folds, fold=fold, kind=kind, **fractions)
    else:
        check_test_fraction(path, test_fraction, splits)
        fractions |= {"valid_fraction": 0.0} if "valid" in splits else {}
        drawn = split_records(
            splits.pop("all" if "all" in splits else "train"), test_fraction=test_fraction, **fractions
        )
    splits |= {name: part for name, part in drawn.items() if part}
    splits = {name: splits[name] for name in Corpus._fields if name in splits}
    if not isinstance(tokenizer, Tokenizer):
        vocabulary: dict[str, Any] = {"vocab_size": vocab_size, "min_count": min_count, "lowercase": lowercase}
        tokenizer = _tokenizer_of(tokenizer, splits["train"], kind, spells=word_length > 0, **vocabulary)
    names = label_names(splits["train"], kind) if labels is None else labels
    unseen = unseen_names((record for part in splits.values() for record in part), kind, names)
    for name, part in splits.items():
        if line := unseen_line(part, kind, unseen):
            print(f"{name}: {line}")
    encoded = partial(make_examples, tokenizer=tokenizer, kind=kind, names=names + unseen, word_length=word_length)
    examples = {name: encoded(part) for name, part in splits.items() if part}

    def train(mode, batch_size, length, seed):
        del mode
        batch_size = batch_size or len(examples["train"].tokens)
        return make_example_batches(examples["train"], batch_size=batch_size, length=length, seed=seed)

    made = {name: _labelled_split(part, tokenizer.unknown_id) for name, part in examples.items()}
    return Source(tokenizer, train, made, names, unseen)


def _labelled_split(examples, unknown_id):
    def batches(batch_size, length, carried):
        if carried:
            raise ValueError("labelled examples stand alone: no state is carried from one to the next")
        return eval_examples(examples, batch_size=batch_size, length=length)

    words = [ids if ids.ndim == 1 else ids[:, 0] for ids in examples.tokens]
    missed = 0 if unknown_id is None else sum(int(np.sum(ids == unknown_id)) for ids in words)
    lengths = tuple(map(len, words))
    labels = examples.labels if isinstance(examples.labels, tuple) else (examples.labels,)
    digest = _digest(np.asarray(lengths), *examples.tokens, *labels)
    return Split(batches, (missed, sum(lengths)), lengths, digest)


def _tokenizer_of(name: Chosen | str, records: Sequence[Record], kind: str, **options: Any) -> Tokenizer:
    """Words of tagged sentences are as the file has them; other tokenizers see spaces between them."""
    texts = (r.text if isinstance(r.text, str) else " ".join(r.text) for r in records)
    if (name if isinstance(name, str) else name.name) != "word":
        options.pop("spells")
        return make_tokenizer(name, texts, **options)
    if kind == "tags":
        return make_tokenizer(name, (word for r in records for word in r.text), cut="token", **options)
    return make_tokenizer(name, texts, cut="sentence", **options)


def _by_sign(record):
    return record._replace(label="positive" if float(record.label) > 0 else "negative")


def _language_batches(language, longest, batch_size, length, carried, **rows):
    del length
    if carried:
        raise ValueError("examples of a synthetic language stand alone: no state is carried from one to the next")
    return eval_language(language, batch_size=batch_size, longest=longest, **rows)


def _text_split(tokens: Tokens, unknown_id: int | None) -> Split:
    def batches(batch_size, length, carried):
        return (eval_stream if carried else eval_windows)(tokens, batch_size=batch_size, length=length)

    missed = 0 if unknown_id is None else int(np.sum(tokens.ids == unknown_id))
    return Split(batches, (missed, len(tokens.ids)), digest=_digest(tokens.ids, tokens.document))


def _size(split):
    return (f"{len(split.lengths):,} rows of " if split.lengths else "") + f"{split.unknown[1]:,} tokens"


def _digest(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _has_targets(tokens: Tokens) -> bool:
    """Whether there is a token that follows another in its document."""
    return bool(np.any(tokens.document[1:] == tokens.document[:-1]))
