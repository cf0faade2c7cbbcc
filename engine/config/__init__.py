"""The configuration: its keys (``tree``), how they are read (``load``) and checked (``contradictions``)."""

from engine.config.env_file import read_env_files
from engine.config.load import InvalidConfigError, load, unconfigured
from engine.config.tree import Config, RetryConfig, S3Config, SinkConfig, SourceConfig, parse_start
from engine.quantities import Duration, Secret, Size, format_duration, format_size

__all__ = [
    "Config",
    "Duration",
    "InvalidConfigError",
    "RetryConfig",
    "S3Config",
    "Secret",
    "SinkConfig",
    "Size",
    "SourceConfig",
    "format_duration",
    "format_size",
    "load",
    "parse_start",
    "read_env_files",
    "unconfigured",
]
