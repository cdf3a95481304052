"""Many runs: what is next (queues), what runs it (executors), who works on it (claims), and what a person sees of it."""
