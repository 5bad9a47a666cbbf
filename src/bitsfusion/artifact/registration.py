"""Makes diffusers and transformers know the method, without importing either for those who do not need it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_PLUGINS = {
    "diffusers.quantizers.auto": "bitsfusion.artifact.diffusers_plugin",
    "transformers.quantizers.auto": "bitsfusion.artifact.transformers_plugin",
}
"""A library's registry of quantizers -> what registers with it when it is imported."""


def register_lazily() -> None:
    """Registers each quantizer: now if the library's registry is loaded, else as soon as it is. Idempotent."""
    for registry in _PLUGINS:
        if registry in sys.modules:
            importlib.import_module(_PLUGINS[registry])
        elif not any(isinstance(finder, _RegistryFinder) and finder.registry == registry for finder in sys.meta_path):
            sys.meta_path.insert(0, _RegistryFinder(registry))


class _RegistryFinder(MetaPathFinder):
    """Finds a library's registry as everyone else does, and registers right after it has run."""

    def __init__(self, registry: str) -> None:
        self.registry = registry

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.registry:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, fullname)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader, registry: str) -> None:
        self.loader, self.registry = loader, registry

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(_PLUGINS[self.registry])
