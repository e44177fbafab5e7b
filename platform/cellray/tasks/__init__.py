"""Downstream tasks: from embeddings and labels to scores, tables and figures."""
