"""Alarms: what in a run's figures says that the game goes wrong, and what to do about it."""
