"""Bundles: every byte is covered by one hash; what was changed, cut, swapped or lost is never accepted."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from graphs import ewma_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from detectors.bundle import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    Bundle,
    Lineage,
    NetworkInfo,
    digest,
    make_bundle,
    read_bundle,
    write_bundle,
)
from detectors.errors import CorruptBundleError, NewerStoreError


def bundle(version: int = 1, **fields) -> Bundle:
    """A bundle with weights."""
    facts = {
        "detector": "pump",
        "version": version,
        "device_class": "parent",
        "network": NetworkInfo(kind="lstm", units={"layer0": 4}, parameters=1, macs=1),
        "features": ["a", "b"],
        "warm_up_points": 3,
        "lineage": Lineage(cause="fit", seed=0, data_rows=100),
    }
    files = {GRAPH: ewma_bundle("pump", gain=1.0 + version).graph, WEIGHTS: f"weights of {version}".encode() * 9}
    return make_bundle(files, **facts | fields)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle, and where it lies."""
    made = bundle()
    write_bundle(made, tmp_path / made.hash)
    return made, tmp_path / made.hash


def test_what_is_written_can_be_read(written) -> None:
    """The same manifest, hash and bytes; weights only when asked for."""
    made, folder = written

    light, whole = read_bundle(folder, made.hash), read_bundle(folder, made.hash, weights=True)

    assert whole == made
    assert light.hash == made.hash
    assert set(light.files) == {GRAPH}
    assert (light.graph, light.size) == (made.graph, len(made.graph))
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, GRAPH, WEIGHTS])
    assert [path.name for path in folder.parent.iterdir()] == [made.hash]


