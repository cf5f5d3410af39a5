"""Layouts of a pair batch for one forward of the model."""
