"""Runs that are killed and started again, and what they come to: ``python tests/chaos``."""
