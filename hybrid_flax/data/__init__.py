"""Text in: corpora, tokenizers, and batches as pure functions of (seed, step)."""
