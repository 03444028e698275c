"""The papers' experiments, one command each: ``python -m experiments.bucket_sizes``; ``make paper`` runs all.

What they share: command.py (the command line), runs.py (finished runs in CSV files), figures.py; data.py, models.py,
training.py; workers.py (workers in one process) and ranks.py (real ranks).
"""

import sys
from pathlib import Path

# The examples are scripts whose modules are imported by their own names.
sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("examples", "tools"))
