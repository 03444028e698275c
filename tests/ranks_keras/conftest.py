"""Tests of Keras 3 inside ranks; see tests/ranks/conftest.py.

One of them: HVD_QSGD_RANK_TESTS=broadcast .venv/bin/python -m pytest tests/test_ranks.py -k keras
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
