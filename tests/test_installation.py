"""`prunewatch doctor` on an installation: what is missing, wrong or too little is found, with what to do."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from authority import Authority, put
from typer.testing import CliRunner

from detectors.errors import NotFoundError
from server.cli import app
from server.findings import is_sound
from server.installation import ENOUGH_FILES, examine_installation

ROOT = Path(__file__).parent.parent
AUTHORITY = Authority.new()


def of(findings, part):
    """The findings of a part: state and words."""
    return [(it.state, it.told) for it in findings if it.part == part]


def test_this_installation_is_sound(tmp_path):
    """Where the tests run, nothing needs attention."""
    findings = examine_installation(store=tmp_path / "store")

    assert is_sound(findings), findings
    assert {"python", "packages", "runtime", "system", "settings"} == {it.part for it in findings}
    assert any("computes" in told for _, told in of(findings, "runtime"))


@pytest.mark.parametrize(
    ("requires", "state", "told"),
    [
        (["numpy>=1"], "ok", "the base install: 1 packages"),
        (["numpy>=1", "not-to-be-had"], "problem", "not-to-be-had is missing"),
        (["numpy<1"], "problem", "(wants <1)"),
        (["numpy>=1", 'not-to-be-had; extra == "hub"'], "note", "this machine can score, not fit or prune"),
        (["numpy>=1", 'numpy; extra == "hub"', 'gone; extra == "hub"'], "problem", "gone is missing"),
        (["numpy>=1", 'gone; extra == "demo"'], "ok", "the base install"),
    ],
)
def test_packages_are_those_that_the_distribution_asks_for(tmp_path, requires, state, told):
    """The base has to be whole; the extra of the hub is whole or not there. Asked of real metadata."""
    folder = tmp_path / "prunewatch-9.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: prunewatch", "Version: 9", *(f"Requires-Dist: {it}" for it in requires)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    program = (
        "import json, server.installation as i; print(json.dumps([[f.part, f.state, f.told] for f in i._packages()]))"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "proto")])

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )

    found = json.loads(done.stdout)
    assert [found_state for _, found_state, words in found if told in words] == [state]


def test_settings_that_can_not_be_are_a_problem(tmp_path):
    """With the key, and what to do."""
    path = tmp_path / "prunewatch.yaml"
    path.write_text("listen: 127.0.0.1:8001\ndrain_secs: 5s\n")

    findings = examine_installation(path)

    ((state, told),) = of(findings, "settings")
    assert state == "problem"
    assert "drain_secs" in told
    assert not is_sound(findings)


def test_an_address_that_is_taken_is_a_note(tmp_path):
    """A running server has it, so it is no problem by itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = tmp_path / "prunewatch.yaml"
        path.write_text(f"listen: {address}\n")

        findings = examine_installation(path, tmp_path)

    assert ("note", f"something uses listen {address} already") in of(findings, "settings")
    assert is_sound(findings)


def test_a_clock_that_was_never_set_is_a_problem(tmp_path):
    """Releases expire and stamps are judged by it."""
    findings = examine_installation(store=tmp_path, now=12.0)

    assert ("problem", "the clock says 1970-01-01") in of(findings, "system")


def test_few_open_files_are_a_note(tmp_path):
    """With how to raise the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ENOUGH_FILES // 2, before[1]))
    try:
        findings = examine_installation(store=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    (found,) = [it for it in findings if "may be open" in it.told]
    assert found.state == "note"
    assert f"ulimit -n {ENOUGH_FILES}" in found.todo


def test_the_command_looks_at_the_installation_where_there_is_no_store(tmp_path, monkeypatch):
    """A newcomer's first command: nothing is there yet, and that is fine; a store that was named must be there."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    done = runner.invoke(app, ["doctor"])
    shown = runner.invoke(app, ["doctor", "--json"])
    named = runner.invoke(app, ["doctor", "--store", "nowhere"])

    assert done.exit_code == 0, done.output
    assert "there is none at prunewatch-store yet" in done.output
    assert json.loads(shown.stdout)["sound"]
    assert isinstance(named.exception, NotFoundError)


def tls_findings(folder, mode=0o600, **dates):
    """What doctor says of a certificate with these dates, whose key has this mode."""
    certificate, key = put(folder, *AUTHORITY.issue("hub.example", **dates))
    key.chmod(mode)
    file = folder / "hub.yaml"
    file.write_text(f"tls: {{certificate: {certificate}, key: {key}}}\nauth: {{}}\n")
    return of(examine_installation(file, folder / "store"), "tls")


@pytest.mark.parametrize(
    ("dates", "state", "told"),
    [
        ({}, "ok", "fits its key and lasts until"),
        ({"days": 5.0}, "note", "for hub.example ends on"),
        ({"begins": -40.0}, "problem", "ended on"),
        ({"begins": 3.0}, "problem", "begins on"),
    ],
)
def test_the_dates_of_a_certificate_are_looked_at(tmp_path, dates, state, told):
    """Before it ends, not when callers refuse it."""
    ((found, words),) = tls_findings(tmp_path, **dates)

    assert found == state
    assert told in words


def test_who_can_read_the_key_is_looked_at(tmp_path):
    """Every user: a problem; the group: worth knowing; the owner alone: nothing to say."""
    assert [state for state, _ in tls_findings(tmp_path, 0o600)] == ["ok"]
    assert [state for state, _ in tls_findings(tmp_path, 0o640)] == ["ok", "note"]
    assert [state for state, _ in tls_findings(tmp_path, 0o644)] == ["ok", "problem"]


def test_a_pair_that_does_not_fit_is_a_problem(tmp_path):
    """Missing, or another one's key: said with the file, before a server is started with it."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    file, store = tmp_path / "hub.yaml", tmp_path / "store"
    file.write_text(f"tls: {{certificate: {certificate}, key: {key}}}\n")
    key.write_bytes(AUTHORITY.issue()[1])
    ((others, told),) = of(examine_installation(file, store), "tls")
    key.unlink()
    ((missing, where),) = of(examine_installation(file, store), "tls")

    assert (others, missing) == ("problem", "problem")
    assert "no certificate that belongs to the key" in told
    assert "tls.key can not be read" in where


def test_authorities_that_have_ended_are_a_problem(tmp_path):
    """No certificate of a caller counts then."""
    certificate, key = put(tmp_path, *AUTHORITY.issue())
    key.chmod(0o600)
    ended = tmp_path / "ca.crt"
    ended.write_bytes(AUTHORITY.issue(begins=-40.0)[0])
    file = tmp_path / "hub.yaml"
    file.write_text(f"tls: {{certificate: {certificate}, key: {key}, client_ca: {ended}}}\n")

    found = of(examine_installation(file, tmp_path / "store"), "tls")

    assert [state for state, _ in found] == ["ok", "problem"]
    assert "authorities of callers" in found[1][1]
