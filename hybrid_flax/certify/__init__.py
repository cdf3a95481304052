"""The certificate: the properties that every mixer, and every fusion of mixers, has to have.

Each property is a function of a subject and of what varies: rows of documents and padding, splits, seeds. It returns
its worst relative error and raises `Violation` where a bound is exceeded. `run.certify` draws cases over the registry.
"""
