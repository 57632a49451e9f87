"""Conversations: what is remembered and what the commands do, over a local model or a server. Knows no terminal."""
