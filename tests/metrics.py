"""Reading what ``/metrics`` says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

__all__ = ["Sample", "samples"]


def samples(text: str) -> list[Sample]:
    """Every sample, in order."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]
