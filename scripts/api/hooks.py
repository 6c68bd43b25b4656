"""What schemathesis cannot know: which VMs and files there are.

Half of the requests that are right by the schema go to a few names, so that they reach VMs that others of them made; and half of
the VMs that are to be made boot a kernel that is there. The rest stay as they were generated."""

import zlib

import schemathesis
from schemathesis.generation.meta import TestPhase

NAMES = ["web", "db", "mail"]
PATH_NAMES = {"vm": NAMES, "image": ["debian", "plain"], "volume": ["local"], "token": ["alice", "bob"], "switch": ["lan", "wan"]}


def chosen(value, choices):
    """One of the choices, or nothing: the same for the same value, so that a case can be repeated."""
    number = zlib.crc32(repr(value).encode())
    return choices[number // 2 % len(choices)] if number % 2 else None


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    # One request after the other: a name that an answer told is asked for as it is, and whether it is there then is looked at.
    if case.meta.phase.name != TestPhase.STATEFUL:
        for name, choices in PATH_NAMES.items():
            if name in (case.path_parameters or {}):
                case.path_parameters[name] = chosen(case.path_parameters[name], choices) or case.path_parameters[name]
    if case.operation.label == "POST /vms" and isinstance(case.body, dict):
        name = chosen(case.body, NAMES)
        if name:
            boot = {"kernel": "local:vmlinuz"}
            case.body = {"name": name, "memory_bytes": 64 << 20, "boot": boot}
