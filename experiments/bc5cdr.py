"""Chemicals and diseases in abstracts (BC5CDR; Li et al. 2016): words and their spelling, read both ways, and a CRF.

    python launch.py --config=experiments/bc5cdr.py --config.data.path=FOLDER

FOLDER has train.tsv, devel.tsv and test.tsv (word, tab, tag). The best of four checks on the first 768 sentences of
devel.tsv picks the checkpoint: strict span F1 is 79.3 on the whole of it and 77.7 on the test split (chemicals 81.8,
diseases 72.9). About eight minutes on one CPU core. A CRF on hand-made features has 78.3. What closes the rest was not
tried: most likely what such features know of words that training has not (affixes, shapes), or vectors learnt from
biomedical text (`model.vectors`).
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "") -> ConfigDict:
    """Takes no arg."""
    config = base_config()
    config.task.name = "tag"
    config.task.crf = True
    config.data.path = ""
    config.data.mode = "padded"
    config.data.tokenizer = "word"
    config.data.lowercase = True
    config.data.min_count = 2
    config.data.length = 48
    config.data.word_length = 14
    config.data.batch_size = 32
    config.model.pattern = "bi:mingru"
    config.model.depth = 2
    config.model.width = 128
    config.model.embedding_width = 96
    config.model.characters = "cnn"
    config.model.character_width = 48
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.1
    config.optim.ema_decay = 0.99
    config.train.dropout = 0.3
    config.train.word_dropout = 0.1
    config.train.steps = 1400
    config.eval.every = 350
    config.eval.batch_size = 64
    config.eval.max_batches = 12
    config.eval.metric = "f1"
    config.eval.best = True
    return config
