"""Generates the committed stubs in `prunewatch/v1` from the .proto files there.

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
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("prunewatch/v1")
SCRIPTS = Path(sys.executable).parent  # of this environment, which need not be the active one
MYPY = ("mypy", "mypy_grpc")
STUBS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")
# The same file under the name everybody imports it by: googleapis-common-protos ships it as operations_proto.proto.
OPERATIONS = ("google/longrunning/operations_proto.proto", "google/longrunning/operations.proto")


def generate(out: Path) -> list[Path]:
    """Writes the stubs below `out`; returns them.

    Raises:
        SystemExit: protoc refused a .proto file; it has said why.
    """
    bundled = Path(grpc_tools.__file__).parent / "_proto"
    common = Path(next(iter(google.rpc.__path__))).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        shipped, imported = (Path(base) / name for base, name in zip((common, folder), OPERATIONS, strict=True))
        imported.parent.mkdir(parents=True)
        shutil.copyfile(shipped, imported)
        arguments = [
            "protoc",
            *(f"-I{include}" for include in (ROOT, folder, bundled, common)),
            *(f"--{kind}_out={out}" for kind in ("python", "grpc_python")),
            *(f"--plugin=protoc-gen-{kind}={SCRIPTS / f'protoc-gen-{kind}'}" for kind in MYPY),
            *(f"--{kind}_out=quiet:{out}" for kind in MYPY),
            *(str(path) for path in sorted((ROOT / PACKAGE).glob("*.proto"))),
        ]
        if protoc.main(arguments):
            sys.exit(1)
    written = sorted(path for pattern in STUBS for path in (out / PACKAGE).glob(pattern))
    for path in written:  # grpcio-tools leaves trailing blanks in places
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()).rstrip() + "\n")
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the stubs are out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        written = generate(Path(folder))
        names = {path.name for path in written}
        committed = {path.name for pattern in STUBS for path in (ROOT / PACKAGE).glob(pattern)}
        stale = sorted(
            name
            for name in names | committed
            if name not in names
            or name not in committed
            or not filecmp.cmp(Path(folder) / PACKAGE / name, ROOT / PACKAGE / name, shallow=False)
        )
        if check and stale:
            sys.exit(f"out of date: {', '.join(stale)}. Run `make proto`.")
        if not check:
            for name in committed - names:
                (ROOT / PACKAGE / name).unlink()
            for path in written:
                shutil.copyfile(path, ROOT / PACKAGE / path.name)


if __name__ == "__main__":
    main()
