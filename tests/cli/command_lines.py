"""What the tests of commands share."""

import os

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
SMALL = ("--model", "mobilenet-digits", "--data", "digits-shifted", "--set", "data.options={val: 0.1, test_draws: 400}")
