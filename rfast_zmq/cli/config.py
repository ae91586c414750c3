"""``--config``: the settings of an earlier run, from the config.json that it left."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rfast_zmq.errors import UsageError
from rfast_zmq.settings import Settings


class _Config(msgspec.Struct):
    """What is read of config.json (:meth:`rfast_zmq.results.RunFolder.config` writes it)."""

    settings: msgspec.Raw


def read_settings(path: Path | None) -> Settings:
    """The settings in a config.json; the defaults where there is no path.

    Raises:
        UsageError: no such file, or something else in it.
    """
    if path is None:
        return Settings()
    try:
        return Settings.from_json(bytes(msgspec.json.decode(path.read_bytes(), type=_Config).settings))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}; give the config.json of an earlier run") from None
    except (UsageError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: not the config.json of a run: {error}") from None
