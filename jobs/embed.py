r"""Embed every cell of an atlas with a registered model, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/embed.py models:/masked@champion \
        --atlas s3://bucket/atlas --out /mnt/shared/masked.parquet

Options are those of ``cellray embed``. A job's folder goes when it ends, and so do a node's own
disks: mount one that all nodes share (here /mnt/shared, say NFS) for the file that it writes.
Give it, by MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
