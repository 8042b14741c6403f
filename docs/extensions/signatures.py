"""Signatures as a reader needs them: of ``__init__``, and with types that lack the checks of ``Annotated``.

Of a transformer, Python reports the signature of ``pyterrier.Transformer.__new__``, which is ``(*args, **kwargs)``.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from sphinx.application import Sphinx

PACKAGE = "pyterrier_selfdistill"


def classes_and_functions() -> Iterator[Any]:
    """Iterate over what the modules of the package define."""
    folders = importlib.import_module(PACKAGE).__path__
    for found in pkgutil.walk_packages(folders, f"{PACKAGE}."):
        module = importlib.import_module(found.name)
        for member in vars(module).values():
            if getattr(member, "__module__", None) == module.__name__:
                yield member


def drop_checks(described: Callable[..., Any]) -> None:
    """Replace the annotations of a function or a class by the types in them, for its wrappers too."""
    original = inspect.unwrap(described)
    types = get_type_hints(original)
    for name in original.__annotations__:
        original.__annotations__[name] = types[name]


def simplify(app: Sphinx) -> None:
    """Simplify the signatures of all functions, methods and classes of the package."""
    for member in classes_and_functions():
        if inspect.isfunction(member):
            drop_checks(member)
        elif inspect.isclass(member):
            simplify_class(member)


def simplify_class(described: Any) -> None:
    """Simplify the signatures of a class and its methods."""
    drop_checks(described)
    for attribute in vars(described).values():
        method = getattr(attribute, "__func__", attribute)  # of a class method
        if inspect.isfunction(method) and method.__module__ == described.__module__:
            drop_checks(method)
    if inspect.isfunction(described.__init__):
        described.__signature__ = constructor(described.__init__)


def constructor(init: Callable[..., None]) -> inspect.Signature:
    """Return the signature of a class that is built by a function: of one of another project, one without arguments."""
    if not init.__module__.startswith(PACKAGE):
        return inspect.Signature()
    _, *parameters = inspect.signature(init).parameters.values()
    return inspect.Signature(parameters)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is done before pages are read."""
    app.connect("builder-inited", simplify)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
