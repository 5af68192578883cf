"""A stand-in for the command ``stillhouse``: short tasks of known behaviour, for tests of what runs them."""

import hashlib
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

GO = Path("/work/go")
FIRST = Path("/work/first")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def about() -> int:
    """Say what can be seen and done from here."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    mounts = [line.split()[1:4] for line in Path("/proc/mounts").read_text().splitlines()]
    limits = {name: limit(name) for name in ("memory", "pids", "cpu")}
    facts = {
        "uid": os.getresuid(),
        "gid": os.getresgid(),
        "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privileges": status["NoNewPrivs"],
        "seccomp": status["Seccomp"],
        "mounts": {target: [kind, *options.split(",")] for target, kind, options in mounts},
        "limits": limits,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "init": Path("/proc/1/comm").read_text().strip(),
        "writable": [
            place for place in ("/", "/etc", "/usr", "/home", "/opt", "/tmp", "/var/tmp", "/work") if writes(place)
        ],
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "own_address": socket.gethostbyname(socket.gethostname()),
        "environment": {
            name: os.environ.get(name) for name in ("HOME", "PYTHONUNBUFFERED", "STILLHOUSE_IMAGE_DIGEST", "PLAIN")
        },
        "airflow": [name for name in os.environ if name.startswith("AIRFLOW")],
    }
    say(json.dumps(facts))
    return 0


def limit(name: str) -> str:
    """Return a limit of this control group, in either version of the kernel's."""
    for place in {
        "memory": ("memory/memory.limit_in_bytes", "memory.max"),
        "pids": ("pids/pids.max", "pids.max"),
        "cpu": ("cpu/cpu.cfs_quota_us", "cpu.max"),
    }[name]:
        if (file := Path("/sys/fs/cgroup") / place).exists():
            return file.read_text().split()[0]
    return "unknown"


def writes(place: str) -> bool:
    try:
        Path(place, "probe").write_text("")
    except OSError:
        return False
    return True


def hold(stubborn: str = "") -> int:
    """Count until told to go on, or to stop."""

    def stop(number: int, frame: object) -> None:
        say("stopping")
        if not stubborn:
            sys.exit(75)

    signal.signal(signal.SIGTERM, stop)
    say("up")
    count = 0
    while not GO.exists():
        count += 1
        say(f"count {count}")
        time.sleep(0.05)
    say("done")
    return 0


def end(code: str) -> int:
    """Write much, then end."""
    for number in range(300):
        say(f"line {number}")
    say(f"long {'x' * 40_000} end")
    say("last words")
    return int(code)


def complain() -> int:
    """Write an error and nothing else: the engine keeps no order between the two streams."""
    sys.stderr.write("error\n")
    return 0


def end_at_first(code: str) -> int:
    """End in one way on the first try, and well on the second."""
    if FIRST.exists():
        say("second")
        return 0
    FIRST.write_text("")
    say("first")
    if int(code) > 128:
        os.kill(os.getpid(), int(code) - 128)
    return int(code)


def eat() -> int:
    """Take memory without end."""
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1 << 20)))


def digest_of(name: str) -> int:
    """Say whether a variable is there, and what it says without telling it."""
    say(hashlib.sha256(os.environ[name].encode()).hexdigest())
    return 0


def gloo() -> int:
    """Add up numbers of processes that train together, and load through shared memory."""
    import torch
    from torch import distributed
    from torch.utils.data import DataLoader

    distributed.init_process_group("gloo")
    total = torch.ones(1) * (distributed.get_rank() + 1)
    distributed.all_reduce(total)
    loaded = sum(int(batch.sum()) for batch in DataLoader(list(range(100)), batch_size=10, num_workers=2))
    say(f"rank {distributed.get_rank()} total {int(total)} loaded {loaded}")
    distributed.destroy_process_group()
    return 0


COMMANDS = {
    command.__name__.replace("_", "-"): command
    for command in (about, hold, end, complain, end_at_first, eat, digest_of, gloo)
}

if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]](*sys.argv[2:]))
