r"""Turn counts into an atlas, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/ingest.py /data/counts.h5ad --out s3://bucket/atlas

Options are those of ``cellray ingest``. A job's folder goes when it ends: give it object storage
and, by MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