def test_the_hash_covers_content_and_meaning() -> None:
    """Another version, graph or weights: another hash; the same again: the same."""
    assert bundle().hash == bundle().hash
    assert len({bundle().hash, bundle(2).hash, bundle(warm_up_points=4).hash, bundle(detector="fan").hash}) == 4


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_a_flipped_bit_is_never_accepted(tmp_path_factory, data) -> None:
    """In any file, at any place."""
    made = bundle()
    folder = tmp_path_factory.getbasetemp() / "flips"
    write_bundle(made, folder)
    path = folder / data.draw(st.sampled_from([MANIFEST, GRAPH, WEIGHTS]))
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)

    try:
        with pytest.raises(CorruptBundleError):
            read_bundle(folder, made.hash, weights=True)
    finally:
        path.write_bytes(original)
    assert read_bundle(folder, made.hash, weights=True) == made


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
@pytest.mark.parametrize(
    "change", [lambda raw: raw[:0], lambda raw: raw[:-1], lambda raw: raw[: len(raw) // 2], lambda raw: raw + b" "]
)
def test_truncated_and_grown_files_are_never_accepted(written, name: str, change) -> None:
    """The error names the file."""
    made, folder = written
    (folder / name).write_bytes(change((folder / name).read_bytes()))

    with pytest.raises(CorruptBundleError) as error:
        read_bundle(folder, made.hash, weights=True)

    assert error.value.field == str(folder / name)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
def test_files_of_two_versions_can_not_be_mixed(written, tmp_path: Path, name: str) -> None:
    """Each of them is sound, together they are not this bundle."""
    made, folder = written
    other = bundle(2)
    write_bundle(other, tmp_path / other.hash)
    shutil.copy(tmp_path / other.hash / name, folder / name)

    with pytest.raises(CorruptBundleError):
        read_bundle(folder, made.hash, weights=True)


def test_a_whole_other_bundle_is_not_the_one_that_was_asked_for(written, tmp_path: Path) -> None:
    """A folder is not believed because of its name."""
    made, _ = written
    other = bundle(2)
    write_bundle(other, tmp_path / other.hash)

    with pytest.raises(CorruptBundleError, match="its hash is"):
        read_bundle(tmp_path / other.hash, made.hash)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
@pytest.mark.parametrize("instead", ["nothing", "folder", "dangling link"])
def test_missing_files_are_named(written, name: str, instead: str) -> None:
    """Also where something else has taken their place."""
    made, folder = written
    (folder / name).unlink()
    if instead == "folder":
        (folder / name).mkdir()
    elif instead == "dangling link":
        (folder / name).symlink_to(folder / "nowhere")

    with pytest.raises(CorruptBundleError, match="is missing") as error:
        read_bundle(folder, made.hash, weights=True)

    assert error.value.field == str(folder / name)


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Neither a missing folder nor a file in its place is a crash."""
    (tmp_path / "file").write_text("x")

    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(CorruptBundleError, match="is missing"):
            read_bundle(folder)


def rewritten(folder: Path, **fields) -> None:
    """Changes fields of the manifest and nothing else."""
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


def test_a_newer_schema_is_told_apart_from_damage(written) -> None:
    """Upgrade, it says: also when the newer manifest has fields that this program does not know."""
    _, folder = written
    rewritten(folder, schema_version=2, colour="blue")

    with pytest.raises(NewerStoreError, match="Upgrade prunewatch"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "name", ["notes.txt", "../step.onnx", "..", "/etc/passwd", "a/../step.onnx", "step.onnx\x00", "STEP.ONNX", ""]
)
def test_other_file_names_are_refused(written, name: str) -> None:
    """A manifest can not point outside its folder, nor bring other files along."""
    _, folder = written
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    rewritten(folder, files={name: files[GRAPH], **files})

    with pytest.raises(CorruptBundleError, match="unknown file"):
        read_bundle(folder)


def test_a_link_to_another_file_is_only_its_content(written, tmp_path: Path) -> None:
    """Bytes count: a link to a file with other bytes is refused like any other damage."""
    made, folder = written
    secret = tmp_path / "secret"
    secret.write_text("not a graph")
    (folder / GRAPH).unlink()
    (folder / GRAPH).symlink_to(secret)

    with pytest.raises(CorruptBundleError, match="does not match its manifest"):
        read_bundle(folder, made.hash)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"schema_version": null}',
        b'{"schema_version": "x"}',
        b'{"schema_version": 1e999}',
        b'{"schema_version": NaN}',
        b" " * (2 << 20),
    ],
    ids=["empty", "list", "null", "object", "bytes", "deep", "no number", "word", "infinite", "nan", "long"],
)
def test_what_is_no_manifest_is_refused(written, raw: bytes) -> None:
    """Whatever lies there instead."""
    _, folder = written
    (folder / MANIFEST).write_bytes(raw)

    with pytest.raises(CorruptBundleError, match="is not a bundle manifest"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"detector": "../pump"},
        {"device_class": "Pi 4"},
        {"version": 0},
        {"features": []},
        {"warm_up_points": -1},
        {"surprise": 1},
        {"files": {}},
        {"files": {GRAPH: {"bytes": 3, "sha256": "no"}}},
        {"files": {GRAPH: {"bytes": 1 << 40, "sha256": "0" * 64}}},
    ],
    ids=str,
)
def test_a_manifest_with_impossible_fields_is_refused(written, fields) -> None:
    """Names that are no names, sizes that can not be, fields nobody knows."""
    _, folder = written
    rewritten(folder, **fields)

    with pytest.raises(CorruptBundleError):
        read_bundle(folder)


def test_impossible_bundles_can_not_be_made() -> None:
    """The same rules when writing."""
    with pytest.raises(ValidationError):
        bundle(detector="..")


def test_writing_again_changes_nothing(written) -> None:
    """The same hash is the same content."""
    made, folder = written
    before = (folder / MANIFEST).stat().st_mtime_ns

    write_bundle(made, folder)

    assert (folder / MANIFEST).stat().st_mtime_ns == before


def test_writers_at_the_same_time_publish_one_whole_bundle(tmp_path: Path) -> None:
    """Eight threads, twenty bundles: a reader sees nothing or all of it, and no half-written folder is left."""
    bundles = [bundle(version) for version in range(1, 21)]
    accepted = []

    def write(_: int) -> None:
        for made in bundles:
            folder = tmp_path / made.hash
            write_bundle(made, folder)
            accepted.append(read_bundle(folder, made.hash, weights=True) == made)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))

    assert len(accepted) == 160
    assert all(accepted)
    assert {path.name for path in tmp_path.iterdir()} == {made.hash for made in bundles}


def test_a_write_that_fails_leaves_nothing_that_looks_like_a_bundle(tmp_path: Path) -> None:
    """The name appears only with all bytes under it."""
    made = bundle()
    broken = Bundle(made.hash, made.manifest, {GRAPH: made.graph, WEIGHTS: "not bytes"})

    with pytest.raises(TypeError):
        write_bundle(broken, tmp_path / made.hash)

    assert not (tmp_path / made.hash).exists()


def test_the_digest_is_sha256() -> None:
    """As any tool computes it."""
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
