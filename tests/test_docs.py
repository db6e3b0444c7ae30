"""Everything that a user can set, call, type or read is documented: asked of the real objects, not of a list."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
import typer
from conftest import publish
from google.longrunning import operations_pb2
from graphs import ewma_bundle
from pydantic import BaseModel
from typer.testing import CliRunner

from detectors.errors import PrunewatchError
from detectors.stamps import Status
from prunewatch import inference
from prunewatch.v1 import detectors_pb2, devices_pb2, feedback_pb2, fleet_pb2, pruning_pb2, scoring_pb2
from server import config, fleet_settings, loop_settings
from server.cli import app
from server.commands.credentials import OPTIONS
from server.metrics import Metrics
from server.metrics.device import DeviceMetrics
from server.metrics.registry import families
from server.quantities import BYTES, SECONDS
from server.statuses import CODES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SECTIONS = {
    "": config.Settings,
    "log.": config.Log,
    "tls.": config.Tls,
    "auth.": config.Auth,
    "fleet.": fleet_settings.FleetSettings,
    "fleet.rollout.": fleet_settings.Rollout,
    "fleet.field.": fleet_settings.FieldSettings,
    "measuring.": config.Measuring,
    "device_classes.CLASS.": config.Budget,
    "detectors.NAME.": config.DetectorConfig,
    "detectors.NAME.error.": config.ErrorSettings,
    "detectors.NAME.schedule.": config.Schedule,
    "detectors.NAME.triggers.": config.Triggers,
    "detectors.NAME.gate.": config.Gate,
    "detectors.NAME.parent_gate.": config.ParentGate,
    "detectors.NAME.probation.": config.Probation,
    "detectors.NAME.history.": config.Retention,
    "detectors.NAME.versions.": config.VersionRetention,
}
SERVICES = (
    *scoring_pb2.DESCRIPTOR.services_by_name.values(),
    *detectors_pb2.DESCRIPTOR.services_by_name.values(),
    *pruning_pb2.DESCRIPTOR.services_by_name.values(),
    *feedback_pb2.DESCRIPTOR.services_by_name.values(),
    *devices_pb2.DESCRIPTOR.services_by_name.values(),
    *fleet_pb2.DESCRIPTOR.services_by_name.values(),
    inference.SERVICE,
)


def page(name):
    """The text of a page of docs/."""
    return (ROOT / "docs" / name).read_text()


def test_the_sections_of_the_settings_are_all_here():
    """No model of settings is left out of `SECTIONS`, so that no key can be."""
    models = {
        kind
        for kind in (*vars(config).values(), *vars(fleet_settings).values())
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__.startswith("server.")
    }

    assert models - {config.Section, loop_settings.Every} == set(SECTIONS.values())


@pytest.mark.parametrize(
    ("key", "default"),
    [
        (prefix + name, field.get_default(call_default_factory=True))
        for prefix, model in SECTIONS.items()
        for name, field in model.model_fields.items()
    ],
)
def test_every_key_of_the_settings_is_documented_with_its_default(key, default):
    """docs/configuration.md has a row for each key; plain defaults stand in it as they are read back."""
    row = re.search(rf"^\| `{re.escape(key)}` \| `?([^|`]*)`? \|", page("configuration.md"), re.MULTILINE)

    assert row, f"docs/configuration.md has no row for {key}"
    if default is None or isinstance(default, bool | int | float | str):
        assert _read(row[1].strip(), default) == default


def _read(text, like):
    if text == "none":
        return None
    if isinstance(like, bool):
        return text == "true"
    if isinstance(like, int | float):
        number, unit = re.fullmatch(r"([\d.]+)\s*(\w*)", text).groups()
        return float(number) * {**SECONDS, **BYTES, "": 1}[unit]
    return text


def test_no_key_is_documented_that_does_not_exist():
    """Every row of docs/configuration.md is a key."""
    keys = {prefix + name for prefix, model in SECTIONS.items() for name in model.model_fields}
    rows = re.findall(r"^\| `([^`]+)` \|", page("configuration.md"), re.MULTILINE)

    assert set(rows) <= keys


COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name):
    """docs/cli.md has a section for each command, with each of its arguments and options, and its help teaches."""
    section = re.search(rf"^## prunewatch {name}$(.*?)(?=^## |\Z)", page("cli.md"), re.MULTILINE | re.DOTALL)

    assert section, f"docs/cli.md has no section `## prunewatch {name}`"
    shared = page("cli.md").partition("## ")[0]  # who asks is the same for every command that asks a server
    for parameter in COMMANDS[name].params:
        if parameter.name in OPTIONS and f"`--{parameter.name.replace('_', '-')} FILE`" in shared:
            continue
        spelled = max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.metavar
        whole = re.search(rf"`{re.escape(spelled)}[ `]", section[1])  # `--from-stream` is not `--from`
        assert whole, f"docs/cli.md does not have {spelled} of {name}"
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_in_the_help_stand_on_lines_of_their_own(name, monkeypatch):
    """What is indented in a command's docstring is shown line by line, not run together into a paragraph."""
    monkeypatch.setenv("COLUMNS", "200")

    shown = [line.strip() for line in CliRunner().invoke(app, [name, "--help"]).stdout.splitlines()]

    for example in re.findall(r"^ {4}(prunewatch .*)$", COMMANDS[name].help, re.MULTILINE):
        assert example in shown


