"""Pure maths on arrays: no parameters are made here and nothing is remembered."""
