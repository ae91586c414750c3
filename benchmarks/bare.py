"""What a message costs in bare pyzmq: CPU seconds of sender and receiver together, over a Unix socket, at a slow pace.

Two processes, PUSH to PULL, high-water marks of 1, two frames, no copies in Python, a pause between messages (so that
each pays for its own wake-ups, as a paced link's do). The figure to hold a node's own CPU per message against.

    python benchmarks/bare.py [--bytes 407080] [--rate 100]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection

import zmq

from rfast_zmq.launch.memory import keep_freed_memory

WARM, COUNTED = 30, 200


def receive(address: str, pipe: Connection) -> None:
    keep_freed_memory()
    socket = zmq.Context().socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.bind(address)
    pipe.send("bound")
    began = 0.0
    for i in range(WARM + COUNTED):
        if i == WARM:
            began = time.process_time()
        socket.recv_multipart(copy=False)
    pipe.send(time.process_time() - began)


def cpu_s_per_message(size: int, rate: float) -> float:
    """CPU seconds for one message of ``size`` bytes, ``rate`` of them a second, both ends together."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="rfast-") as folder:
        address = f"ipc://{folder}/bare"
        ours, theirs = multiprocessing.Pipe()
        receiver = multiprocessing.get_context("spawn").Process(target=receive, args=(address, theirs))
        receiver.start()
        ours.recv()
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.setsockopt(zmq.SNDHWM, 1)
            socket.connect(address)
            payload, began = bytes(size), 0.0
            for i in range(WARM + COUNTED):
                if i == WARM:
                    began = time.process_time()
                socket.send_multipart([b"header" * 40, memoryview(payload)], copy=False)
                time.sleep(1 / rate)
            sent_s = time.process_time() - began
            received_s = ours.recv()
            receiver.join()
    return float(sent_s + received_s) / COUNTED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=407_080)
    parser.add_argument("--rate", type=float, default=100.0)
    args = parser.parse_args()
    print(f"{cpu_s_per_message(args.bytes, args.rate) * 1e6:.0f} us of CPU a message of {args.bytes} bytes, both ends")
