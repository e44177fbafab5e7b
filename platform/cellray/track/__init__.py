"""Tracking: MLflow runs and the Model Registry."""
