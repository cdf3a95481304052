"""RNN cells by family: each is one time step and the input map that feeds it."""
