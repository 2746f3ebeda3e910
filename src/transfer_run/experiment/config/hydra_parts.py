"""The parts of Hydra that it calls internal and we build on; its version is pinned, and they are named here alone."""

from __future__ import annotations

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser

__all__ = [
    "BashCompletion",
    "BasicSweeper",
    "Callbacks",
    "ConfigLoaderImpl",
    "ConfigSearchPathImpl",
    "Hydra",
    "create_config_search_path",
    "get_args_parser",
]
