"""What "a mixer works" means, as functions; and the proof that each of them can fail."""
