"""sparse3d: 3D perception and rendering on sparse voxels."""

import os

__version__ = "0.1.0"

# Threads sleep at barriers instead of spinning: beside other work short steps are many times
# faster. On an idle machine the shortest ones, of about 10 ms, lose up to half their speed, those of
# 40 ms nothing. OpenMP reads it when torch is loaded; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
