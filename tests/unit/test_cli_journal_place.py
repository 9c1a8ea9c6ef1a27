"""What a journal's URL means, and what is refused of it without saying what could be a secret."""

from pathlib import Path

import pytest

from agentfs.cli.journal_place import file_place, is_url, journal_place
from agentfs.model.errors import Invalid


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"):
        monkeypatch.delenv(variable, raising=False)


def test_a_database_holds_the_journals_of_several_workspaces() -> None:
    place = journal_place("postgresql://me@db.example:5433/agents?sslmode=require", workspace="demo")
    assert (place.engine, place.workspace, place.is_shared) == ("postgresql", "demo", True)
    assert place.url == "postgresql://me@db.example:5433/agents?sslmode=require&workspace=demo"
    assert journal_place(place.url) == place


def test_the_url_says_which_before_anybody_else_does() -> None:
    url = "postgresql://db.example/agents?workspace=other&sslmode=require"
    assert journal_place(url, workspace="demo").workspace == "other"


def test_the_same_journal_has_one_name_whoever_asks() -> None:
    mine = journal_place("postgresql://me@db.example/agents?workspace=demo")
    yours = journal_place("postgres://you@db.example:5432/agents?application_name=x&workspace=demo")
    assert mine.text == yours.text == "postgresql://db.example:5432/agents?workspace=demo"
    assert mine.url != yours.url


def test_a_prefix_in_a_bucket() -> None:
    place = journal_place("s3://bucket/agents/demo/?region=eu-west-1&endpoint=http://127.0.0.1:9000")
    assert (place.engine, place.workspace, place.is_shared) == ("s3", "demo", True)
    assert journal_place(place.url) == place
    assert place.text == "s3://bucket/agents/demo at http://127.0.0.1:9000"
    assert journal_place("s3://bucket").workspace == "bucket"


def test_a_file_is_not_shared() -> None:
    place = file_place(Path("/data/demo/journal.sqlite"))
    assert (place.workspace, place.is_shared) == ("demo", False)


@pytest.mark.parametrize("text", ["demo", "./demo", "/data/demo", "a:b", "s3:/x", "file:x"])
def test_names_and_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://me:hidden@db/agents", "a mysql: URL: name postgresql://"),
        ("redis://:hidden@h", "s3://BUCKET"),
        ("/data/journal.sqlite", "what is no URL"),
        ("postgresql://me:hidden@db/agents?workspace=demo", "PGPASSFILE"),
        ("postgresql://me@db/agents?password=hidden&workspace=demo", "PGPASSFILE"),
        ("postgresql://db/agents", r"add \?workspace=NAME"),
        ("postgresql://db/agents?workspace=a&workspace=b", "more than one"),
        ("postgresql://db/agents?workspace=../hidden", "no workspace name"),
        ("postgresql://db/agents?nonsense=hidden&workspace=a", "cannot be understood"),
        ("s3://key:hidden@bucket/x", "credentials"),
        ("s3://bucket/x?workspace=a", "no option 'workspace'"),
    ],
)
def test_what_will_not_do_is_refused(url: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as raised:
        journal_place(url)
    assert "\n" not in str(raised.value)
    assert "hidden" not in str(raised.value) or "workspace=../hidden" in url
