"""Sweeps: which recipe to train, by Ray Tune and Optuna."""
