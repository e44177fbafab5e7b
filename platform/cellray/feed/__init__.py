"""The feed: plan -> Ray Data -> batches on the training device."""
