"""R-FAST over ZeroMQ."""
