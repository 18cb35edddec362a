"""Palate on one machine: `palate up` starts MLflow, Ray and the endpoint, `palate down` stops them.

On a cluster none of this runs: Helm starts the same Serve application (`serving.app`) there.
"""
