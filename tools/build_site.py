"""Builds the documentation as a site in target/site: `make docs`.

The site's pages lie as the documents lie in the repository, so that the links between them lead to the same places.
Other files that a document links to, such as an example, are copied beside them. A link that leads nowhere, an unknown
anchor or a reference to an unknown object fails the build.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "target/site-source"
CONFIG = ROOT / "tools/mkdocs.yml"
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
#: For the tests, which don't run such a block; the generator takes only the language.
FENCE_OPTION = re.compile(r"^(```python) no-run$", re.MULTILINE)


def collect() -> None:
    """Copies the documents, and what they link to, to where the site is built from."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    wanted = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    wanted += sorted((ROOT / "docs").rglob("*.md"))
    copied: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in copied or not path.is_file() or not path.is_relative_to(ROOT):
            continue
        copied.add(path)
        target = SOURCE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copyfile(path, target)
            continue
        text = path.read_text()
        target.write_text(FENCE_OPTION.sub(r"\1", text))
        wanted += [(path.parent / link).resolve() for link in LINK.findall(text)]


def main() -> None:
    """Builds, and prints what the generator says if it refuses."""
    collect()
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIG)]
    # The theme's notice about the future of MkDocs is no finding.
    done = subprocess.run(
        mkdocs, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    print(f"the site is in target/site: {sys.executable} -m http.server --directory target/site")


if __name__ == "__main__":
    main()
