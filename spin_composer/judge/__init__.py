"""Measures of sampled responses beside real ones, and the choice of a run's best iteration."""
