"""Tests of Keras 3 inside ranks; see tests/ranks/conftest.py.

By hand: HVD_QSGD_IN_RANKS=1 PYTHONPATH=.:tests .venv/bin/python tools/launch.py -n 2 -m pytest tests/ranks_keras
-p no:cacheprovider -x -q
"""

from __future__ import annotations

import os

IN_RANKS = "HVD_QSGD_IN_RANKS" in os.environ

collect_ignore_glob = [] if IN_RANKS else ["*"]

if IN_RANKS:
    import horovod.tensorflow as hvd
    import tensorflow as tf
    from rankhooks import *  # noqa: F403
    from ranks_tensorflow import tftools

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    hvd.init(process_sets=tftools.PROCESS_SETS)
