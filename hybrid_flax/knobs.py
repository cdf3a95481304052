"""Every knob of an experiment: its default, what it does, its unit and its range.

Read from the top, this is the page of all options. Those of the mixers, `mixers.NAME.OPTION`, and of what else is
registered are keyword arguments of their builders and are described there. Rules that join several knobs stand in
`config.validate`.
"""

import math
from typing import Any, NamedTuple

from hybrid_flax.errors import ConfigError
from hybrid_flax.ranges import WIDEST, Range, check_number, fits

__all__ = ["KNOBS", "Knob", "check_range"]


class Knob(NamedTuple):
    """One value of a config.

    about: what it does, and the choices where they are names. unit: of a number, "" for a pure one. at_least, above,
    below, at_most: the bounds of a number, closed and open; `check_number` has an upper one where none is given.
    since: the version that added it.
    """

    default: Any
    about: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None
    since: str = "0.1"


KNOBS = {
    "seed": Knob(0, "seed of the parameters, of dropout and of the order of the data", at_least=0, below=2**63),
    # ---- What is learnt ----
    "task.name": Knob(
        "lm", "lm (the next token) | answer (synthetic languages) | classify | multilabel | regress | tag"
    ),
    "task.pooling": Knob(
        "mean", "how a row becomes one vector: last | mean | max | attention (classify, multilabel, regress)"
    ),
    "task.crf": Knob(False, "a linear-chain CRF scores whole sequences of tags (tag)"),
    # ---- From what ----
    "data.path": Knob(
        "shakespeare",
        "lm: shakespeare (embedded), a text file, a table of texts, or a folder of them. answer: synthetic:LANGUAGE. "
        "Others: vader (embedded), a csv, tsv, jsonl, parquet or CoNLL file, a folder of them by split, a folder of "
        "folders by label, or LABEL=FILE,LABEL=FILE with one example a line. All but answer: hub:NAME[,CONFIG]",
    ),
    "data.splits": Knob(
        "",
        "files of the folder data.path by split, where their names do not tell: train=FILE,valid=FILE,test=FILE; a "
        "split may stand several times",
        since="0.2",
    ),
    "data.encoding": Knob("utf-8", "encoding of text files: utf-8 | latin-1 | utf-16 | any that Python knows"),
    "data.text": Knob(
        "text",
        "column or key of the text; a number, counted from 0, where a table has no header. In a CoNLL file the token "
        "is the first column and the tag the last; numbers pick others, such as label 1 for the part of speech",
    ),
    "data.label": Knob(
        "label", "column or key of the label, as data.text; a text with commas is several labels (multilabel)"
    ),
    "data.split_seed": Knob(0, "seed of the random split of labelled examples", at_least=0, below=2**63),
    "data.folds": Knob(0, "cross-validation: number of folds of the labelled examples; 0: none", "folds", at_least=0),
    "data.fold": Knob(0, "cross-validation: the fold that is the test split, counted from 0", at_least=0),
    "data.document": Knob("file", "what a document of a text is: file | paragraph | line"),
    "data.valid_fraction": Knob(
        0.1,
        "share that becomes the validation split: of the characters of a text, from its end, or of labelled examples; "
        "data that have a validation split, such as shakespeare, keep it",
        at_least=0.0,
        below=1.0,
    ),
    "data.test_fraction": Knob(
        0.0,
        "share that becomes the test split, after the validation split; 0 where the data have one",
        at_least=0.0,
        below=1.0,
    ),
    "data.tokenizer": Knob(
        "char",
        "byte | char | word | whitespace (for text that is already cut into words) | bpe. A word of lm includes the "
        "space before it; labelled sentences are cut into words and signs, and tagged ones stay as the file has them",
    ),
    "data.lowercase": Knob(False, "read in lower case (word, bpe); model.characters still sees the case"),
    "data.vocab_size": Knob(10_000, "size of the vocabulary at most (word, whitespace, bpe)", "tokens", at_least=2),
    "data.min_count": Knob(1, "words that occur less often are unknown", "occurrences", at_least=1),
    "data.mode": Knob(
        "windows",
        "lm: windows (random windows) | stream (state carried from step to step: truncated backpropagation through "
        "time) | packed (whole documents side by side). Other tasks: padded (one example a row)",
    ),
    "data.length": Knob(256, "length of a row", "tokens", at_least=1, at_most=2**24),
    "data.word_length": Knob(
        16,
        "length of a word as model.characters reads it; the middle of a longer word is left out",
        "characters",
        at_least=1,
        at_most=1024,
    ),
    "data.batch_size": Knob(
        32,
        "rows of a step, over all devices; 0: the whole training set (data.mode windows, padded)",
        "rows",
        at_least=0,
        at_most=2**20,
    ),
    # ---- By which model ----
    "model.pattern": Knob("cascade:lstm+attn", "layers, separated by commas, repeated to the depth"),
    "model.depth": Knob(2, "number of layers", "layers", at_least=1, at_most=10_000),
    "model.width": Knob(128, "width of the residual stream, D", "features", at_least=1, at_most=WIDEST),
    "model.embedding_width": Knob(
        0,
        "width of the embedding, which is then projected to the model width; 0: the model width, without projection",
        "features",
        at_least=0,
        at_most=WIDEST,
    ),
    "model.vectors": Knob("", "file of word vectors (GloVe or word2vec as text) that the embedding starts from"),
    "model.freeze": Knob(
        "",
        "parameters that are not trained: comma-separated patterns of their places, such as "
        "embed.*,backbone.layer_0.*,*.bias; `plan` says how many they are",
        since="0.2",
    ),
    "model.characters": Knob(
        "none", "how the characters of a word are read, in addition to its embedding: none | cnn | rnn | ngrams"
    ),
    "model.character_width": Knob(
        32, "width of what is read from the characters of a word", "features", at_least=1, at_most=WIDEST
    ),
    "model.norm": Knob("rms", "normalisation before every branch: rms | layer"),
    "model.mlp": Knob("none", "position-wise network after every mixer: none | relu2 | gelu | swiglu"),
    "model.mlp_ratio": Knob(4.0, "hidden width of the MLP divided by the model width", at_least=0.01, at_most=1024.0),
    "model.init_scale": Knob(
        1.0, "factor on the initial matrices; embeddings, biases and scales are left as they are", at_least=0.0
    ),
    "model.tied": Knob(False, "the output layer uses the embedding as its weights"),
    "model.scan_layers": Knob(
        True, "repeats of the pattern are one scan, so that compile time does not grow with the depth"
    ),
    "model.remat": Knob(False, "compute activations again in the backward pass instead of keeping them"),
    "model.dtype": Knob("float32", "compute dtype: float32 | bfloat16; parameters and states stay float32"),
    # ---- How it is trained ----
    "optim.name": Knob("adamw", "adam | adamw | rmsprop | sgd | lion | adafactor | muon"),
    "optim.learning_rate": Knob(3e-3, "peak of the learning rate", at_least=0.0),
    "optim.weight_decay": Knob(0.0, "decoupled weight decay of matrices", at_least=0.0),
    "optim.table_decay": Knob(
        0.0, "decoupled weight decay of embeddings: of words, characters and n-grams", at_least=0.0
    ),
    "optim.b1": Knob(
        0.9, "decay of the first moment (adam, adamw, lion, vectors and tables of muon)", at_least=0.0, below=1.0
    ),
    "optim.b2": Knob(0.99, "decay of the second moment (adam, adamw, lion, rmsprop)", at_least=0.0, below=1.0),
    "optim.epsilon": Knob(1e-8, "added to the denominator of the update", at_least=0.0),
    "optim.momentum": Knob(0.95, "momentum (sgd, muon)", at_least=0.0, below=1.0),
    "optim.nesterov": Knob(True, "Nesterov momentum (sgd, muon, whose vectors and tables then have NAdam)"),
    "optim.clip_norm": Knob(
        1.0, "the norm of the whole gradient is clipped to it; inf: never", above=0.0, at_most=math.inf
    ),
    "optim.accumulate": Knob(1, "gradient accumulation: number of micro-batches per step", "micro-batches", at_least=1),
    "optim.ema_decay": Knob(
        0.0,
        "decay of the running mean of the parameters, which is then evaluated in their place; 0: none",
        at_least=0.0,
        below=1.0,
    ),
    "schedule.name": Knob(
        "cosine", "course of the learning rate: constant | exponential | step | linear | cosine | wsd | rsqrt"
    ),
    "schedule.warmup_steps": Knob(0, "length of the linear rise to the peak", "steps", at_least=0),
    "schedule.final_fraction": Knob(
        0.0, "last learning rate divided by the peak (linear, cosine, wsd)", at_least=0.0, at_most=1.0
    ),
    "schedule.decay_rate": Knob(0.5, "factor of one decay (exponential, step)", above=0.0),
    "schedule.decay_every": Knob(1000, "length of one decay (exponential, step)", "steps", at_least=1),
    "schedule.decay_fraction": Knob(
        0.2, "share of the steps, at the end, over which the learning rate falls (wsd)", at_least=0.0, at_most=1.0
    ),
    "loss.name": Knob(
        "cross_entropy", "lm: cross_entropy | squared_error (of probabilities); other tasks have a loss of their own"
    ),
    "loss.label_smoothing": Knob(
        0.0,
        "share of the target that is spread over all classes (cross-entropy; not regress, not tag with a CRF)",
        at_least=0.0,
        below=1.0,
    ),
    "loss.z_loss": Knob(
        0.0,
        "weight of the squared log-partition (cross-entropy; not regress, not multilabel, not tag with a CRF)",
        at_least=0.0,
    ),
    "train.steps": Knob(1000, "length of the training", "steps", at_least=1),
    "train.init_from": Knob(
        "",
        "run folder, or exported folder, whose weights the run starts from where place and shape agree",
        since="0.2",
    ),
    "train.dropout": Knob(
        0.0, "dropout of embeddings and of every branch of the residual stream", at_least=0.0, below=1.0
    ),
    "train.locked_dropout": Knob(False, "variational dropout: one mask a row for all time steps"),
    "train.embedding_dropout": Knob(
        0.0,
        "dropout of word types: all tokens of a dropped word lose their embedding for a step",
        at_least=0.0,
        below=1.0,
    ),
    "train.word_dropout": Knob(
        0.0, "share of the input tokens that are replaced by the unknown one", at_least=0.0, below=1.0
    ),
    "train.recurrent_dropout": Knob(
        0.0,
        "DropConnect: share of the entries of recurrent matrices that are dropped for a step",
        at_least=0.0,
        below=1.0,
    ),
    "train.patience": Knob(
        0,
        "early stopping: stop after this many evaluations without improvement (0: off); needs eval.best",
        "evaluations",
        at_least=0,
    ),
    "train.parallel": Knob("auto", "how rows are spread over devices: auto | jit | pmap | shard_map"),
    "train.log_every": Knob(20, "interval of the training metrics", "steps", at_least=1),
    "train.checkpoint_every": Knob(500, "interval of the checkpoints", "steps", at_least=1),
    # ---- How it is judged ----
    "eval.every": Knob(250, "interval of evaluations on the validation split; 0: only at the end", "steps", at_least=0),
    "eval.batch_size": Knob(32, "rows of an evaluation step, over all devices", "rows", at_least=1, at_most=2**20),
    "eval.length": Knob(
        0,
        "length of a row in evaluations; 0: that of training, and for tags that of the longest example",
        "tokens",
        at_least=0,
        at_most=2**24,
    ),
    "eval.max_batches": Knob(0, "batches of an evaluation during training; 0: the whole split", "batches", at_least=0),
    "eval.final_batches": Knob(
        0, "batches of an evaluation at the end; 0: the whole split", "batches", at_least=0, since="0.2"
    ),
    "eval.metric": Knob(
        "loss",
        "metric of the task that selects the best checkpoint, and that sweeps and comparisons go by",
    ),
    "eval.best": Knob(False, "final metrics, sample and parameters are those of the best checkpoint, not of the last"),
    "sample.prompt": Knob("\n", "start of the text that is sampled at the end of training and by generate"),
    "sample.tokens": Knob(400, "length of the sample", "tokens", at_least=0),
    "sample.temperature": Knob(0.8, "temperature of the sample; 0: always the likeliest token", at_least=0.0),
    "sample.top_k": Knob(0, "sample from this many of the likeliest tokens; 0: from all", "tokens", at_least=0),
    "sample.top_p": Knob(1.0, "sample from the likeliest tokens that hold this probability", above=0.0, at_most=1.0),
    "log.tensorboard": Knob(False, "write TensorBoard event files: pip install 'hybrid_flax[tensorboard]'"),
    "log.wandb": Knob(False, "log to Weights & Biases: pip install 'hybrid_flax[wandb]'", since="0.2"),
    "log.mlflow": Knob(
        False,
        "log to MLflow, by default into mlflow.db of the run folder: pip install 'hybrid_flax[mlflow]'",
        since="0.2",
    ),
}


def check_range(key: str, value: Any) -> None:
    """Raise ConfigError where `value` is no value of the knob `key`, or out of its range."""
    knob = KNOBS[key]
    if not fits(value, type(knob.default)):
        raise ConfigError(f"{key}={value!r} is no {type(knob.default).__name__}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        check_number(key, value, Range(knob.at_least, knob.above, knob.below, knob.at_most), knob.unit)
