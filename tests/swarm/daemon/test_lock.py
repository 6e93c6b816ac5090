"""A directory belongs to one process at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.daemon.lock import lock_directory
from swarm.daemon.options import UserError

TAKE = "import sys; from pathlib import Path; from swarm.daemon.lock import lock_directory; "


def test_a_directory_in_use_is_refused_by_name_of_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            TAKE + "lock_directory(Path(sys.argv[1])); print('held', flush=True); input()",
            tmp_path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            lock_directory(tmp_path)
        holder.kill()
    os.close(lock_directory(tmp_path))
