"""Measuring what a model answers, and how fast."""
