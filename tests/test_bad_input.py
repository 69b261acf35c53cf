"""The campaign of tests/faults/bad_input.py in short: wrong requests are refused by name, before any program."""

import pathlib
import sys

import pytest

sys.path += [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent / "tasks")]
from faults import bad_input as campaign


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_wrong_configurations_and_broken_files_are_refused_by_name(here, tmp_path_factory):
    files = list(campaign.broken_files(tmp_path_factory.mktemp("data")))
    asked = campaign.some(campaign.wrong_configurations(), 24, 0), campaign.some(files, 8, 0)
    taken = [request for request in asked[0] if "taken" not in request[0]]
    assert not campaign.campaign([*taken, *asked[1]])


def test_there_are_as_many_as_promised(tmp_path):
    requests = [tuple(arguments) for arguments, _ in campaign.wrong_configurations()]
    assert len(set(requests)) == len(requests) >= 400
    assert len(list(campaign.broken_files(tmp_path))) >= 50


def test_a_request_that_is_right_fails_the_campaign(here):
    (failure,) = campaign.campaign([(["--steps", "3"], "steps")])
    assert failure["wrong"] == "it was accepted"
    (failure,) = campaign.campaign([(["--steps", "0"], "no such words")])
    assert failure["wrong"] == "it does not say 'no such words'"
