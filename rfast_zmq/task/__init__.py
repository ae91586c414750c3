"""What a user writes, and how it is laid out for the algorithms: callbacks, data splits, the flat vector."""

from rfast_zmq.task.flat import FlatModel
from rfast_zmq.task.layout import Bucket, Entry, Group, Layout, Segment
from rfast_zmq.task.own import OwnModel, Trained
from rfast_zmq.task.splits import check_split, split
from rfast_zmq.task.task import Task, load_task, make_task, positive
from rfast_zmq.task.worker import Worker, check_weight

__all__ = [
    "Bucket",
    "Entry",
    "FlatModel",
    "Group",
    "Layout",
    "OwnModel",
    "Segment",
    "Task",
    "Trained",
    "Worker",
    "check_split",
    "check_weight",
    "load_task",
    "make_task",
    "positive",
    "split",
]
