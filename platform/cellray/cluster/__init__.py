"""A cluster on this machine, and jobs on any cluster."""
