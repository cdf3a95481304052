"""Many runs: what is next (queues), what runs it (executors), who works on it (claims), and what is seen of it."""
