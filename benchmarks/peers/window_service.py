"""The windowed network behind a plain gRPC service: torch, ONNX Runtime or PyOD, with as little as possible around it.

Bytes in, bytes out, no message classes, like the echo: points [n, B, F] float32 of n points of each series, oldest
first, are answered with the errors [B] of the newest ones. With LSTMAD, which takes one series, they are the points
[N, F] of one series, answered with N scores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
from windowed import Windows, onnx_judge

SERVICE = "benchmark.Windowed"
Score = Callable[[np.ndarray], np.ndarray]


def torch_judge(path: Path) -> Score:
    """Judges windows [W, B, F] with the network in torch: scaling, `nn.LSTM` by layer, head, normalised error."""
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    held = {name: torch.from_numpy(value) for name, value in np.load(path, allow_pickle=False).items()}
    layers = []
    for i in range(sum(name.endswith(".weight_hh_l0") for name in held)):
        weights = {name: held[f"{i}.{name}"] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")}
        layer = torch.nn.LSTM(weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1])
        layer.load_state_dict(weights)
        layers.append(layer.eval())
    clip, bound = float(held["clip"]), float(held["bound"])

    def judge(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            points = ((torch.from_numpy(windows) - held["center"]) * held["inverse"]).clamp(-clip, clip)
            signal = points[:-1]
            for layer in layers:
                signal, _ = layer(signal)
            predicted = torch.nn.functional.linear(signal[-1], held["head.weight"], held["head.bias"])
            z = (points[-1] * held["scale"] - predicted).clamp(-bound, bound)
            return z.square().sum(dim=1).numpy()

    return judge


def lstmad_score(path: Path) -> Score:
    """Scores the points [N, F] of one series with PyOD's LSTMAD, from the 50 points before each."""
    import torch
    from pyod.models.ts_lstm import LSTMAD, _LSTMModel

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    held = dict(np.load(path, allow_pickle=False))
    sizes = json.loads(str(held.pop("sizes")))
    detector = LSTMAD(window_size=sizes["window"], hidden_size=sizes["width"], n_layers=2)
    network = _LSTMModel(sizes["features"], sizes["width"], 2)
    names = [name for name in held if name.startswith("network.")]
    network._net.load_state_dict({name[8:]: torch.from_numpy(held[name]) for name in names})  # noqa: SLF001
    network.eval()
    detector.model_, detector.error_mu_, detector.error_cov_inv_ = network, held["mu"], held["cov_inv"]
    detector.threshold_, detector.decision_scores_, detector.labels_ = 0.0, np.zeros(1), np.zeros(1)
    before = np.zeros((sizes["window"], sizes["features"]), np.float32)

    def score(points: np.ndarray) -> np.ndarray:
        nonlocal before
        rows = np.concatenate([before, points])
        before = rows[-len(before) :]
        return detector.decision_function(rows)[len(before) :].astype(np.float32)

    return score


class Service:
    """Answers messages in a stream.

    Args:
        score: From points to scores.
        shape: Of the points of a message; -1: as many as there are.
    """

    def __init__(self, score: Score, shape: tuple[int, ...]) -> None:
        self._score, self._shape = score, shape

    async def stream(self, _requests, context) -> None:
        """Reads and writes by hand, the quickest way there is."""
        while (message := await context.read()) is not grpc.aio.EOF:
            points = np.frombuffer(message, np.float32).reshape(self._shape)
            await context.write(self._score(points).tobytes())


async def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--with", dest="way", choices=("torch", "onnx", "lstmad"), required=True)
    parser.add_argument("--file", type=Path, required=True, help="weights (.npz) or graph (.onnx)")
    parser.add_argument("--shape", type=int, nargs=3, required=True, metavar=("W", "B", "F"), help="of the windows")
    args = parser.parse_args()
    window, series, features = args.shape
    if args.way == "lstmad":
        service = Service(lstmad_score(args.file), (-1, features))
    else:
        judge = onnx_judge(str(args.file)) if args.way == "onnx" else torch_judge(args.file)
        service = Service(Windows(judge, (window, series, features)), (-1, series, features))
    server = grpc.aio.server()
    handlers = {"Stream": grpc.stream_stream_rpc_method_handler(service.stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{args.port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
