"""Configs: knobs and mixer options of wrong types, out of range, huge, empty; knobs that do not go together."""

from fuzz.case import Case, Part, nonsense, valid
from fuzz.judge import Action, Strategy
from fuzz.values import draw_value

from hybrid_flax.knobs import KNOBS
from hybrid_flax.mixers.registry import mixer_options

__all__ = ["CONFIGS", "sense_of"]

_SENSES = {
    "seed": "seed split_seed",
    "count": "length word_length vocab_size depth width character_width accumulate steps log_every checkpoint_every "
    "batch_size min_count decay_every num_heads num_kv_heads head_width window block memory_blocks chunk num_states "
    "taps key_width gate_rank state_width projection blocks expansion state_size rank groups",
    "count or 0": "folds fold embedding_width warmup_steps patience every max_batches final_batches tokens top_k sinks",
    "share below 1": "valid_fraction test_fraction b1 b2 momentum ema_decay label_smoothing dropout embedding_dropout "
    "word_dropout recurrent_dropout lower_bound",
    "share": "final_fraction decay_fraction rope_fraction",
    "at least 0": "init_scale learning_rate weight_decay table_decay epsilon z_loss",
    "above 0": "mlp_ratio decay_rate top_p rope_base soft_cap min_step max_step max_radius max_phase",
    "finite": "forget_bias input_bias highway_bias",
    "at most inf": "clip_norm",
    "truth": "crf lowercase tied scan_layers remat nesterov locked_dropout best tensorboard wandb mlflow qk_norm "
    "causal peephole layer_norm reset_after use_phase negative_eigenvalues",
    "choice": "document tokenizer mode characters norm mlp dtype parallel metric position implementation gate form "
    "activation forget_gate output_norm output_gate pooling name",
    "encoding": "encoding",
    "label": "project entity group experiment uri",
    "file": "path vectors init_from",
}
_BY_NAME = {name: sense for sense, names in _SENSES.items() for name in names.split()}
_BY_KEY = {
    "data.batch_size": "count or 0",
    "eval.length": "count or 0",
    "sample.temperature": "at least 0",
    "data.text": "label",
    "data.label": "label",
    "model.freeze": "choice",
}
# Right in itself, and in this small run not: more than its data, or not dividing what it must.
_TOO_MUCH = {"data.vocab_size", "optim.accumulate", "data.word_length", "model.vectors", "train.init_from"}
_TOO_MUCH |= {"log.tensorboard", "log.wandb", "log.mlflow"}
_CROSS = (
    ("data.folds=1", "data.fold=0"),
    ("data.folds=3", "data.fold=3"),
    ("data.batch_size=0", "data.mode=stream"),
    ("train.patience=2", "eval.every=0"),
    ("train.patience=2", "eval.every=1"),
    ("eval.best=true", "eval.every=0"),
    ("train.steps=2", "schedule.warmup_steps=2"),
    ("loss.name=squared_error", "loss.z_loss=0.1"),
    ("data.mode=stream", "model.pattern=attn"),
    ("data.mode=padded",),
    ("task.name=classify",),
    ("task.name=answer",),
    ("task.name=tag", "task.crf=true"),
    ("data.path=synthetic:parity",),
    ("optim.accumulate=3",),
    ("data.tokenizer=byte", "train.word_dropout=0.1"),
    ("model.pattern=attn", "train.recurrent_dropout=0.1"),
    ("model.pattern=attn", "mixers.attn.num_heads=3"),
    ("model.pattern=attn", "mixers.attn.num_heads=32"),
    ("model.pattern=attn", "mixers.attn.num_heads=4", "mixers.attn.num_kv_heads=3"),
    ("model.pattern=attn", "mixers.attn.causal=false"),
    ("model.pattern=bi:lstm",),
    ("model.pattern=rglru", "mixers.rglru.blocks=3"),
    ("model.pattern=lru", "mixers.lru.min_radius=0.9", "mixers.lru.max_radius=0.5"),
    ("model.pattern=s5", "mixers.s5.min_step=0.5", "mixers.s5.max_step=0.1"),
    ("data.length=100000",),
    ("data.batch_size=1000000", "data.mode=stream"),
    ("data.valid_fraction=0.6", "data.test_fraction=0.6"),
    ("data.valid_fraction=0.0", "eval.every=1"),
    ("model.characters=cnn",),
    ("model.freeze=*",),
    ("model.freeze=embed.*,",),
    ("model.vectors=x.txt", "train.init_from=runs/x"),
    ("eval.metric=f1",),
    ("sample.prompt=",),
    ("data.path=hub:",),
    ("data.path=synthetic:", "task.name=answer"),
    ("data.path=synthetic:mqar,pairs=-1", "task.name=answer", "data.mode=padded"),
    ("data.path=synthetic:mqar,pairs=nan", "task.name=answer", "data.mode=padded"),
    ("data.path=synthetic:parity,length=9", "task.name=answer", "data.mode=padded"),
)
_WRONG_TYPES = ("None", "[1]", "{}", "b'x'", "1j", "object()", "float('nan')", "lambda: 1", "(1, 2)", "'x' * 10**6")
_QUICK = ("optim.learning_rate", "optim.weight_decay", "optim.b1", "optim.epsilon", "optim.clip_norm", "seed")


