"""Mixers: the primitives `recurrent` and `attention`, the fusions of mixers, and their registry."""
