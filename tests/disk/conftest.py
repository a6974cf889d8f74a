"""Settings of the disk tests."""

from hypothesis import settings

# A busy machine is slow, not wrong; the suite's time limit per test is the bound.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
