"""kill -9 between state change, send and mark. 200 lives by `python tests/alerts_killed.py`; fewer here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_killed_at_sixty_random_moments_every_final_state_arrives_and_copies_come_from_one_window_only() -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, str(HERE / "alerts_killed.py"), "--lives", "60", "--seed", "1"], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.stdout, done.stderr
    books = json.loads(done.stdout)
    assert [books[name] for name in ("forgotten", "untold", "disordered", "unexplained")] == [[], [], [], []]
    assert books["acknowledged"] > 0 and books["delivered"] > 0 and books["killed_leased"] > 0
    assert books["copies"] <= books["killed_sent"] and done.returncode == 0
