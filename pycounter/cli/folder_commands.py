"""The commands about a shard's folder that no server has open, or a backup."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pycounter.cli.terminal import print_json, progress_bar
from pycounter.errors import PyCounterError

if TYPE_CHECKING:
    from pycounter.storage.check import FolderReport
    from pycounter.storage.cluster_backup import ClusterBackupReport

__all__ = ["check", "repair", "restore"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]
Folder = Annotated[str, typer.Argument(help="The shard's folder.", metavar="DIR", show_default=False)]


def check(
    directory: Annotated[
        str, typer.Argument(help="A shard's folder, or a shard's or a cluster's backup.", metavar="DIR")
    ],
    json_: Json = False,
) -> None:
    """Read everything in a folder that no server has open, and say what it holds and what is wrong with it.

    A cluster's backup is read as a whole. Changes nothing. Exit code 0: it is sound, and a server would start on it, or
    a restore take it. 1: it is damaged or incomplete, or can't be read.
    """
    from pycounter.storage.check import check_folder
    from pycounter.storage.cluster_backup import ClusterBackupReport, check_cluster_backup, is_cluster_backup

    check_it = check_cluster_backup if is_cluster_backup(directory) else check_folder
    with progress_bar(enabled=not json_) as on_progress:
        report: FolderReport | ClusterBackupReport = check_it(directory, on_progress)
    if json_:
        print_json({**asdict(report), "is_sound": report.is_sound})
    elif isinstance(report, ClusterBackupReport):
        sys.stdout.write(_describe_cluster(report))
    else:
        sys.stdout.write(describe(report))
    if not report.is_sound:
        raise typer.Exit(1)


def repair(
    directory: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask: for scripts.")] = False,
    json_: Json = False,
) -> None:
    """Make a damaged folder one that starts, of everything that can still be read, after saying what is lost.

    The result is a new shard: another identity, no sessions, no operation ids. The old files are kept beside it. A
    sound folder is left as it is. To restore a backup into a new folder may lose less.
    """
    from pycounter.storage.repair import plan_repair

    with progress_bar(enabled=not json_) as on_progress, plan_repair(directory, on_progress) as plan:
        if not json_:
            sys.stdout.write(describe(plan.report) if plan.action != "finish" else "")
        if plan.action == "nothing":
            kept = None
            if not json_:
                sys.stdout.write("There is nothing to repair, and nothing was changed.\n")
        else:
            if not json_:
                sys.stdout.write(_intention(plan.action, plan.report))
                sys.stdout.flush()
            _confirm(yes)
            kept = plan.carry_out(on_progress)
            if not json_:
                sys.stdout.write(f"Done: the folder starts. The old files are in {kept}.\n")
        if json_:
            facts = {"action": plan.action, "old_files": kept and str(kept), "before": asdict(plan.report)}
            print_json(facts)


def _intention(action: str, report: FolderReport) -> str:
    if action == "finish":
        return "A repair of this folder was interrupted after the new state was made. It will be finished.\n"
    if action == "move":
        return (
            "The files that don't belong here will be moved into a folder before-repair-... beside the log. "
            "Nothing is lost, and the shard stays the same.\n"
        )
    lost = [f"Kept: {report.counters:,} counters, each with the last value that can be read."]
    if report.lost_commits:
        lost.append("Lost: what the commits named above changed, unless a later one changed the same counter again.")
    if report.lost_pages:
        lost.append("Lost: the counters in the pages named above, unless the log sets them again.")
    if report.epoch == 0:
        lost.append("Lost, perhaps: commits at the end of the log, which only the manifest would have known of.")
    lost.append(
        f"Dropped: {report.sessions:,} sessions and {report.ids:,} operation ids, and the identity. Clients find "
        "another shard; what they had not been answered stays unknown to them."
    )
    lost.append("The old files will be moved into a folder before-repair-... and not be deleted.")
    return "\n".join(lost) + "\n"


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise PyCounterError("nobody is there to be asked: nothing was changed; give --yes to repair without asking")
    if not typer.confirm("Repair?"):
        raise PyCounterError("not confirmed: nothing was changed")


def restore(
    backup: Annotated[str, typer.Argument(help="The backup's folder.", metavar="BACKUP")],
    directory: Annotated[str, typer.Argument(help="The folder to make: new, or empty.", metavar="DIR")],
    json_: Json = False,
) -> None:
    """Make a shard's folder from a backup, or a cluster's from a cluster's, after checking all of it.

    Each shard is a new one: another identity, no sessions, no operation ids, so that no old retry counts twice.
    """
    from pycounter.storage.cluster_backup import is_cluster_backup
    from pycounter.storage.restore import restore_backup

    if is_cluster_backup(backup):
        _restore_cluster(backup, directory, json_=json_)
        return
    with progress_bar(enabled=not json_) as on_progress:
        restored = restore_backup(backup, directory, on_progress)
    if json_:
        print_json(asdict(restored))
    else:
        sys.stdout.write(
            f"{restored.counters:,} counters are in {restored.directory}, a new shard with identity "
            f"{restored.identity}. Start it with: pycounter serve --data {restored.directory}\n"
        )


def _restore_cluster(backup: str, directory: str, *, json_: bool) -> None:
    from pycounter.storage.cluster_backup import restore_cluster_backup

    with progress_bar(enabled=not json_) as on_progress:
        shards = restore_cluster_backup(backup, directory, on_progress)
    if json_:
        print_json({"directory": directory, "shards": [asdict(shard) for shard in shards]})
    else:
        sys.stdout.write(
            f"The counters of {len(shards)} shards are in {directory}, each a new shard. Start the cluster with: "
            f"pycounter serve --shards {len(shards)} --data {directory}\n"
        )


def _describe_cluster(report: ClusterBackupReport) -> str:
    text = f"{report.directory}: a backup of cluster {report.cluster}\n" + "".join(map(describe, report.shards))
    text += "".join(f"problem: {problem}\n" for problem in report.problems)
    if report.is_sound:
        return text + "Sound: every shard's backup is there, and they belong together.\n"
    return text + "Don't restore it: take another backup. Nothing was changed.\n"


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
