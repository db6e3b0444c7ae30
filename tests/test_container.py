"""The Dockerfile: what it promises is read out of it; with a container tool at hand the edge image is built and run."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from graphs import ewma_bundle
from ports import free_address

from detectors.archive import pack_bundle
from detectors.bundle import write_bundle
from detectors.embedded import Detector
from prunewatch.client import Client
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

    assert " install " in edge[0]
    assert not any(" install " in step for step in edge[1:])
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


COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def test_compose_publishes_to_this_machine_only():
    """Every published port of deploy/compose.yaml is bound to loopback, and every file it mounts exists."""
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        files = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert all((ROOT / "deploy" / file).exists() for file in files)
        assert service.get("build", {}).get("target", "hub") in stages()[0]


def test_compose_has_a_hub_and_two_weak_edges_locked_down():
    """Ours: read-only, no rights, time to drain. Edges: a part of a core, 256 MB, a token and a store each."""
    ours = {name: it for name, it in COMPOSE["services"].items() if it["image"].startswith("prunewatch:")}
    edges = [it for it in ours.values() if it["image"] == "prunewatch:edge"]

    assert len(edges) == 2
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]
        assert int(service["stop_grace_period"].removesuffix("s")) > load_settings(None).drain_seconds
    assert all(0 < float(it["cpus"]) <= 1 and it["mem_limit"] == "256m" for it in edges)
    tokens = [Path(it["command"][it["command"].index("--token-file") + 1]) for it in edges]
    classes = {it["command"][it["command"].index("--device-class") + 1] for it in edges}
    assert len(set(tokens)) == len({it["volumes"][0] for it in edges}) == 2
    assert all(
        any(volume.split(":")[1] == str(token.parent) for volume in it["volumes"])
        for it, token in zip(edges, tokens, strict=True)
    )
    assert classes <= load_settings(ROOT / "deploy" / "hub.yaml").device_classes.keys()


def test_prometheus_asks_every_service_of_ours():
    """deploy/prometheus/prometheus.yml names hub and edges as compose does, on the port of /metrics."""
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    ours = {name for name, it in COMPOSE["services"].items() if it["image"].startswith("prunewatch:")}
    targets = {
        target for job in scraped["scrape_configs"] for it in job.get("static_configs", ()) for target in it["targets"]
    }
    resolved = [it for job in scraped["scrape_configs"] for it in job.get("dns_sd_configs", ())]
    targets |= {f"{name}:{it['port']}" for it in resolved for name in it["names"]}

    assert {f"{name}:8002" for name in ours} <= targets


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


def image(target: str, named: str) -> str:
    """An image: the one that the variable `named` names, else built here; skipped where neither can be."""
    run = engine()
    tag = os.environ.get(named)
    if tag is None:
        tag = f"prunewatch:test-{target}"
        build = ["buildah", "bud", "--format", "docker", "--layers"] if run == "podman" else ["docker", "build"]
        done = _run([*build, "--target", target, "-t", tag, "."], check=False, seconds=900)
        if done.returncode:
            pytest.skip(f"the image can not be built here: {done.stderr.strip().splitlines()[-1]}")
    probe = _run([run, "run", "--rm", "--network", "host", tag, "--help"], check=False)
    if probe.returncode:
        pytest.skip(f"{run} can not run containers here: {probe.stderr.strip().splitlines()[-1]}")
    return tag


@pytest.fixture(scope="module")
def edge_image() -> str:
    """The edge image: `PRUNEWATCH_TEST_IMAGE` when it is set, else built here."""
    return image("edge", "PRUNEWATCH_TEST_IMAGE")


@pytest.fixture(scope="module")
def hub_image() -> str:
    """The hub image that `PRUNEWATCH_TEST_HUB_IMAGE` names: a build takes minutes and gigabytes."""
    engine()
    if "PRUNEWATCH_TEST_HUB_IMAGE" not in os.environ:
        pytest.skip("PRUNEWATCH_TEST_HUB_IMAGE names no image (docker build --target hub)")
    return image("hub", "PRUNEWATCH_TEST_HUB_IMAGE")


RIGHTS = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@contextmanager
def container(tag: str, *options: str):
    """A container without rights and its gRPC address, once it serves."""
    run, name, address = engine(), f"prunewatch-test-{time.time_ns()}", free_address()
    addresses = ["-e", f"PRUNEWATCH__LISTEN={address}", "-e", f"PRUNEWATCH__ADMIN={free_address()}"]
    _run([run, "run", "-d", "--name", name, "--network", "host", *RIGHTS, *addresses, *options, tag])
    try:
        end = time.monotonic() + 60
        while (problem := why_not_serving(address)) and time.monotonic() < end:
            time.sleep(0.5)
        assert not problem, _run([run, "logs", name], check=False)
        yield name, address
    finally:
        _run([run, "rm", "-f", "-v", name], check=False)


def inside(name: str, *command: str) -> str:
    """What a command prints in a container."""
    return _run([engine(), "exec", name, *command]).stdout.strip()


def assert_drains(name: str) -> None:
    """SIGTERM ends it in its own time, with exit code 0."""
    _run([engine(), "stop", "-t", "20", name])
    assert _run([engine(), "inspect", "--format", "{{.State.ExitCode}}", name]).stdout.strip() == "0"


@pytest.mark.slow
@pytest.mark.promise("E4")
@pytest.mark.timeout(1200)
async def test_the_edge_image_scores_a_bundle_locked_down(edge_image, tmp_path):
    """Read-only, no rights, 256 MB: an ordinary user, the scores of the bundle, 130 MB at most, no torch; drains."""
    bundle, folder = ewma_bundle("pump"), tmp_path / "bundle"
    write_bundle(bundle, folder)
    pack_bundle(folder, bundle.hash, tmp_path / "pump.tar")
    (tmp_path / "pump.tar").chmod(0o644)
    values = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)

    given = ["-v", f"{tmp_path / 'pump.tar'}:/data/bundle.tar:ro", "--memory", "256m"]
    with container(edge_image, *given) as (name, address):
        async with Client(address) as client:
            scores = (await client.score("pump", values=values, series=["north"], ephemeral=True)).scores

        np.testing.assert_array_equal(scores, Detector(bundle).score(values).score)
        assert inside(name, "id", "-u") == "10001"
        assert 1024 * int(re.search(r"VmHWM:\s+(\d+)", inside(name, "cat", "/proc/1/status"))[1]) <= 130e6
        assert inside(name, "prunewatch", "healthcheck") == f"{address} serves"
        search = f"import importlib.util as u; print([m for m in {HEAVY!r} if u.find_spec(m)])"
        assert inside(name, "python", "-c", search) == "[]"
        compiled = "import http.client, server.edge as e; print(http.client.__cached__, e.__cached__)"
        assert inside(name, "sh", "-c", f"ls $(python -c '{compiled}')").count(".pyc") == 2
        assert_drains(name)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_hub_image_fits_and_prunes_locked_down(hub_image):
    """Read-only root and no rights: the trainer fits and prunes a detector, it scores; SIGTERM: exit code 0."""
    values = np.random.default_rng(0).normal(size=(400, 2)) + np.sin(np.arange(400) / 9)[:, None]
    stamps = time.time_ns() + (np.arange(400) - 400) * 10**9

    with container(hub_image, "--tmpfs", "/tmp") as (name, address):
        async with Client(address) as client:
            fit = {"features": ["a", "b"], "stamps": stamps, "values": values}
            await client.wait_operation(await client.fit_upload("pump", **fit))
            pruned = await client.wait_operation(await client.prune("pump", speedup=1.2, batch=64))
            scores = (await client.score("pump", values=values, series=["north"], ephemeral=True)).scores

        assert pruned["outcome"] in {"adopted", "rejected"}
        assert np.isfinite(scores[-100:]).all()
        assert inside(name, "id", "-u") == "10001"
        assert "serves" in inside(name, "prunewatch", "healthcheck", "--config", "/etc/prunewatch/hub.yaml")
        assert_drains(name)


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
