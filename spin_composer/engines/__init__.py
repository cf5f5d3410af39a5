"""Engines: who answers an iteration's prompts."""