def sense_of(key: str) -> str | None:
    """What the value of a knob or of a mixer option must be; None where this list does not say."""
    return _BY_KEY.get(key) or _BY_NAME.get(key.rpartition(".")[2])


def _make(rng) -> Case:
    form = rng.choices(("knob", "option", "cross", "typed"), (30, 50, 12, 8))[0]
    verb = rng.choices(("plan", "preview", "train"), (7, 1, 1))[0]
    if form == "cross":
        parts = [nonsense(*text.split("=", 1)) for text in rng.choice(_CROSS)]
        return Case("config", ("plan", "flags"), tuple(parts))
    if form == "option":
        name = rng.choice([name for name, options in sorted(mixer_options().items()) if options])
        options = sorted(mixer_options()[name].items())
        numbers = [{float: 24, int: 8}.get(option.type, 1) for _, option in options]
        key = f"mixers.{name}.{rng.choices([key for key, _ in options], numbers)[0]}"
        whole = f"{name}:gru" if name == "sharnn" else name
        layer = rng.choice((whole, whole, f"cascade:lstm+{whole}", f"add:{whole}+gru", f"gate:add:gru+{whole}+conv"))
        part = _right_in_itself(draw_value(rng, key, sense_of(key) or "finite", (0, 8, 2)), sense_of(key))
        if rng.random() < 0.3 and not {*part.text} & {*",+:@"}:  # which end it where it stands with the name
            text = layer.replace(name, f"{name}@{key.rpartition('.')[2]}={part.text}", 1)
            return Case("config", ("plan", "flags"), (part._replace(name="model.pattern", text=text),))
        return Case("config", ("plan", "flags"), (valid("model.pattern", layer), part))
    known = [key for key in KNOBS if key != "model.pattern"]
    numbers = [{float: 6, int: 2}.get(type(KNOBS[key].default), 1) for key in known]
    keys = list(dict.fromkeys(rng.choices(known, numbers, k=rng.choice((1, 1, 1, 2, 3)))))
    if form == "typed":
        odd = Part("unknown", keys[0], rng.choice(_WRONG_TYPES))
        return Case("config", (verb, "file"), (odd,))
    if verb == "train" and rng.random() < 0.3:
        keys = [rng.choice(_QUICK)]
    parts = [_right_in_itself(draw_value(rng, key, sense_of(key) or "label"), sense_of(key)) for key in keys]
    return Case("config", (verb, "flags"), tuple(parts))


def _right_in_itself(part: Part, sense: str | None) -> Part:
    """Of several right values nobody knows here whether they go together, and of a value without a sense nothing."""
    if sense is None:
        return part._replace(verdict="unknown")
    alone = sense in ("truth", "count", "count or 0", "share", "finite", "share below 1", "encoding", "file", None)
    return part._replace(verdict="unknown") if part.verdict == "valid" and (alone or part.name in _TOO_MUCH) else part


def _actions(case, here, room) -> list[Action]:
    verb, way = case.frame
    config = room / "lm.py"
    changes = [f"--config.{part.name}={part.text.replace('{here}', str(here))}" for part in case.parts]
    if way == "file":
        lines = [f"    config.{part.name} = {part.text}" for part in case.parts]
        config = here / "typed.py"
        source = (room / "lm.py").read_text()
        config.write_text(source.replace("    return ", "    config = ") + "\n".join([*lines, "    return config\n"]))
        changes = []
    workdir = [f"--workdir={here / 'run'}"] if verb == "train" else []
    return [Action([verb, f"--config={config}", *workdir, *changes])]


CONFIGS = Strategy(56, _make, _actions)
