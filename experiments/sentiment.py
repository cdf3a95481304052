"""Sentiment of movie snippets (VADER's ground truth, embedded): positive or negative, or the mean rating.

    python launch.py --config=experiments/sentiment.py
    python launch.py --config=experiments/sentiment.py:regress
    python launch.py compare --config=experiments/sentiment.py --jobs=2
    python launch.py compare --config=experiments/sentiment.py:glove.txt --jobs=2
    python launch.py sweep --config=experiments/sentiment.py --sweep=folds --config.data.encoding=latin-1
        --config.data.path=neg=FOLDER/rt-polarity.neg,pos=FOLDER/rt-polarity.pos

Words are read as such and by their character n-grams. 20 % test, at random (data.split_seed=0), 5 % validation, the
rest trains. One to two minutes on a CPU core. `regress` ends with a test r of 0.693, and the sign of its predictions is
right for 77.0 %; `classify` ends with a test accuracy of 76.9 %. Both are of one seed.

`compare` asks whether a recurrence and attention are better together, from random vectors of words or those of a file
(docs/sentiment.md). The sweep is a tenfold cross-validation of MR (Pang & Lee 2005), the same snippets with other
labels, a file for each.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from hybrid_flax.compare.definition import ComparedTask, Definition
from hybrid_flax.config import apply_overrides, base_config


def get_config(arg: str = "classify") -> ConfigDict:
    """arg: classify or regress."""
    config = base_config()
    config.task.name = arg or "classify"
    config.task.pooling = "attention"
    config.data.path = "vader"
    config.data.mode = "padded"
    config.data.tokenizer = "word"
    config.data.lowercase = True
    config.data.min_count = 2
    config.data.length = 40
    config.data.word_length = 12
    config.data.batch_size = 64
    config.data.valid_fraction = 0.05
    config.data.test_fraction = 0.2
    config.model.pattern = "bi:mingru"
    config.model.depth = 1
    config.model.width = 64
    config.model.characters = "ngrams"
    config.model.character_width = 32
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.1
    config.optim.table_decay = 1.0
    config.optim.ema_decay = 0.99
    config.train.dropout = 0.2
    config.train.word_dropout = 0.3
    config.train.steps = 600
    config.eval.every = 150
    config.eval.batch_size = 128
    config.eval.metric = "r" if config.task.name == "regress" else "accuracy"
    return config


def sweep_folds() -> Iterator[dict]:
    """Every tenth is the test split once."""
    for fold in range(10):
        yield {"data.folds": 10, "data.fold": fold, "data.test_fraction": 0.0}


def get_compare(arg: str = "") -> Definition:
    """Two layers read the rating: both ways by a recurrence, by attention to both sides, or one of each.

    arg: a file of word vectors, 100 wide, that known words start from.
    """
    shared = ["mixers.attn.head_width=16", "mixers.attn.causal=false"]
    shared += [f"model.vectors={arg}", "model.embedding_width=100"] if arg else ["model.embedding_width=64"]
    patterns = ("bi:mingru,bi:mingru", "attn,attn", "bi:mingru,attn")
    return Definition(
        title=f"Sentiment: a recurrence, attention, and both{', from word vectors' if arg else ''}",
        rows={pattern: {"model.pattern": pattern, "model.depth": 2} for pattern in patterns},
        tasks={"rating": ComparedTask(apply_overrides(get_config("regress"), shared))},
        budget={"parameters": 1_440_000 if arg else 1_130_000},
        learning_rates=(1e-3, 3e-3, 1e-2),
        seeds=5,
    )
