r"""Sweep over recipes and register the best model, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/sweep.py --recipe configs/sweep/masked.yaml \
        --atlas s3://bucket/atlas --name masked --storage s3://bucket/runs

Options are those of ``cellray sweep``. A job's folder goes when it ends: give it object storage
and, by MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
