"""`python -m pipeline`: run the pipeline with the environment's settings."""

import sys

from pipeline.app import main

sys.exit(main())
