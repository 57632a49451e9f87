"""What a run will cost - steps, tokens, memory, time - from its configuration, before it runs."""
