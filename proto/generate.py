"""Generates stubs and docs/reference.md of `prunewatch/v1`, and the descriptor of `prunewatch/inference`.

`python proto/generate.py` writes them; with `--check` it writes nothing and exits 1 when the committed ones differ.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

import google.rpc
import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from reference import reference

ROOT = Path(__file__).resolve().parent
REPOSITORY = ROOT.parent
REFERENCE = Path("docs/reference.md")
PACKAGE = Path("prunewatch/v1")
SCRIPTS = Path(sys.executable).parent  # of this environment, which need not be the active one
MYPY = ("mypy", "mypy_grpc")
STUBS = tuple(str(PACKAGE / kind) for kind in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi"))
# Of the Open Inference Protocol only the descriptor: prunewatch.inference says why there are no stubs.
INFERENCE = Path("prunewatch/inference/inference.proto")
DESCRIPTOR = INFERENCE.with_suffix(".binpb")
# The same file under the name everybody imports it by: googleapis-common-protos ships it as operations_proto.proto.
OPERATIONS = ("google/longrunning/operations_proto.proto", "google/longrunning/operations.proto")


def generate(out: Path) -> list[Path]:
    """Writes all of it below `out`, as it lies in the repository; returns the files.

    Raises:
        SystemExit: protoc refused a .proto file; it has said why.
    """
    bundled = Path(grpc_tools.__file__).parent / "_proto"
    common = Path(next(iter(google.rpc.__path__))).parents[1]
    stubs = out / ROOT.name
    (stubs / DESCRIPTOR).parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        shipped, imported = (Path(base) / name for base, name in zip((common, folder), OPERATIONS, strict=True))
        imported.parent.mkdir(parents=True)
        shutil.copyfile(shipped, imported)
        described = Path(folder) / "all.binpb"
        arguments = [
            "protoc",
            *(f"-I{include}" for include in (ROOT, folder, bundled, common)),
            *(f"--{kind}_out={stubs}" for kind in ("python", "grpc_python")),
            *(f"--plugin=protoc-gen-{kind}={SCRIPTS / f'protoc-gen-{kind}'}" for kind in MYPY),
            *(f"--{kind}_out=quiet:{stubs}" for kind in MYPY),
            *("--include_source_info", f"--descriptor_set_out={described}"),
            *(str(path) for path in sorted((ROOT / PACKAGE).glob("*.proto"))),
        ]
        if protoc.main(arguments):
            sys.exit(1)
        files = FileDescriptorSet.FromString(described.read_bytes())
    written = sorted(path for pattern in STUBS for path in stubs.glob(pattern))
    for path in written:  # grpcio-tools leaves trailing blanks in places
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()).rstrip() + "\n")
    if protoc.main(["protoc", f"-I{ROOT}", f"--descriptor_set_out={stubs / DESCRIPTOR}", str(ROOT / INFERENCE)]):
        sys.exit(1)
    (out / REFERENCE).parent.mkdir()
    (out / REFERENCE).write_text(reference(files))
    return [*written, stubs / DESCRIPTOR, out / REFERENCE]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        names = {str(path.relative_to(folder)) for path in generate(Path(folder))}
        patterns = (*(f"{ROOT.name}/{it}" for it in (*STUBS, DESCRIPTOR)), str(REFERENCE))
        committed = {str(path.relative_to(REPOSITORY)) for it in patterns for path in REPOSITORY.glob(it)}
        stale = sorted(
            name
            for name in names | committed
            if name not in names
            or name not in committed
            or not filecmp.cmp(Path(folder) / name, REPOSITORY / name, shallow=False)
        )
        if check and stale:
            sys.exit(f"out of date: {', '.join(stale)}. Run `make proto`.")
        if not check:
            for name in committed - names:
                (REPOSITORY / name).unlink()
            for name in names:
                shutil.copyfile(Path(folder) / name, REPOSITORY / name)


if __name__ == "__main__":
    main()
