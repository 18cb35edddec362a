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

What KServe asks of an InferenceService that is to have canaries (read in its source, 0.21): the annotation
`serving.kserve.io/deploymentMode: Standard`, and a predictor with `model` (a ServingRuntime holds the container;
`containers` alone is refused by its webhook once there is a canary). `minReplicas` of stable bounds those of a canary:
it is at least 1. Whoever installs the InferenceService leaves `spec.predictor.name`, the label `palate.dev/release`,
`spec.canary` and the annotation `palate.dev/applied` alone: they are written here.

At a promotion the canary's pods get all requests at once, and KServe adds the missing ones after that: a canary has as
many pods as its share needs, so the last step should be a large one, and plans should ask for `replicas` that carry it.

`mapping` is pure; `api` talks to the API server; `follower` is the loop. Made by the wiring of the controller.
"""

from registry.kserve_traffic.api import KubernetesApi
from registry.kserve_traffic.follower import KserveTraffic, Settings

__all__ = ["KserveTraffic", "KubernetesApi", "Settings"]