def test_no_option_is_documented_that_does_not_exist():
    """Every option named in the table of a command is one of its options."""
    for name, text in re.findall(r"^## prunewatch (\S+)$(.*?)(?=^## |\Z)", page("cli.md"), re.MULTILINE | re.DOTALL):
        known = {spelled for parameter in COMMANDS[name].params for spelled in parameter.opts}
        assert set(re.findall(r"^\| `(--[\w-]+)", text, re.MULTILINE)) <= known


@pytest.mark.parametrize("method", [method.full_name for service in SERVICES for method in service.methods])
def test_every_rpc_is_documented(method):
    """docs/api.md names each method under its service."""
    service, name = method.rsplit(".", 1)
    section = re.search(rf"^## {re.escape(service)}$(.*?)(?=^## |\Z)", page("api.md"), re.MULTILINE | re.DOTALL)

    assert section, f"docs/api.md has no section for {service}"
    assert f"| `{name}` |" in section[1]


def test_operations_statuses_and_error_codes_are_documented():
    """docs/api.md names what is served of google.longrunning, every point status and every error code."""
    text = page("api.md")
    for name in operations_pb2.DESCRIPTOR.services_by_name["Operations"].methods_by_name:
        assert f"`{name}`" in text
    for status in Status:
        assert status is Status.UNSPECIFIED or f"`{status.name}`" in text
    for kind, number in CODES.items():
        assert issubclass(kind, PrunewatchError)
        assert f"`{_code(number)}`" in text


def _code(number):
    from google.rpc import code_pb2

    return code_pb2.Code.Name(number)


def test_every_metric_family_is_documented_with_its_labels():
    """docs/metrics.md has a row for each family, under the name Prometheus shows, and for no other."""
    rows = re.findall(
        r"^\| `((?:prunewatch|grpc_server)_\w+)` \| (\w+) \| ([^|]*) \|", page("metrics.md"), re.MULTILINE
    )
    declared = {
        it.name + ("_total" if it.kind == "counter" else ""): (it.kind, ", ".join(f"`{label}`" for label in it.labels))
        for it in (*families(Metrics), *families(DeviceMetrics))
    }

    assert {name: (kind, labels.strip()) for name, kind, labels in rows} == declared
    assert len(rows) == len(declared)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(file):
    """A relative link names a file that exists."""
    for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", file.read_text()):
        assert (file.parent / target).exists(), f"{file.name} links to {target}"


def test_the_readme_begins_with_the_two_commands():
    """`make demo` and `make test` are the first two commands a newcomer reads."""
    blocks = re.findall(
        r"^```(?:sh|bash|console)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    commands = [line.split("#")[0].strip() for line in blocks[0].splitlines()]

    assert [it for it in commands if it.startswith("make ")][:2] == ["make demo", "make test"]


async def test_the_python_of_the_readme_runs(hub, tmp_path):
    """The scripts of README.md score what they make against a running hub, whose address is all that is replaced."""
    await publish(hub, ewma_bundle("pump", features=["flow", "pressure"]))
    scripts = re.findall(
        r"^```python\n# (\w+\.py)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )

    printed = {}
    for name, source in scripts:
        (tmp_path / name).write_text(source.replace("127.0.0.1:8001", f"127.0.0.1:{hub.listener.port}"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, name, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        printed[name] = (await process.communicate())[0].decode()
        assert process.returncode == 0, name

    assert list(printed) == ["pump.py", "live.py", "frame.py", "raw.py"]
    assert printed["live.py"].strip().endswith("3.0 1")
    assert printed["frame.py"].splitlines()[0].split() == ["score", "status", "anomaly", "threshold", "version"]
    assert printed["raw.py"].strip().endswith("] 1")


async def test_the_python_of_the_page_on_clients_runs(hub, tmp_path):
    """The programs of docs/clients.md do what they show against a running hub; only its address is replaced."""
    await publish(hub, ewma_bundle("pump", features=["flow", "pressure"]))
    printed = {}
    for name, source in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page("clients.md"), re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(source.replace("127.0.0.1:8001", f"127.0.0.1:{hub.listener.port}"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, name, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        printed[name] = (await process.communicate())[0].decode()
        assert process.returncode == 0, name

    assert list(printed) == ["arrays.py", "frames.py", "stream.py", "patient.py"]
    assert "WARMING_UP" in printed["arrays.py"]
    assert "share.flow" in printed["frames.py"]
    assert printed["stream.py"].strip().endswith(" 0")
    assert printed["patient.py"].strip() == "['flow', 'pressure']"
    assert hub.host.get("pump").accepted == 100 + 100 + 120 + 20
