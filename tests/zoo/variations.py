"""All healthy variations of the zoo's programs: changes that look suspicious and are right."""

from __future__ import annotations

from .bugs import MODULES
from .model import Variation

HEALTHY: list[Variation] = [variation for module in MODULES for variation in module.HEALTHY]
