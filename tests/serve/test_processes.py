"""What Linux says of processes, also of those that end at this very moment."""

import os
import socket
import subprocess
import sys

from fuserec.serve.processes import children_of, listening_ports, model_processes, open_files


def test_ports_are_those_of_the_process_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine, socket.create_server(("127.0.0.1", 0)) as other:
        port = mine.getsockname()[1]
        assert {port, other.getsockname()[1]} <= listening_ports(os.getpid())
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            assert child.pid in children_of(os.getpid())
            assert port not in listening_ports(child.pid), "a port of another process was taken for its own"
            child.communicate(b"\n")


def test_a_process_that_is_gone_has_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert children_of(gone.pid) == [] and listening_ports(gone.pid) == set()
    assert open_files(gone.pid) == 0 and not model_processes(gone.pid)
