"""What `import hf_blemo` does: its names load on first use, and transformers' auto classes learn the model families.

`AutoModel.register` needs the model class, hence torch, and importing transformers takes a second of its own. So each
registration of a family waits until both of its sides have been imported: the module of the auto class and that of the
family's class. Python calls the registrar when one of these modules is imported, as it is a finder on `sys.meta_path`.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

__version__ = "0.1.0"
"""Version of the package."""

AUTO_MODULES = {
    "AutoConfig": "transformers.models.auto.configuration_auto",
    "AutoModel": "transformers.models.auto.modeling_auto",
    "AutoModelForZeroShotImageClassification": "transformers.models.auto.modeling_auto",
    "AutoProcessor": "transformers.models.auto.processing_auto",
}
PIPELINES_MODULE = "transformers.pipelines"


def lazy_names(module_name: str, definers: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` (PEP 562) of a module whose public names load on first use.

    Args:
        module_name: `__name__` of the module.
        definers: public name -> full name of the module that defines it; for a submodule, its own full name.

    Returns:
        `__getattr__` and `__dir__`.
    """

    def load(name: str) -> Any:
        if name not in definers:
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        definer = import_module(definers[name])
        value = definer if definers[name] == f"{module_name}.{name}" else getattr(definer, name)
        setattr(sys.modules[module_name], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module_name]), *definers})

    return load, names


class ImportWatcher:
    """A finder on `sys.meta_path` that calls back once a module has been imported, before its importer goes on.

    Args:
        awaited: full names of the modules.
        notify: called with the name of each.
    """

    def __init__(self, awaited: Iterable[str], notify: Callable[[str], None]) -> None:
        self.awaited = set(awaited)
        self.notify = notify

    def install(self) -> None:
        """Awaits the modules from now on."""
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds an awaited module as the finders after this one do, and calls back after its import."""
        if fullname not in self.awaited:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = cast("Loader", _NotifyingLoader(spec, self.notify))
                return spec
        return None


class AutoClassRegistrar(ImportWatcher):
    """Registers each family's classes with the auto classes once the auto classes are imported.

    Args:
        families: For each model_type, the names of the auto classes and of the family's class registered with each;
            "AutoConfig" must be among them.
        classes: For each class named in `families`, the full name of the module that defines it.
        auto_modules: For each auto class, the full name of the module that defines it.
        pipelines: For each task of a pipeline of this package, the name of the pipeline's class, among `classes`. Its
            models are those of `AutoModel`.
        bases: For pipelines that extend another of the same name, the full name of the module that defines that.
    """

    def __init__(
        self,
        families: Mapping[str, Mapping[str, str]],
        classes: Mapping[str, str],
        auto_modules: Mapping[str, str] = AUTO_MODULES,
        pipelines: Mapping[str, str] | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> None:
        self.families = families
        self.classes = classes
        self.auto_modules = auto_modules
        self.pipelines = dict(pipelines or {})
        self.bases = dict(bases or {})
        self.pipeline_modules = {*(classes[name] for name in self.pipelines.values()), *self.bases.values()}
        if self.pipelines:
            self.pipeline_modules.add(PIPELINES_MODULE)
        super().__init__(self.pipeline_modules, self.register)
        for family in families.values():
            for auto_class, family_class in family.items():
                self.awaited |= {auto_modules[auto_class], classes[family_class]}

    def install(self) -> None:
        """Registers with the auto classes that are imported already, and with the others when they are imported."""
        super().install()
        for module_name in (*self.auto_modules.values(), PIPELINES_MODULE):
            if module_name in sys.modules:
                self.register(module_name)

    def register(self, module_name: str) -> None:
        """Makes the registrations that wait for a module, where the other side can be had.

        A missing class belongs to a module that is still being imported, as when the two sides import each other. The
        end of that import calls this method again.

        Args:
            module_name: Full name of a module that has just been imported, of an auto class or of a family's class.
        """
        if module_name in self.pipeline_modules:
            self._register_pipelines()
        for model_type, family in self.families.items():
            for name, family_name in family.items():
                sides = {self.auto_modules[name], self.classes[family["AutoConfig"]], self.classes[family_name]}
                auto_class = getattr(sys.modules.get(self.auto_modules[name]), name, None)
                if module_name not in sides or auto_class is None:
                    continue
                config_class, family_class = self._find_class(family["AutoConfig"]), self._find_class(family_name)
                if config_class is not None and family_class is not None:
                    key = model_type if name == "AutoConfig" else config_class
                    auto_class.register(key, family_class, exist_ok=True)

    def _register_pipelines(self) -> None:
        registry: Any = getattr(sys.modules.get(PIPELINES_MODULE), "PIPELINE_REGISTRY", None)
        if registry is None:
            return
        for task, name in self.pipelines.items():
            base = sys.modules.get(self.bases.get(name, ""))
            if base is not None and not hasattr(base, name):
                # The module is still being imported and has imported the pipelines; its end calls this method again.
                continue
            pipeline_class = self._find_class(name)
            if pipeline_class is not None and task not in registry.supported_tasks:
                auto_model = import_module(self.auto_modules["AutoModel"]).AutoModel
                registry.register_pipeline(task, pipeline_class, pt_model=auto_model, type="multimodal")

    def _find_class(self, name: str) -> Any:
        # A module under way in another thread is taken as it is: waiting for it while it waits for ours is a deadlock.
        module = sys.modules.get(self.classes[name]) or import_module(self.classes[name])
        return getattr(module, name, None)


class _NotifyingLoader:
    """The loader of a spec, which in addition calls back with the module's name after executing it."""

    def __init__(self, spec: ModuleSpec, notify: Callable[[str], None]) -> None:
        self._spec = spec
        self._loader: Any = spec.loader
        self._notify = notify

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader: readers of its source or resources never meet this one.
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._notify(module.__name__)
