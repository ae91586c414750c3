"""Ports that nobody else is given between their choice and their use."""

from __future__ import annotations

import socket
import sys

import pytest
import zmq

from rfast_zmq.optim.rendezvous import HOST, Ports


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere two sockets cannot share a port so")
def test_a_port_is_kept_from_others_and_a_zmq_socket_may_bind_it() -> None:
    with zmq.Context() as context, Ports(2) as ports:
        assert len(set(ports.numbers)) == 2
        for port in ports.numbers:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((HOST, port))
        with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
            pull.bind(f"tcp://{HOST}:{ports.numbers[0]}")
            push.connect(f"tcp://{HOST}:{ports.numbers[0]}")
            push.send(b"heard")
            assert pull.recv() == b"heard"
    for port in ports.numbers[1:]:  # let go
        with socket.socket() as other:
            other.bind((HOST, port))
