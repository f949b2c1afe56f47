"""`python -m pipeline`: run the pipeline with the environment's settings."""

import os
import sys

# Read by NumPy's linear algebra when it is loaded, so it has to be said before. Its own threads would take the core
# from the thread that reads while the other scores: the matrices of a batch are too small to gain from them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pipeline.app import main

sys.exit(main())
