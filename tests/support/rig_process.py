"""A process of its own for the rig of `tests.support.gpu_rig`, which has to be imported before torch."""

import os
import subprocess
import sys


def run(*arguments: str, text: str = "", **environment: str) -> str:
    """What Python prints, started with some arguments, given a text to read, in the environment of this process."""
    command = [sys.executable, "-W", "ignore", *arguments]
    scope = {**os.environ, **environment}
    return subprocess.run(command, input=text, env=scope, stdout=subprocess.PIPE, text=True, check=True).stdout
