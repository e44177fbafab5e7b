"""Training: Ray Train workers, DDP and FSDP2, checkpoints."""
