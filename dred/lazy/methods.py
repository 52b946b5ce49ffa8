"""The methods of LazyTensors that follow from the tables; `methods.pyi`, printed from them, says their types."""

from dred.lazy.made import methods


class Methods:
    """Of real numbers."""

    __slots__ = ()


class ComplexMethods:
    """Of complex numbers."""

    __slots__ = ()


for _made in methods(False):
    setattr(Methods, _made.name, _made.method)
    if _made.name.startswith("__"):  # comparisons, which refuse complex numbers: those of `object` would not
        setattr(ComplexMethods, _made.name, _made.method)
for _made in methods(True):
    setattr(ComplexMethods, _made.name, _made.method)
