"""Other mixers in the places of a model, for whoever looks into it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import flax.linen as nn
import jax

from hybrid_flax.models.model import Block, SequenceModel
from hybrid_flax.typing import Mixer, Params

__all__ = ["swapped", "unscanned"]


def unscanned(model: SequenceModel, params: Params) -> tuple[SequenceModel, Params]:
    """The same model with every layer by itself: their parameters are backbone.rest.layer_0, layer_1, ..."""
    backbone = dict(params["backbone"])
    repeats, rest = backbone.pop("repeats", {}), backbone.pop("rest", {})
    scanned = len(model.design.layers) - len(rest)
    layers = {}
    for index in range(scanned):
        repeat, place = divmod(index, len(repeats))
        layers[f"layer_{index}"] = jax.tree.map(lambda leaf: leaf[repeat], repeats[f"layer_{place}"])  # noqa: B023
    for place in range(len(rest)):
        layers[f"layer_{scanned + place}"] = rest[f"layer_{place}"]
    design = model.design._replace(scan_layers=False, remat=False)
    return SequenceModel(design), params | {"backbone": backbone | {"rest": layers}}


def swapped(swap: Callable[[int, Mixer], Mixer]) -> AbstractContextManager:
    """A context in which unscanned models that are traced have swap(number of the layer, mixer) for every mixer."""

    def interceptor(call, arguments, keywords, context):
        made = call(*arguments, **keywords)
        if isinstance(context.module, Block) and context.method_name == "layer_mixer":
            name = context.module.name
            assert name is not None  # unscanned layers are named by their number
            return swap(int(name.removeprefix("layer_")), made)
        return made

    return nn.intercept_methods(interceptor)
