"""The papers' experiments, one command each: ``python -m experiments.bucket_sizes``; ``make paper`` runs all.

What they share: runs.py (finished runs in CSV files), command.py (the command line), data.py, workers.py (workers in one
process), training.py, ranks.py (real ranks), figures.py.
"""

import sys
from pathlib import Path

# The examples are scripts whose modules are imported by their own names.
sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("examples", "tools"))
