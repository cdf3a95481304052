"""The fair comparison: models of one size on the same tasks, the same search, several seeds."""
