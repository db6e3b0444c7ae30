"""The log: one line an event, for people and as JSON, with fields and the id of the call."""

import contextvars
import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detectors.errors import PreconditionError
from server import logs
from server.catalog import Catalog
from server.progress import Operations

ROOT = Path(__file__).parent.parent


@pytest.fixture
def lines():
    """Begins a log of a form in memory and gives its lines back; the logging of the test run is restored."""
    root, own = logging.getLogger(), logging.getLogger(logs.ROOT)
    handlers, level, own_level = root.handlers, root.level, own.level
    stream = io.StringIO()

    def begin(form, level="info"):
        logs.set_up(form, level, stream)
        return lambda: stream.getvalue().splitlines()

    yield begin
    root.handlers, root.level = handlers, level
    own.setLevel(own_level)


def test_a_line_for_people_names_time_level_logger_and_fields(lines):
    """Fields stand behind the message, quoted where they have blanks."""
    read = lines("console")

    logging.getLogger("prunewatch.worker").info(
        "step of %s", "pump", extra={"stage": "search", "why": 'too "slow" now'}
    )

    assert re.fullmatch(
        r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO prunewatch\.worker: step of pump stage=search why="too .*now"',
        read()[0],
    )


def test_a_line_for_collectors_is_one_json_object(lines):
    """The same as keys; an exception is one of them and does not break the line."""
    read = lines("json")

    try:
        int("gone")
    except ValueError:
        logging.getLogger("prunewatch.worker").exception("failed", extra={"detector": "pump", "seconds": 1.5})

    (line,) = read()
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == ("ERROR", "prunewatch.worker", "failed")
    assert (said["detector"], said["seconds"]) == ("pump", 1.5)
    assert "ValueError: invalid literal" in said["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_a_caller_sends_can_not_forge_a_line(lines, form):
    """A line break in a field stays inside its line."""
    read = lines(form)

    logging.getLogger("prunewatch.worker").info("step", extra={"series": "north\n2026-01-01T00:00:00Z INFO forged"})

    assert len(read()) == 1


def test_levels_hold_back_what_is_not_asked_for(lines):
    """Ours from the level on, other libraries' from warnings on."""
    read = lines("console", "warning")

    logging.getLogger("prunewatch.worker").info("no")
    logging.getLogger("grpc").info("no")
    logging.getLogger("prunewatch.worker").warning("yes")
    logging.getLogger("grpc").warning("yes")

    assert [line.rpartition(": ")[2] for line in read()] == ["yes", "yes"]


def test_lines_of_a_call_carry_its_id(lines):
    """Only while it lasts."""
    read = lines("json")

    def call() -> None:
        logs.of_request("order-7")
        logging.getLogger("prunewatch.worker").info("in")

    contextvars.copy_context().run(call)
    logging.getLogger("prunewatch.worker").info("out")

    first, second = map(json.loads, read())
    assert first["request_id"] == "order-7"
    assert "request_id" not in second


@pytest.mark.parametrize("given", [None, b"bytes", "", "a b", "x" * 65, "né", "a\nb"])
def test_an_id_that_could_do_harm_is_replaced(given):
    """Callers may bring their own id, of plain letters."""
    assert re.fullmatch(r"[0-9a-f]{16}", logs.request_id(given))


def test_every_module_logs_below_prunewatch():
    """Each under its own name there: outside of it the settings would switch nothing."""
    named = {}
    for path in [*ROOT.glob("server/**/*.py"), *ROOT.glob("detectors/**/*.py"), *ROOT.glob("pruning/**/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("server.")
        text = path.read_text()
        assert "basicConfig" not in text, module
        if module != "logs" and (found := re.search(r"getLogger\((.*?)\)", text)):
            named[module] = found[1]

    assert named.pop("interceptors") == '"prunewatch.audit"'
    assert len(named) > 20
    assert named == {module: f'"prunewatch.{module}"' for module in named}


def test_a_trainer_writes_as_the_process_that_started_it(lines):
    """The form goes with the environment."""
    lines("json", "debug")
    program = "import logging; from server.logs import set_up_as_inherited as s; s(); "
    program += "logging.getLogger('prunewatch.trainer').debug('here')"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert json.loads(done.stderr)["message"] == "here"


async def test_each_step_of_a_cycle_is_a_line(lines, tmp_path):
    """Begun, each stage with its seconds, ended with its outcome: the operation and the detector are fields."""
    read, times = lines("json"), iter(range(100))
    operations = Operations(Catalog(tmp_path / "catalog.db"), monotonic=lambda: float(next(times)))
    row = await operations.begin("prune", "pump")
    for stage, done in (("search", 0.0), ("search", 1.0), ("fine-tune", 0.5), ("gate", 0.0)):
        await operations.report(row.name, stage, done, "")
    await operations.succeed(row.name, {"outcome": "rejected", "reason": "too slow", "version": None})

    said = [json.loads(line) for line in read()]
    assert [line["message"] for line in said] == ["prune begun", *["prune step"] * 4, "prune ended"]
    assert [line.get("stage") for line in said] == [None, "queued", "search", "fine-tune", "gate", None]
    assert all(line["seconds"] > 0 for line in said if "stage" in line)
    assert {(line["detector"], line["operation"]) for line in said} == {("pump", row.name)}
    assert (said[-1]["outcome"], said[-1]["reason"]) == ("rejected", "too slow")


async def test_an_operation_that_fails_is_a_warning(lines, tmp_path):
    """With what was wrong."""
    read = lines("json", "warning")
    operations = Operations(Catalog(tmp_path / "catalog.db"))
    row = await operations.begin("fit", "pump")

    await operations.fail(row.name, PreconditionError("there are no points."))

    (line,) = map(json.loads, read())
    assert (line["message"], line["problem"]) == ("fit ended", "there are no points.")
