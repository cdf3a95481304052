"""The Flax shell: it owns parameters and names, and calls the pure functions of `mixers` and `ops`."""
