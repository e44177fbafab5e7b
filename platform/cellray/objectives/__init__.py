"""Objectives: the losses of self-supervised pre-training. The table is `OBJECTIVES`."""
