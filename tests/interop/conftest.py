"""zuko, when imported, switches off the validation of all of torch's distributions, which other tests need."""

import importlib
import importlib.util

from torch.distributions import Distribution

validates = Distribution._validate_args
if importlib.util.find_spec("zuko"):
    importlib.import_module("zuko")
Distribution.set_default_validate_args(validates)
