"""A client of the Open Inference Protocol: drives a peer from its own process, as `scoring.py` tells it to.

Runs in the environment of the peer, with `tritonclient[grpc]`. Each line of standard input is an order in JSON, each is
answered by one line in JSON:

  {"points": FILE}                   connect, load points [T, B, F]
  {"score": [[first, last], ...]}    send points [first, last) as a message each; the errors that came back
  {"messages": N, "in_flight": K}    send N messages of one point of each series; the seconds it took
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as triton

READY_SECONDS = 60.0


class Peer:
    """One model of one server.

    Args:
        address: HOST:PORT.
        model: Its name.
    """

    def __init__(self, address: str, model: str) -> None:
        self._client = triton.InferenceServerClient(address)
        self._model = model
        self._points = np.empty((0, 0, 0), np.float32)

    def load(self, path: str) -> None:
        """Waits for the model and reads the points."""
        self._points = np.load(path, allow_pickle=False)
        end = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if time.monotonic() > end:
                sys.exit(f"{self._model} was not ready after {READY_SECONDS:.0f} s")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            return bool(self._client.is_model_ready(self._model))
        except triton.InferenceServerException:  # nobody listens yet
            return False

    def score(self, spans: list[list[int]]) -> list[list[float]]:
        """Errors of the newest points of each span."""
        answers = [self._client.infer(self._model, [_input(self._points[a:b])]) for a, b in spans]
        return [answer.as_numpy("ERRORS").ravel().tolist() for answer in answers]  # MLServer answers [B, 1]

    def seconds(self, messages: int, in_flight: int) -> float:
        """Seconds that so many messages take, with at most `in_flight` unanswered."""
        rows = [_input(self._points[t : t + 1]) for t in range(len(self._points))]
        if in_flight == 1:
            began = time.perf_counter()
            for n in range(messages):
                self._client.infer(self._model, [rows[n % len(rows)]])
            return time.perf_counter() - began
        free, failures = threading.Semaphore(in_flight), []

        def answered(result, error) -> None:  # noqa: ARG001  (tritonclient's signature)
            if error is not None:
                failures.append(error)
            free.release()

        began = time.perf_counter()
        for n in range(messages):
            free.acquire()
            self._client.async_infer(self._model, [rows[n % len(rows)]], answered)
        for _ in range(in_flight):
            free.acquire()
        taken = time.perf_counter() - began
        if failures:
            sys.exit(f"{len(failures)} messages failed: {failures[0]}")
        return taken


def _input(points: np.ndarray) -> triton.InferInput:
    made = triton.InferInput("POINTS", list(points.shape), "FP32")
    made.set_data_from_numpy(points)
    return made


def main() -> None:
    """Follows orders until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", required=True, metavar="HOST:PORT")
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    peer = Peer(args.address, args.model)
    for line in sys.stdin:
        order = json.loads(line)
        if "points" in order:
            peer.load(order["points"])
            answer: object = "ready"
        elif "score" in order:
            answer = peer.score(order["score"])
        else:
            answer = peer.seconds(order["messages"], order["in_flight"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
