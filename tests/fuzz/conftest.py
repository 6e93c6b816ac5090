"""The worlds that are fuzzed are those of the daemon's own tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "swarm" / "daemon"))
