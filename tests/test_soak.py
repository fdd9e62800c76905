"""A few real kills and a few hundred damaged files; `make soak` and `make fuzz` do many more."""

import os
import subprocess
import sys

from fuzz import fuzz
from helpers import ROOT


def test_jobs_killed_by_the_kernel_leave_the_bits_of_unbroken_ones():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(  # a process of its own: it forks, which no process with threads should
        [sys.executable, str(ROOT / "tests" / "soak.py"), "--kills", "8", "--seed", "1",
         "--rows", "0"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left the same bits" in done.stdout


def test_damaged_files_of_every_kind_are_taken_or_refused_by_our_own_errors(tmp_path):
    outcomes, failures = fuzz(400, 0, tmp_path)
    assert failures == []
    assert outcomes.total() == 400
    files = {name.partition(": ")[0] for name in outcomes}
    assert len(files) == 27
    assert {name.partition(": ")[2] for name in outcomes} >= {
        "taken", "refused with 2", "refused with 3", "refused with 4",
    }  # fmt: skip
