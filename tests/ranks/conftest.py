"""These tests run inside ranks: every rank runs all of them in the same order, started by `tests/test_ranks.py`.

By hand: HVD_QSGD_IN_RANKS=1 .venv/bin/python tools/launch.py -n 2 -m pytest tests/ranks -p no:cacheprovider -x -q
"""

from __future__ import annotations

import os

IN_RANKS = "HVD_QSGD_IN_RANKS" in os.environ

collect_ignore_glob = [] if IN_RANKS else ["*"]

if IN_RANKS:
    import horovod.torch as hvd
    import ranktools
    import torch
    from rankhooks import *  # noqa: F403

    torch.set_num_threads(1)
    hvd.init(process_sets=ranktools.PROCESS_SETS)
