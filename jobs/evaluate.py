r"""Score a registered model's embeddings, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/evaluate.py models:/masked@champion \
        --atlas s3://bucket/atlas --task annotation --label cell_type

Options are those of ``cellray evaluate``. A job's folder goes when it ends: give it object storage
and, by MLFLOW_TRACKING_URI in the runtime environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
