"""sparse3d: 3D perception and rendering on sparse voxels."""

import os

__version__ = "0.1.0"

# Threads sleep at barriers instead of spinning: beside other work short steps are many times
# faster. On an idle machine steps of 10 ms took up to twice as long, those of 40 ms a few percent
# longer. OpenMP reads it when torch is loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
