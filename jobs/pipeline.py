r"""From files of counts to a promoted model, by one file, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/pipeline.py configs/pipeline/plates.yaml

Options are those of ``cellray pipeline``. A job's folder goes when it ends: let the file name
object storage for ``ingest.out`` and ``pretrain.storage``, and give it, by MLFLOW_TRACKING_URI in
the runtime environment, an MLflow server: that keeps which steps are done, so that the same job
submitted again goes on at the step that failed.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
