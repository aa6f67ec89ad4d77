"""Runs a program that must not outlive us: ``python guardian.py FOLDER PROGRAM ARGUMENTS...``, as a file, not imported.

Its standard input is a pipe. When that ends, whoever has started it is gone, or wants an end; however that came about
(by kill -9, too), it ends the program and removes the folder. When the program ends first, it exits with its status and
leaves the folder for the next try. Its first line on stdout is the id of the program's process, or why there is none.
It is there all the time, and should be small: nothing but the standard library, and little of that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

_TERM_S = 5.0


def main(folder: str, *command: str) -> int:
    """Returns the exit status."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the pipe says when it is over; and the program has its own
    try:
        program = subprocess.Popen(  # noqa: S603 - it is what we were started for
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
    except OSError as error:
        os.write(1, f"{command[0]}: {error.strerror}\n".encode())
        return 127
    over = threading.Event()

    def watch() -> None:
        os.read(0, 1)
        over.set()
        program.terminate()
        try:
            program.wait(_TERM_S)
        except subprocess.TimeoutExpired:
            program.kill()

    os.write(1, b"%d\n" % program.pid)
    threading.Thread(target=watch, daemon=True).start()
    status = program.wait()
    if over.is_set():
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
