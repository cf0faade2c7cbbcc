"""Hatch's hook that compiles the optional inner loops of decoding, ``engine/rawbson/*.c``, into the wheel.

Without a C compiler or Python's headers the wheel is made without them, and the engine decodes with numpy.
"""

from __future__ import annotations

import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension

SOURCES = "engine/rawbson/*.c"
LIBRARY = "engine/rawbson/_native.abi3.so"


class NativeHook(BuildHookInterface[Any]):
    """Builds beside the tree, but for an editable installation, which looks for the library in it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is one platform's if that worked."""
        if self.target_name != "wheel":
            return
        self._directory = tempfile.TemporaryDirectory()
        built = _compiled(Path(self.root), self._directory.name)
        if built is None:
            if version == "editable":
                Path(self.root, LIBRARY).unlink(missing_ok=True)  # one of other sources, if any
            self.app.display_warning("without its compiled part (see above), the engine decodes more slowly")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        if version == "editable":
            # Renamed into its place, because a process may have the last one loaded.
            beside = Path(self.root, LIBRARY + ".new")
            shutil.copyfile(built, beside)
            beside.rename(Path(self.root, LIBRARY))
        else:
            build_data["force_include"][str(built)] = LIBRARY

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if self.target_name == "wheel":
            self._directory.cleanup()


def _compiled(root: Path, directory: str) -> Path | None:
    """The library, built below ``directory``; None if there is no compiler, or it has failed, which is logged."""
    sources = sorted(map(str, root.glob(SOURCES)))
    extension = Extension("_native", sources, py_limited_api=True, optional=True, extra_compile_args=["-O3"])
    build = Distribution({"name": "native", "ext_modules": [extension]}).get_command_obj("build_ext")
    build.build_lib = build.build_temp = directory
    build.ensure_finalized()
    build.run()
    built = Path(build.get_ext_fullpath("_native"))
    return built if built.exists() else None
