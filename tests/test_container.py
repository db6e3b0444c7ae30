"""The Dockerfile: what it promises is read out of it; with a container tool at hand the edge image is built and run."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from graphs import ewma_bundle
from ports import free_address

from detectors.bundle import write_bundle
from server.archive import pack_bundle
from server.commands.healthcheck import why_not_serving
from server.config import load_settings

ROOT = Path(__file__).parent.parent
TARGETS = ("hub", "edge")
HEAVY = ("torch", "pandas", "pyod", "onnx", "sqlalchemy", "pyarrow")


def stages():
    """Instructions of each stage, in order: name -> [(instruction, arguments)], with what it is built from."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found, parents, current = {}, {}, None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, current = rest.partition(" AS ")
            found[current], parents[current] = [], parent
        elif word and current:
            found[current].append((word, rest.strip()))
    return found, parents


def inherited(target):
    """The instructions that make a target, its own last."""
    found, parents = stages()
    chain = [target]
    while parents[chain[-1]] in found:
        chain.append(parents[chain[-1]])
    return [instruction for stage in reversed(chain) for instruction in found[stage]]


@pytest.mark.parametrize("stage", sorted(stages()[0]))
def test_every_stage_ends_as_an_ordinary_user(stage):
    """No stage is left as root: neither what runs nor what installs packages."""
    users = [arguments for word, arguments in inherited(stage) if word == "USER"]

    assert users, f"{stage} runs as root"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("target", TARGETS)
def test_commands_are_in_exec_form(target):
    """Entry point, command and health check are JSON arrays: signals reach the product and no shell is needed."""
    instructions = dict(inherited(target))

    assert json.loads(instructions["ENTRYPOINT"])[0] == "prunewatch"
    assert all(isinstance(it, str) for it in json.loads(instructions["CMD"]))
    check = json.loads(instructions["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["prunewatch", "healthcheck"]


@pytest.mark.parametrize("target", TARGETS)
def test_one_volume_telemetry_off_and_labels(target):
    """Only /data is written, ONNX Runtime reports nothing, and the image says what it is."""
    instructions = inherited(target)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert [arguments for word, arguments in instructions if word == "VOLUME"] == ["/data"]
    assert any(word == "ENV" and "ORT_DISABLE_TELEMETRY=1" in arguments for word, arguments in instructions)
    assert ("ARG", f"VERSION={version}") in instructions
    labels = " ".join(arguments for word, arguments in instructions if word == "LABEL")
    assert all(f"org.opencontainers.image.{key}=" in labels for key in ("title", "description", "licenses", "version"))


def test_the_edge_installs_the_base_and_the_hub_torch_first():
    """The edge's environment has no extra; the hub's asks for torch alone before anything can pull another build."""
    found, _ = stages()
    edge = [arguments for word, arguments in found["edge-environment"] if word == "RUN"]
    hub = [arguments for word, arguments in found["hub-environment"] if word == "RUN"]

    assert len(edge) == 1
    assert "[" not in edge[0]
    assert not any(name in edge[0] for name in HEAVY)
    assert "torch==2.13.0" in hub[0]
    assert "TORCH_INDEX" in hub[0]
    assert "[hub]" in hub[1]


def test_the_settings_of_the_image_are_valid_and_keep_everything_on_the_volume():
    """deploy/hub.yaml loads, listens on all addresses out loud, and its store lies under /data."""
    settings = load_settings(ROOT / "deploy" / "hub.yaml")

    assert settings.insecure
    assert settings.listen == "0.0.0.0:8001"
    assert settings.store.is_relative_to("/data")


def test_compose_publishes_to_this_machine_only():
    """Every published port of deploy/compose.yaml is bound to loopback, and every file it mounts exists."""
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())

    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        files = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert all((ROOT / "deploy" / file).exists() for file in files)
    assert compose["services"]["hub"]["build"]["target"] in stages()[0]
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == ["hub:8002"]


def test_the_linter_is_content():
    """Hadolint finds nothing, where it is installed."""
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not on PATH")

    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def engine() -> str:
    """What runs containers here: podman where buildah can build for it, else docker."""
    if shutil.which("podman") and shutil.which("buildah"):
        return "podman"
    if shutil.which("docker"):
        return "docker"
    pytest.skip("no container tool on PATH (docker, or buildah and podman)")


@pytest.fixture(scope="module")
def edge_image() -> str:
    """The edge image: `PRUNEWATCH_TEST_IMAGE` when it is set, else built here; skipped where neither can be."""
    run = engine()
    image = os.environ.get("PRUNEWATCH_TEST_IMAGE")
    if image is None:
        image = "prunewatch:test-edge"
        build = ["buildah", "bud", "--format", "docker", "--layers"] if run == "podman" else ["docker", "build"]
        done = _run([*build, "--target", "edge", "-t", image, "."], check=False, seconds=900)
        if done.returncode:
            pytest.skip(f"the image can not be built here: {done.stderr.strip().splitlines()[-1]}")
    probe = _run([run, "run", "--rm", "--network", "host", image, "--help"], check=False)
    if probe.returncode:
        pytest.skip(f"{run} can not run containers here: {probe.stderr.strip().splitlines()[-1]}")
    return image


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_edge_image_serves_a_bundle_and_has_no_training_framework(edge_image, tmp_path):
    """With a read-only root and no rights: uid 10001, healthy, no torch, and SIGTERM ends it with exit code 0."""
    run, name, address = engine(), f"prunewatch-test-{time.time_ns()}", free_address()
    bundle, folder = ewma_bundle("pump"), tmp_path / "bundle"
    write_bundle(bundle, folder)
    pack_bundle(folder, bundle.hash, tmp_path / "pump.tar")
    (tmp_path / "pump.tar").chmod(0o644)
    rights = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    given = ["-v", f"{tmp_path / 'pump.tar'}:/data/bundle.tar:ro", "-e", f"PRUNEWATCH__LISTEN={address}"]
    admin = ["-e", f"PRUNEWATCH__ADMIN={free_address()}"]

    _run([run, "run", "-d", "--name", name, "--network", "host", *rights, *given, *admin, edge_image])
    try:
        end = time.monotonic() + 60
        while (problem := why_not_serving(address)) and time.monotonic() < end:
            time.sleep(0.5)

        assert not problem
        assert _run([run, "exec", name, "id", "-u"]).stdout.strip() == "10001"
        assert _run([run, "exec", name, "prunewatch", "healthcheck"]).stdout.strip() == f"{address} serves"
        search = f"import importlib.util as u; print([m for m in {HEAVY!r} if u.find_spec(m)])"
        assert _run([run, "exec", name, "python", "-c", search]).stdout.strip() == "[]"
        _run([run, "stop", "-t", "20", name])
        assert _run([run, "inspect", "--format", "{{.State.ExitCode}}", name]).stdout.strip() == "0"
    finally:
        _run([run, "rm", "-f", "-v", name], check=False)


def _run(command: list[str], *, check: bool = True, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    """Runs a command. Output goes to files: the engine keeps a pipe open while the container lives."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, timeout=seconds
        )
        out.seek(0)
        err.seek(0)
        result = subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())
    assert not (check and result.returncode), result.stderr
    return result
