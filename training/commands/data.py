"""palate forget: remove a person from what was collected, and say which releases learnt from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from registry.errors import RegistryError
from serving.errors import BadRequest
from training.commands import HomeOption, JsonOption, console, one_line_errors, open_migrated, open_releases, print_json
from training.config import TrainingConfig

if TYPE_CHECKING:
    from training.people import ForgetReport, TrainedRelease

commands = typer.Typer()


@commands.command()
@one_line_errors()
def forget(
    user: Annotated[str, typer.Argument(help="The user id that the application sends with queries and feedback.")],
    app: Annotated[str | None, typer.Option("--app", help="Only in this app; default: in all of them.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a person from traces, feedback, sessions and future training, for good.

    What running endpoints still hold of them is dropped later, when a data set is built. Releases that learnt from them
    are named, not changed: train again, and the next one will know nothing of the person.
    """
    from serving.store import SqlFeedbackStore, SqlSessionStore
    from serving.store.people import SqlPeople, ensure_people_secret
    from training.people import Forgetting

    if not user.strip():
        raise BadRequest("name the user to forget", field="user")
    if not yes:
        where = f"from {app}" if app else "from every app"
        typer.confirm(f"Remove {user!r} {where}? This cannot be undone", abort=True, err=True)
    config = TrainingConfig.from_env(home)
    database = open_migrated(config)
    try:
        secret = ensure_people_secret(config.home, config.serving.secrets)
        spool, sessions = config.home / "spool", SqlSessionStore(database)
        forgetting = Forgetting(SqlFeedbackStore(database), SqlPeople(database), secret, spool, sessions)
        report = forgetting.forget(user, app)
    except OSError as error:
        raise BadRequest(f"a file in {config.home} cannot be used: {error}; see to it, then run it again") from None
    finally:
        database.close()
    releases, problem = _releases(config, report)
    if as_json:
        print_json(_json(report, releases, problem))
    else:
        _show(user, report, releases, problem)


def _releases(config: TrainingConfig, report: ForgetReport) -> tuple[tuple[TrainedRelease, ...] | None, str]:
    """The releases that learnt from the person; None, and why, where the release store cannot be asked now."""
    from training.people import releases_of

    if not report.datasets:
        return (), ""
    try:
        return releases_of(open_releases(config), report.datasets), ""
    except RegistryError as error:
        return None, str(error)


def _json(report: ForgetReport, releases: tuple[TrainedRelease, ...] | None, problem: str) -> dict[str, Any]:
    named = None if releases is None else [one._asdict() for one in releases]
    return {**asdict(report), "releases": named, "problem": problem}


def _show(user: str, report: ForgetReport, releases: tuple[TrainedRelease, ...] | None, problem: str) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    say(
        f"{user} is forgotten (pseudonym {report.pseudonym}): removed {report.traces} traces, {report.events} events, "
        f"{report.words} taught words, {report.turns} turns of sessions and {report.spooled} spooled events; "
        "future training leaves them out"
    )
    if report.spools_in_use:
        say(f"{report.spools_in_use} spools are in use: what they hold of the person is dropped once it arrives")
    if releases is None:
        prints = sorted({one[:12] for several in report.datasets.values() for one in several})
        say(f"trained on the person: data sets {', '.join(prints)}; of which releases cannot be said now: {problem}")
    for release in releases or ():
        say(f"trained on the person: {release.app} release {release.version}")
    if not report.datasets:
        say("no release was trained on them")
