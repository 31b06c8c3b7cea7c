"""Tools set how OpenMP's threads wait before torch is loaded, which is when it is read."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TOOLS = ["train", "test", "visualize", "prepare_data", "flow", "ground", "relocalize", "export"]
SPY = """
import os, runpy, sys

class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Spy())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def policy(tool, **values):
    """$OMP_WAIT_POLICY as a tool first imports torch."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", SPY, str(ROOT / "tools" / f"{tool}.py")],
        capture_output=True,
        text=True,
        env={**environment, **values},
    )
    return run.stdout.strip() or run.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_threads_sleep_at_barriers(tool):
    assert policy(tool) == "PASSIVE"


def test_the_users_own_policy_stays():
    assert policy("train", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
