"""KServe as what the controller's traffic steers: the counterpart of the routers and the deployer on Ray.

`KserveTraffic` follows the `TrafficBoard` and reports to it like those. It makes one InferenceService per app what the
traffic says, with `spec.canary`, and reads back what became of it. What KServe cannot do, and what that means:

- There is no control of the canary's size. The stable predictor stands in for it: a sample of its answers, as large as
  the canary's, is the control's evidence (`serving.kserve_server` takes it). Both arms are measured inside their pods,
  so the way there is in neither; but stable's pods may be more or less loaded than the canary's, and a difference that
  comes from this alone is not told from one of the release.
- Requests are split one by one, at random, in whole percents: a user may see both releases.
- Nobody answers in the canary's place: what it fails at, its caller sees. Requests that never reach a pod are nobody's
  evidence; a canary without a ready pod gets no traffic, and rolls back at once.
- Requests are not mirrored: a plan with `shadow_percent`, or with steps of a fraction of a percent, is not begun.

`mapping` is pure; `api` talks to the API server; `follower` is the loop. Made by the wiring of the controller.
"""

from registry.kserve_traffic.api import KubernetesApi
from registry.kserve_traffic.follower import KserveTraffic, Settings

__all__ = ["KserveTraffic", "KubernetesApi", "Settings"]
