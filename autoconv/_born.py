"""When this library was imported, whenever what needs MLX was: from then on the age of a process counts."""

import time

IMPORTED = time.perf_counter()
"""As `time.perf_counter` has it."""
