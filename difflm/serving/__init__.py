"""An HTTP server in front of one engine, in the conventions that clients of chat completions know."""
