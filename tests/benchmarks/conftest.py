"""The benchmarks are programs, not a package: they find each other in their own folder."""

import pathlib
import sys

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

# They do not come with the wheel, and there is nothing to test where they are not.
collect_ignore_glob = [] if BENCHMARKS.is_dir() else ["test_*.py"]
sys.path.insert(0, str(BENCHMARKS))
