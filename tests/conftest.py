"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import Phase, settings

# No deadline: the machines that run this are shared. Mutants need a failing example, not the smallest one.
settings.register_profile("difflm", deadline=None)
settings.register_profile("mutants", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("difflm")
