"""Command lines read by argparse, with our error messages."""

from __future__ import annotations

import argparse
from typing import NoReturn

from transfer_run.errors import UserError


class Parser(argparse.ArgumentParser):
    """What is wrong is one message for the user and exit code 2, as everywhere.

    Args:
        program: the command, whose `--help` says more.
    """

    def __init__(self, program: str) -> None:
        super().__init__(prog=program, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}.", remedy=f"`{self.prog} --help` explains the words")
