"""Sweeps: many runs of one experiment, searched, launched, and gone on with."""
