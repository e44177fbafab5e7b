r"""Pre-train an encoder and register it, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/pretrain.py --recipe configs/pretrain/masked.yaml \
        --atlas s3://bucket/atlas --name masked --storage s3://bucket/runs

Options are those of ``cellray pretrain``. A job's folder goes when it ends: give it object storage
and, by MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
