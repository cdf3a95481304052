"""WikiText-2 by words, in carried streams: a model of the class of AWD-LSTM (Merity et al. 2018), 33 M parameters.

    python launch.py --config=experiments/wikitext2.py --config.data.path=FOLDER
    python launch.py --config=experiments/wikitext2.py:lstm,cascade:lstm+swa,lstm --config.data.path=FOLDER

FOLDER has train.txt, valid.txt and test.txt: 2,088,628, 217,646 and 245,569 tokens of 33,278 kinds, line ends included.
This is a run for a GPU: 40 epochs of 80 streams, 70 tokens a step. 200 steps of it on a CPU, with four streams
(`--config.data.batch_size=4 --config.eval.every=50 --config.eval.max_batches=5`), bring validation perplexity on those
batches from 13,540 after 50 steps to 2,260, 2,089 and 1,813 for `lstm`, and from 13,334 to 2,280, 2,209 and 1,994 for
the hybrid; the rate is still rising by then.

What `plan` says of parameters and optimiser (502 MiB) is what the compiled step takes as arguments (502). Its
temporaries come to 0.4 GiB with four streams and 3.1 GiB with 80, of which the plan's activations (1.5 GiB) are half:
gradients, and the logits of 33,278 words more than once, come on top of it.
"""

from ml_collections import ConfigDict

from hybrid_flax.config import base_config


def get_config(arg: str = "lstm") -> ConfigDict:
    """arg: a pattern of layers; lstm, and fusions of it, have 1050 features of state."""
    config = base_config()
    config.data.path = ""
    config.data.tokenizer = "whitespace"
    config.data.vocab_size = 100_000
    config.data.mode = "stream"
    config.data.length = 70
    config.data.batch_size = 80
    config.model.pattern = arg or "lstm"
    config.model.depth = 3
    config.model.width = 400
    config.model.tied = True
    config.mixers.lstm.state_width = 1050
    config.mixers.swa.num_heads = 8
    config.mixers.swa.window = 140
    config.train.steps = 40 * 372
    config.train.dropout = 0.4
    config.train.locked_dropout = True
    config.train.embedding_dropout = 0.1
    config.train.recurrent_dropout = 0.5
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 0.25
    config.optim.ema_decay = 0.999
    config.schedule.warmup_steps = 400
    config.eval.every = 372
    config.eval.batch_size = 10
    config.sample.prompt = " = "
    return config
