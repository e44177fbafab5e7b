r"""Point an alias of the registry at a version, if it is better, as a Ray job.

    ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \
        python jobs/promote.py masked --from challenger --if-better model/knn/macro_f1

Options are those of ``cellray models promote``. Give it, by MLFLOW_TRACKING_URI in the runtime
environment, an MLflow server.
"""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main(["models", "promote", *sys.argv[1:]]))
