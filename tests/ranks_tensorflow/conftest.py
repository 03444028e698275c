"""TensorFlow's tests inside ranks; see tests/ranks/conftest.py.

By hand: HVD_QSGD_IN_RANKS=1 TF_USE_LEGACY_KERAS=1 .venv/bin/python tools/launch.py -n 2 -m pytest
tests/ranks_tensorflow -p no:cacheprovider -x -q

With HVD_QSGD_PRETENDED_GPU= and HVD_QSGD_CUDA_LIBRARY= the library made from tests/tensorflow_device/, those that do
not train run on a GPU that is pretended.
"""

from __future__ import annotations

import os

IN_RANKS = "HVD_QSGD_IN_RANKS" in os.environ
PRETENDED_GPU = os.environ.get("HVD_QSGD_PRETENDED_GPU")

collect_ignore_glob = [] if IN_RANKS else ["*"]

if IN_RANKS:
    import horovod.tensorflow as hvd
    import tensorflow as tf
    import tftools
    from rankhooks import *  # noqa: F403

    if PRETENDED_GPU:
        from tensorflow.python.framework import load_library

        load_library.load_pluggable_device_library(PRETENDED_GPU)
        # TensorFlow lacks the kernels to train there, and not all tests are about the device.
        collect_ignore_glob = [f"test_{name}.py" for name in ("error_feedback", "schedule", "training", "variance")]
    else:
        collect_ignore_glob = ["test_gpu.py"]
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    hvd.init(process_sets=tftools.PROCESS_SETS)
