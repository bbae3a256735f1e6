"""relufair: what linearizing ReLUs costs each group, measured and reproducible.

The package follows the path from parameters to a figure: :mod:`relufair.config` says what to run,
:mod:`relufair.sources` and :mod:`relufair.data` bring the images, :mod:`relufair.models`,
:mod:`relufair.tracing`, :mod:`relufair.masks` and :mod:`relufair.linearize` the networks,
:mod:`relufair.training` trains them, :mod:`relufair.store` keeps what was computed,
:mod:`relufair.groups` measures it by group, :mod:`relufair.study` ties it together and
:mod:`relufair.plots` draws it.
"""

__version__ = "0.1.0"
