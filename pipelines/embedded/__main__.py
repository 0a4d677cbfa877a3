"""`python -m pipelines.embedded`: the keeper of the embedded Airflow."""

import sys

from pipelines.embedded.keeper import main

sys.exit(main())
