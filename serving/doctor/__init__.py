"""`palate doctor`: what is wrong with an installation, and how to mend it.

`probes` look at the outside and never raise; `checks` are pure and judge what the probes saw, so that each finding can
be tested with a made-up world. `examine` puts them together for `serving.commands.doctor`, which people run on their
machine and the chart runs as its Helm test.
"""

from serving.doctor.checks import Finding
from serving.doctor.examine import Place, examine

__all__ = ["Finding", "Place", "examine"]
