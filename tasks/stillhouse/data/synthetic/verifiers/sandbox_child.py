"""The process behind `stillhouse.data.synthetic.verifiers.sandbox`. A script of the standard library alone.

It reads a request, gives up whatever it may do, says how far that went, runs program and tests, and says the token.
"""

import ctypes
import json
import math
import os
import resource
import struct
import sys

MAX_FILE_BYTES = 16 << 20
MAX_OPEN_FILES = 64
PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 8, 38
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls of Landlock, the same numbers on all machines of 64 bits."""
WRITE_FILE = 1 << 1
WRITES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
"""Landlock's rights to write, remove and make files of any kind."""
REFER, TRUNCATE, CONNECT_OR_BIND, SCOPES = 1 << 13, 1 << 14, 0b11, 0b11
"""Later rights: since versions 2, 3, 4 and 6."""
BENEATH_A_PATH = 1


def confine(folder: str) -> bool:
    """Let this process write below ``folder`` alone, and open no TCP connection; False if the kernel can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    writes = WRITES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    fields = [writes, *([CONNECT_OR_BIND] if version >= 4 else []), *([SCOPES] if version >= 6 else [])]
    rules = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(CREATE_RULESET, rules, len(rules), 0)
    for path, rights in ((folder, writes), (os.devnull, WRITE_FILE)):
        place = os.open(path, os.O_PATH)
        if libc.syscall(ADD_RULE, ruleset, BENEATH_A_PATH, struct.pack("=Qi", rights, place), 0):
            return False
        os.close(place)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(RESTRICT_SELF, ruleset, 0):
        return False
    os.close(ruleset)
    return True


def become(user: int) -> None:
    """Give up being root, and all that root may do.

    But for reading, where this Python lies in a folder of root's own: what is read can't leave the sandbox.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    try:
        os.stat(os.__file__)
        kept = 0
    except PermissionError:
        kept = CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    if libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capabilities can't be given up")


def limit(seconds: float, memory_bytes: int) -> None:
    """Bound time, memory, files and processes, of which there is to be no further one."""
    cpu = math.ceil(seconds)
    for what, bound in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (bound, bound))


def main() -> None:
    """Do what the request says."""
    request = json.loads(sys.stdin.buffer.read())
    reply = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    confined = confine(os.getcwd())
    if request["user"] is not None:
        become(request["user"])
    limit(request["seconds"], request["memory_bytes"])
    os.write(reply, b"confined\n" if confined else b"unconfined\n")
    namespace = {"__name__": "program"}
    for name in ("program", "tests"):
        exec(compile(request[name], name, "exec"), namespace)  # noqa: S102, what all the rest is for
    os.write(reply, request["token"].encode())


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        os._exit(1)
