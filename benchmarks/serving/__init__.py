"""Load and speed of the server, on loopback."""
