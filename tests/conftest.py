"""No test is timed: hypothesis' deadline would make a busy machine look like a bug."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
