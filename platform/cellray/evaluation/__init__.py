"""Evaluation: downstream tasks on frozen embeddings, and their report."""
