"""Environments of their own for what can not live beside prunewatch: made once under benchmarks/cache/ and reused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import harness

CLIENT = "tritonclient[grpc]==2.73.0"


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        name: Of its folder.
        packages: What pip is asked for; a change makes it anew.
    """

    name: str
    packages: tuple[str, ...]

    def folder(self, cache: Path, *, install: bool) -> Path:
        """Where it is, made if need be.

        Args:
            cache: Folder of all environments.
            install: Make it where it is missing.

        Raises:
            harness.Skip: it is missing and can not or must not be made.
        """
        folder = (cache / self.name).resolve()
        done = folder / "packages.txt"
        wanted = "\n".join(self.packages)
        if done.is_file() and done.read_text(encoding="utf-8") == wanted:
            return folder
        if not install:
            raise harness.Skip("its environment is not there (left out by --no-install)")
        harness.say(f"installing {', '.join(self.packages)} into {folder.name}/ (a minute or two)")
        shutil.rmtree(folder, ignore_errors=True)
        log = cache / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        with log.open("wb") as out:
            for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, *self.packages]):
                done_well = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False).returncode == 0
                if not done_well:
                    raise harness.Skip(f"its environment can not be made: see {log.name} in the cache")
        done.write_text(wanted, encoding="utf-8")
        return folder


def site_packages(folder: Path) -> Path:
    """Where the packages of an environment are."""
    return next((folder / "lib").glob("python3*")) / "site-packages"


def variables(folder: Path, inherited: Mapping[str, str], **more: str) -> dict[str, str]:
    """Of a process in an environment: one thread, nothing of this one's packages, no telemetry."""
    kept = {name: value for name, value in inherited.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    path = f"{folder / 'bin'}:{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1", **more}


RUNTIME = f"onnxruntime=={version('onnxruntime')}"  # the same in every peer as in prunewatch
MLSERVER = Environment("mlserver", ("mlserver==1.7.1", RUNTIME, CLIENT))
TRITON = Environment("triton", ("nvidia-pytriton==0.7.0", RUNTIME, CLIENT, "numpy<2"))
PY_SPY = Environment("py-spy", ("py-spy==0.4.1",))
