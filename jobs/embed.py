r"""Embed every cell of an atlas with a registered model, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/embed.py models:/masked@champion \
        --atlas s3://bucket/atlas --out s3://bucket/masked.parquet

Options are those of ``cellray embed``. The cluster's tasks write Parquet files as they embed, so
that no process holds the atlas; ``--out s3://bucket/embedded.zarr`` makes a new atlas with the
embeddings in obsm. A job's folder goes when it ends: give it object storage and, by
MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
