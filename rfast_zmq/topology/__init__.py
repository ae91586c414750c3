"""The two directed graphs on which a run lives: made by name or from a TOML file, checked, described and drawn."""

from rfast_zmq.topology.drawing import draw
from rfast_zmq.topology.endpoints import Endpoints
from rfast_zmq.topology.families import FAMILIES, build, is_file, random_out
from rfast_zmq.topology.graphs import NODES_MAX, Topology, from_edges, from_trees
from rfast_zmq.topology.tomlfile import from_toml, load, to_toml
from rfast_zmq.topology.tree import Tree

__all__ = [
    "FAMILIES",
    "NODES_MAX",
    "Endpoints",
    "Topology",
    "Tree",
    "build",
    "draw",
    "from_edges",
    "from_toml",
    "from_trees",
    "is_file",
    "load",
    "random_out",
    "to_toml",
]
