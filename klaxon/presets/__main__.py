"""`python -m klaxon.presets [FOLDER]` writes the quickstarts, by default into docs/quickstarts."""

import sys
from pathlib import Path

from klaxon.presets import presets
from klaxon.presets.quickstart import index, render

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/quickstarts")
folder.mkdir(parents=True, exist_ok=True)
for preset in presets().values():
    (folder / f"{preset.name}.md").write_text(render(preset), encoding="utf-8")
(folder / "README.md").write_text(index(list(presets().values())), encoding="utf-8")
