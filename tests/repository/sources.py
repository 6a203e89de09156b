"""The repository's own files, as tests of style read them."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def source_files(*suffixes: str, under: str = "") -> list[Path]:
    """Files that are tracked or about to be, with one of the suffixes (any, if none is given), in a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", under or "."],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = sorted({ROOT / name for name in listed.split("\0") if name})
    return [path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)]


def text_files() -> list[tuple[Path, str]]:
    """Every source file that is text: fuzz corpora and other binary files are left out."""
    texts = []
    for path in source_files():
        if path.relative_to(ROOT).parts[:3] == ("rust", "fuzz", "corpus"):
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            texts.append((path, content.decode()))
    return texts


def where(path: Path, line: int | None = None) -> str:
    """A place as editors and terminals link it."""
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"
