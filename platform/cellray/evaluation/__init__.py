"""Evaluation of registered models: by tasks and suites, into reports and MLflow; embedding."""
