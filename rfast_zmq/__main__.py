"""``python -m rfast_zmq``: the same as ``rfast``."""

from rfast_zmq.cli import main

if __name__ == "__main__":
    main()
