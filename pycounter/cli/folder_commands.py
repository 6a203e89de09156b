"""The commands about a shard's folder that no server has open, or a backup."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pycounter.cli.terminal import print_json, progress_bar

if TYPE_CHECKING:
    from pycounter.storage.check import FolderReport

__all__ = ["check"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]
Folder = Annotated[str, typer.Argument(help="The shard's folder.", metavar="DIR", show_default=False)]


def check(
    directory: Annotated[str, typer.Argument(help="A shard's folder, or a backup.", metavar="DIR")],
    json_: Json = False,
) -> None:
    """Read everything in a folder that no server has open, and say what it holds and what is wrong with it.

    Changes nothing. Exit code 0: it is sound, and a server would start on it. 1: it is damaged, or can't be read.
    """
    from pycounter.storage.check import check_folder

    with progress_bar(enabled=not json_) as on_progress:
        report = check_folder(directory, on_progress)
    if json_:
        print_json({**asdict(report), "is_sound": report.is_sound})
    else:
        sys.stdout.write(describe(report))
    if not report.is_sound:
        raise typer.Exit(1)


def describe(report: FolderReport) -> str:
    """The report in sentences."""
    what = "a backup of shard" if report.kind == "backup" else "shard"
    lines = [
        f"{report.directory}: {what} {report.name}, identity {report.identity}",
        f"  counters    {report.counters:,}",
        f"  sessions    {report.sessions:,}, operation ids {report.ids:,}, those that ran out included",
        f"  checkpoint  commit {report.checkpoint_commit:,}, {report.pages:,} pages, {report.checkpoint_bytes:,} bytes",
    ]
    if report.kind == "shard":
        lines.append(
            f"  log         {report.log_commits:,} commits up to {report.last_commit:,}, {report.log_bytes:,} bytes"
        )
    if report.torn is not None:
        lines.append(
            f"  torn end    {report.torn.cut_bytes:,} bytes of {report.torn.file} from byte {report.torn.keep_bytes:,} "
            "on: a commit that was never acknowledged. Nothing is wrong with that, the next start cuts it off"
        )
    if report.is_sound:
        return "\n".join([*lines, "Sound: everything is there and unchanged.", ""])
    for number, damage in enumerate(report.damage, 1):
        lines.append(f"damage {number}: {damage.what}")
        lines.append(f"  in {damage.file}{_place(damage.first_byte, damage.end_byte)}")
    return "\n".join([*lines, *_consequences(report), ""])


def _place(first: int | None, end: int | None) -> str:
    if first is None:
        return ""
    return f", byte {first}" if end is None else f", bytes {first} to {end}"


def _consequences(report: FolderReport) -> list[str]:
    lines = []
    if report.lost_commits:
        runs = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in report.lost_commits)
        lines.append(
            f"Commits {runs} can't be read; {report.commits_behind_damage:,} commits behind the damage can be."
        )
    if report.lost_pages:
        lines.append(
            f"{report.lost_pages:,} of {report.pages:,} pages can't be read, with all counters in them that the log "
            "doesn't set again."
        )
    if report.kind == "backup":
        lines.append("Damaged: don't restore it, take another backup. Nothing was changed.")
    else:
        lines.append(
            "Damaged: no server starts on it. Restore a backup into a new folder with `pycounter restore`, or let "
            "`pycounter repair` keep what can be read, as it says before it does it. Nothing was changed."
        )
    return lines
