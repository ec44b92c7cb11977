"""Training: photographs of parts in, model packages out."""

import os

# Threads that spin while they wait cost the other processes of a busy machine, and themselves, several times the time.
# OpenMP reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
