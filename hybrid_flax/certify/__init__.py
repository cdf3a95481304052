"""The certificate: the properties that every mixer, and every fusion of mixers, has to have.

Each property is a function of a subject and of what varies: rows of documents and padding, splits, seeds. It returns
its worst relative error and raises `Violation` where a bound is exceeded. `certify` draws cases over the registry.
"""

from hybrid_flax.certify.proofs import PROPERTIES, Counterexample, Finding, Property, certify, prove

__all__ = ["PROPERTIES", "Counterexample", "Finding", "Property", "certify", "prove"]
